"""A batch as its images came, for runners that preprocess on their own device.

The host copies an image's bytes there and is done: 0.9 MB for 480x640, where a batch in float32 has
12 MB. Resizing, normalising, padding and the layout are one kernel an image
(plugins/kernels/preprocess.cu), equal to the host's way bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.kernels import DType, KernelLibrary, Layout, PreprocessParams, installed_kernels

__all__ = ["RawImages", "preprocessing_kernels"]


@dataclass(frozen=True, repr=False)
class RawImages(OneLine):
    """Stands for the array of a batch, which a runner makes of it; see :meth:`params`.

    Attributes:
        images: [H, W, 3] uint8 each, BGR, contiguous.
        resized: height and width of each in the batch.
        padded: height and width of the batch.
        table: [3, 256] float32, what becomes of each byte of the batch's three channels.
        bgr_to_rgb: the batch's channels are R, G, B.
        is_uint8: the batch is [B, H, W, 3] bytes, BGR, and no float32 [B, 3, H, W].
    """

    images: tuple[npt.NDArray[np.uint8], ...]
    resized: tuple[tuple[int, int], ...]
    padded: tuple[int, int]
    table: npt.NDArray[np.float32]
    bgr_to_rgb: bool
    is_uint8: bool

    def __post_init__(self) -> None:
        if self.table.shape != (3, 256) or self.table.dtype != np.float32:
            raise ValueError(
                f"table is {self.table.dtype} {list(self.table.shape)}, expected float32 [3, 256]"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the batch."""
        return (len(self), *self.padded, 3) if self.is_uint8 else (len(self), 3, *self.padded)

    @property
    def like(self) -> npt.NDArray[Any]:
        """An array of the batch's shape and type, which takes no memory, for checks."""
        dtype = np.uint8 if self.is_uint8 else np.float32
        return np.broadcast_to(np.zeros((), dtype), self.shape)

    def filled_up(self, count: int) -> RawImages:
        """The same, and its last image ``count`` times more."""
        images, resized = self.images, self.resized
        return dataclasses.replace(
            self, images=images + images[-1:] * count, resized=resized + resized[-1:] * count
        )

    def params(
        self, *, channels_last: bool = False
    ) -> Iterator[tuple[npt.NDArray[np.uint8], PreprocessParams]]:
        """Each image, and what carafe_preprocess is told to write it to its place in the batch."""
        nhwc = self.is_uint8 or channels_last
        for image, (height, width) in zip(self.images, self.resized, strict=True):
            yield (
                image,
                PreprocessParams(
                    dtype=DType.FLOAT32,
                    layout=Layout.NHWC if nhwc else Layout.NCHW,
                    raw=int(self.is_uint8),
                    reversed=int(self.bgr_to_rgb and not self.is_uint8),
                    source_height=image.shape[0],
                    source_width=image.shape[1],
                    height=height,
                    width=width,
                    padded_height=self.padded[0],
                    padded_width=self.padded[1],
                ),
            )


def preprocessing_kernels() -> KernelLibrary | None:
    """What preprocesses on a GPU; None where the host has to.

    Raises:
        BackendUnavailableError: the library is there but cannot be used.
    """
    library = installed_kernels()
    return library if library is not None and library.has_cuda else None
