"""Preprocessing on a GPU: :mod:`carafe_deploy.preprocess` by libcarafe_kernels.so.

The host copies an image's bytes into pinned memory and is done: 0.9 MB for 480x640, where a batch
in float32 has 12 MB. Resizing, normalising, padding and the layout are one kernel an image
(plugins/kernels/preprocess.cu), equal to the host's way bit for bit.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carafe_deploy.arrays import writable
from carafe_deploy.device_images import DeviceImages
from carafe_deploy.kernels import (
    Device,
    DType,
    KernelLibrary,
    Layout,
    PreprocessParams,
    Where,
    installed_kernels,
)
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.types import ModelInfo

#: Pinned buffers, of one image each: one is filled while those before are copied to the device.
BUFFERS = 4


class TorchPreprocessor(Preprocessor):
    """Preprocesses like :class:`carafe_deploy.preprocess.Preprocessor`, on a torch device.

    ``Batch.images`` is a :class:`~carafe_deploy.device_images.DeviceImages`. On CUDA a call
    returns before the device is done; all its work is in a stream of its own. Any thread may call,
    one at a time.

    Args:
        info: of the model.
        device: where to compute.
        library: that has kernels for it.
        channels_last: the batch is in that memory format.
    """

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device | str,
        library: KernelLibrary,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(info)
        self._device = device = torch.device(device)
        self._library = library
        self._channels_last = channels_last and not self._uint8
        self._lock = threading.Lock()
        self._on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_cuda else None
        self._pinned = _Pinned(BUFFERS)
        with torch.cuda.stream(self._stream):
            self._device_table = torch.from_numpy(writable(self._table)).to(device)

    def _filled(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        resized: Sequence[tuple[int, int]],
        padded: tuple[int, int],
    ) -> Any:
        with self._lock, torch.inference_mode(), self._computing() as where:
            batch = self._empty(len(images), padded)
            for target, image, (height, width) in zip(batch, images, resized, strict=True):
                params = PreprocessParams(
                    dtype=DType.FLOAT32,
                    layout=Layout.NHWC if self._uint8 or self._channels_last else Layout.NCHW,
                    raw=int(self._uint8),
                    reversed=int(self._settings.bgr_to_rgb and not self._uint8),
                    source_height=image.shape[0],
                    source_width=image.shape[1],
                    height=height,
                    width=width,
                    padded_height=padded[0],
                    padded_width=padded[1],
                )
                source = self._uploaded(image)
                addresses = source.data_ptr(), self._device_table.data_ptr(), target.data_ptr()
                self._library.preprocess(params, *addresses, **where)
            ready = None if self._stream is None else self._stream.record_event()
            return DeviceImages(batch, ready)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[Where]:
        if self._stream is None:
            yield {"device": Device.CPU, "threads": torch.get_num_threads()}
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield {"device": Device.CUDA, "stream": self._stream.cuda_stream}

    def _empty(self, count: int, padded: tuple[int, int]) -> Tensor:
        if self._uint8:
            return torch.empty((count, *padded, 3), dtype=torch.uint8, device=self._device)
        form = torch.channels_last if self._channels_last else torch.contiguous_format
        return torch.empty((count, 3, *padded), device=self._device, memory_format=form)

    def _uploaded(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """The image's bytes on the device."""
        given = torch.from_numpy(writable(image))
        return given if self._stream is None else self._pinned.upload(given, self._stream)


def preprocessor_on(device: str, info: ModelInfo) -> Preprocessor:
    """On that GPU, or on the host where libcarafe_kernels.so has no kernels for it.

    Raises:
        BackendUnavailableError: the library is there but cannot be used.
    """
    library = installed_kernels()
    if library is None or not library.has_cuda:
        return Preprocessor(info)
    return TorchPreprocessor(info, device, library)


class _Pinned:
    """Page-locked memory of which copies to a device go on while the host does other things."""

    def __init__(self, count: int) -> None:
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * count
        self._copied: list[torch.cuda.Event | None] = [None] * count
        self._next = 0

    def upload(self, image: Tensor, stream: torch.cuda.Stream) -> Tensor:
        """The image on the stream's device, after what is enqueued there."""
        at = self._next
        self._next = (at + 1) % len(self._buffers)
        copied = self._copied[at]
        if copied is not None:
            copied.synchronize()
        if self._buffers[at].numel() < image.numel():
            self._buffers[at] = torch.empty(image.numel(), dtype=torch.uint8, pin_memory=True)
        part = self._buffers[at][: image.numel()].view(image.shape)
        part.copy_(image)
        uploaded = part.to(stream.device, non_blocking=True)
        self._copied[at] = stream.record_event()
        return uploaded
