"""Batches that a torch device makes of raw images."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carafe_deploy.arrays import writable
from carafe_deploy.kernels import Device, KernelLibrary, Where
from carafe_deploy.raw_images import RawImages

__all__ = ["TorchImages"]


class TorchImages:
    """Preprocesses :class:`~carafe_deploy.raw_images.RawImages`, bit for bit as the host does.

    On CUDA a call returns before the device is done. Its work is in a stream of its own, so that it
    goes on while the batch before is computed; images go by way of pinned memory, which torch keeps
    for the next ones.

    Args:
        device: where to compute.
        library: that has kernels for it.
        channels_last: float batches are in that memory format.
    """

    def __init__(
        self, device: torch.device, library: KernelLibrary, *, channels_last: bool = False
    ) -> None:
        self._device = device
        self._library = library
        self._channels_last = channels_last
        self._table: tuple[npt.NDArray[np.float32], Tensor] | None = None

    @cached_property
    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def __call__(self, raw: RawImages) -> Tensor:
        """The batch, for work that is enqueued from now on in the device's current stream."""
        if self._stream is None:
            return self._made(raw, {"device": Device.CPU, "threads": torch.get_num_threads()})
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            batch = self._made(raw, {"device": Device.CUDA, "stream": self._stream.cuda_stream})
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        batch.record_stream(current)  # its memory is the other stream's
        return batch

    def _made(self, raw: RawImages, where: Where) -> Tensor:
        batch = self._empty(raw)
        table = self._table_of(raw)
        for target, (image, params) in zip(
            batch, raw.params(channels_last=self._channels_last), strict=True
        ):
            source = self._uploaded(image)
            addresses = source.data_ptr(), table.data_ptr(), target.data_ptr()
            self._library.preprocess(params, *addresses, **where)
        return batch

    def _empty(self, raw: RawImages) -> Tensor:
        if raw.is_uint8:
            return torch.empty(raw.shape, dtype=torch.uint8, device=self._device)
        form = torch.channels_last if self._channels_last else torch.contiguous_format
        return torch.empty(raw.shape, device=self._device, memory_format=form)

    def _table_of(self, raw: RawImages) -> Tensor:
        known = self._table
        if known is None or known[0] is not raw.table:
            known = self._table = raw.table, self._uploaded(raw.table)
        return known[1]

    def _uploaded(self, array: npt.NDArray[np.generic]) -> Tensor:
        given = torch.from_numpy(writable(array))
        if self._stream is None:
            return given
        return given.pin_memory().to(self._device, non_blocking=True)
