"""Batches that a GPU makes of raw images, through whatever package reaches its memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from carafe_deploy.engine.device import Device
from carafe_deploy.kernels import Device as Kind
from carafe_deploy.kernels import KernelLibrary
from carafe_deploy.raw_images import RawImages

__all__ = ["EngineImages"]


class EngineImages:
    """Preprocesses :class:`~carafe_deploy.raw_images.RawImages`, bit for bit as the host does.

    Everything is enqueued in the device's stream. Memory for images is kept for the next ones.

    Args:
        library: that has kernels for GPUs.
        device: of the engine; it frees that memory.
    """

    def __init__(self, library: KernelLibrary, device: Device) -> None:
        self._library = library
        self._device = device
        #: Bytes and address by the number of an image in its batch.
        self._sources: list[tuple[int, int]] = []
        self._table: tuple[npt.NDArray[np.float32], int] | None = None

    def enqueue(self, raw: RawImages, target: int, host: npt.NDArray[np.uint8]) -> None:
        """Make the batch at an address; ``host`` holds the images' bytes and is not free before
        the device is done.
        """
        table = self._table_of(raw)
        bytes_each = math.prod(raw.shape[1:]) * raw.like.itemsize
        start = 0
        for number, (image, params) in enumerate(raw.params()):
            part = host[start : start + image.nbytes]
            part[:] = image.reshape(-1)
            start += image.nbytes
            source = self._source(number, image.nbytes)
            self._device.upload(source, part)
            out = target + number * bytes_each
            self._library.preprocess(
                params, source, table, out, device=Kind.CUDA, stream=self._device.stream
            )

    def _source(self, number: int, size: int) -> int:
        """Where an image of the batch goes. What is there may still be read: all of it is in one
        stream, so the copy waits.
        """
        if number == len(self._sources):
            self._sources.append((size, self._device.allocate(size)))
        known, pointer = self._sources[number]
        if known < size:
            self._sources[number] = size, self._device.allocate(size)
            self._device.synchronize()
            self._device.release(pointer)
        return self._sources[number][1]

    def _table_of(self, raw: RawImages) -> int:
        known = self._table
        if known is None or known[0] is not raw.table:
            pointer = known[1] if known else self._device.allocate(raw.table.nbytes)
            self._device.upload(pointer, raw.table)
            known = self._table = raw.table, pointer
        return known[1]
