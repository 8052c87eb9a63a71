"""From images to the inputs of a detector: mmdetection 3.3's test pipeline in NumPy and OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError, InputShapeError
from carafe_deploy.images import check_image
from carafe_deploy.raw_images import RawImages
from carafe_deploy.types import ModelInfo, Preprocessing

#: Of an input; an artefact that asks for more was made so by accident or malice.
MOST_PIXELS = 1 << 26


@dataclass(frozen=True, repr=False)
class Batch(OneLine):
    """Images ready for a runner, and what it takes to map its boxes back.

    Attributes:
        images: [B, 3, H, W] float32 or [B, H, W, 3] uint8, zero-padded right and bottom; an array,
            or :class:`~carafe_deploy.raw_images.RawImages` for a runner that makes it.
        image_sizes: [B, 2] float32, height and width before padding.
        scale_factors: [B, 2] float64, (new width / width, new height / height).
        original_sizes: (height, width) of every image as given.
        shrunk: images made smaller than mmdetection would, because the artefact accepts no more;
            their detections may differ from mmdetection's.
    """

    images: Any
    image_sizes: npt.NDArray[np.float32]
    scale_factors: npt.NDArray[np.float64]
    original_sizes: tuple[tuple[int, int], ...]
    shrunk: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.original_sizes)

    @property
    def inputs(self) -> dict[str, Any]:
        """What :meth:`carafe_deploy.runners.base.Runner.run` takes."""
        return {"images": self.images, "image_sizes": self.image_sizes}


class Preprocessor:
    """Resize keeping the ratio, normalise, pad; equal to mmdetection 3.3 bit by bit.

    Two departures: an edge never becomes shorter than one pixel (mmdetection fails where it rounds
    to none, on 10000x1 pixels for one), and an image is shrunk further where the artefact accepts
    no larger input (see ``Batch.shrunk``).

    With the ``nhwc_uint8`` layout the padding is zero *before* normalisation; the graph, which
    normalises, must zero it again outside ``image_sizes``.

    Args:
        info: of the model.
        raw: leave the work to a runner: batches are :class:`~carafe_deploy.raw_images.RawImages`.

    Raises:
        ArtefactError: the sizes that the artefact accepts contain no multiple of its divisor.
    """

    def __init__(self, info: ModelInfo, *, raw: bool = False) -> None:
        self._raw = raw
        self._settings = info.preprocessing
        self._uint8 = info.input.layout == "nhwc_uint8"
        divisor = info.preprocessing.pad_size_divisor
        self._height = _multiples(info.input.height, divisor, "height")
        self._width = _multiples(info.input.width, divisor, "width")
        self._table = _normalisation_table(info.preprocessing)

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> Batch:
        """Make one batch of [H, W, 3] uint8 images, BGR, padded to their common maximum.

        Raises:
            InputShapeError: no image, or one is not a non-empty uint8 [H, W, 3] array.
        """
        if not images:
            raise InputShapeError("a batch needs at least one image")
        originals = tuple(check_image(image) for image in images)
        plans = [self.resized(height, width) for height, width in originals]
        resized = [plan[:2] for plan in plans]
        whole = [np.ascontiguousarray(image) for image in images]
        sizes = np.array(resized, np.float64)
        return Batch(
            images=self._filled(whole, resized, self._padded(plans)),
            image_sizes=sizes.astype(np.float32),
            scale_factors=(sizes / np.array(originals, np.float64))[:, ::-1],
            original_sizes=originals,
            shrunk=tuple(plan[2] for plan in plans),
        )

    def padded_size(self, image: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Height and width that a batch of this image alone has; raises as a batch does."""
        return self._padded([self.resized(*check_image(image))])

    def _filled(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        resized: Sequence[tuple[int, int]],
        padded: tuple[int, int],
    ) -> Any:
        """What a runner takes, of contiguous images and their heights and widths."""
        if self._raw:
            reverse = self._settings.bgr_to_rgb
            return RawImages(
                tuple(images), tuple(resized), padded, self._table, reverse, self._uint8
            )
        shape = (*padded, 3) if self._uint8 else (3, *padded)
        batch = np.empty((len(images), *shape), np.uint8 if self._uint8 else np.float32)
        for target, image, size in zip(batch, images, resized, strict=True):
            self._fill(target, image, *size)
        return batch

    def _padded(self, plans: Sequence[tuple[int, int, bool]]) -> tuple[int, int]:
        divisor = self._settings.pad_size_divisor
        height = _padded(max(new_height for new_height, _, _ in plans), divisor, self._height)
        width = _padded(max(new_width for _, new_width, _ in plans), divisor, self._width)
        if height * width > MOST_PIXELS:
            raise ArtefactError(
                f"the artefact resizes to {list(self._settings.scale)} and pads to multiples of "
                f"{divisor}, so to {height}x{width}, which is more than {MOST_PIXELS} pixels: "
                "export it with a smaller scale"
            )
        return height, width

    def resized(self, height: int, width: int) -> tuple[int, int, bool]:
        """What becomes of height and width, and whether the artefact's bounds made them smaller."""
        long, short = max(self._settings.scale), min(self._settings.scale)
        wanted = min(long / max(height, width), short / min(height, width))
        size = _scaled(height, wanted), _scaled(width, wanted)
        if size[0] <= self._height[1] and size[1] <= self._width[1]:
            return (*size, False)
        scale = min(wanted, self._height[1] / height, self._width[1] / width)
        return _scaled(height, scale), _scaled(width, scale), True

    def _fill(
        self, target: npt.NDArray[Any], image: npt.NDArray[np.uint8], height: int, width: int
    ) -> None:
        """Write an image, resized and normalised, and zeros around it."""
        size = width, height
        if self._uint8:
            part = target[:height, :width]
            cv2.resize(image, size, dst=part, interpolation=cv2.INTER_LINEAR)
            target[height:] = 0
            target[:height, width:] = 0
            return
        planes = cv2.split(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
        if self._settings.bgr_to_rgb:
            planes = planes[::-1]
        for channel, plane in enumerate(planes):
            cv2.LUT(plane, self._table[channel], dst=target[channel, :height, :width])
        target[:, height:] = 0
        target[:, :height, width:] = 0


def _scaled(edge: int, scale: float) -> int:
    # mmcv's rounding (imrescale); the lower limit is ours.
    return max(1, int(edge * scale + 0.5))


def _padded(edge: int, divisor: int, bounds: tuple[int, int]) -> int:
    return max(-(-edge // divisor) * divisor, bounds[0])


def _multiples(bounds: tuple[int, int], divisor: int, name: str) -> tuple[int, int]:
    low, high = -(-bounds[0] // divisor) * divisor, bounds[1] // divisor * divisor
    if low > high or high < 1:
        raise ArtefactError(
            f"the artefact accepts {name} {bounds[0]} to {bounds[1]}, which holds no multiple of "
            f"{divisor}: export it again"
        )
    return low, high


def _normalisation_table(settings: Preprocessing) -> npt.NDArray[np.float32]:
    """[3, 256] normalised value of every byte.

    A look-up is exact and reads each pixel once; subtracting and dividing take two passes.
    """
    levels = np.arange(256, dtype=np.float32)
    mean = np.array(settings.mean, np.float32)[:, None]
    std = np.array(settings.std, np.float32)[:, None]
    return (levels - mean) / std
