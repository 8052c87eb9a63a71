"""Pasting masks on a GPU: :mod:`carafe_deploy.masks` for all masks at once.

Nearly all of NumPy's time for 100 masks in 800x1216 pixels is finding where runs begin and end
(benchmarks/results/paste_masks.json). So the device finds them, by the host's method and not pixel
by pixel, and hands over their ends, 0.2 MB, 1.6 MB at worst; the host encodes, in C++ where
libcarafe_kernels.so is. Up and down again the masks are 0.3 MB, some 0.03 ms each way at 10 GB/s;
their pixels would be 107 MB.

On an H100 pasting and encoding 69 masks, by pycocotools, took 4.6 ms, as long as the detector
(benchmarks/results/h100/profile.json). On a CPU it is slower than the host's way, since it works on
every column of the image for every mask.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carafe_deploy.arrays import writable
from carafe_deploy.masks import encode_runs

#: Bytes of intermediate results that a call may take, beside one mask's.
MEMORY = 128_000_000
#: Bytes a pixel column that one mask of 28x28 takes: sampled columns and stretches of up to 30
#: rows in float32, several at a time, their states, and indices of their changes (of noise, the
#: worst there is).
_BYTES_A_COLUMN = 2560


class TorchPaster:
    """Pastes masks like :func:`carafe_deploy.masks.paste_masks`, on a torch device.

    Encodings are the same byte for byte wherever the device rounds float32 and float64 as IEEE 754
    says, operation by operation; CUDA does.

    Args:
        device: where to compute. On CUDA, in a stream of its own, so that a detector at work in
            another thread is not waited for.
        memory: bytes of intermediate results; masks are taken in groups that fit, one at least.
    """

    def __init__(self, device: torch.device | str, memory: int = MEMORY) -> None:
        self._device = device = torch.device(device)
        self._memory = memory
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(
        self,
        probabilities: npt.NDArray[np.float32],
        boxes: npt.NDArray[np.float32],
        size: tuple[int, int],
        threshold: float = 0.5,
    ) -> tuple[dict[str, Any], ...]:
        """See :func:`carafe_deploy.masks.paste_masks`."""
        together = max(1, self._memory // (_BYTES_A_COLUMN * max(size[1], 1)))
        found: list[tuple[dict[str, Any], ...]] = []
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for start in range(0, len(boxes), together):
                part = slice(start, start + together)
                values, corners = (
                    torch.from_numpy(writable(np.ascontiguousarray(array[part], np.float32))).to(
                        self._device
                    )
                    for array in (probabilities, boxes)
                )
                ends, counts = run_ends(values, corners, size, threshold)
                # One copy, and so one wait for the device.
                both = torch.cat((counts, ends)).cpu().numpy()
                found.append(encode_runs(both[len(counts) :], both[: len(counts)], size))
        return tuple(itertools.chain.from_iterable(found))


def run_ends(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor]:
    """Where runs of mask pixels begin and end, in the order of COCO's encoding.

    Arguments are those of :func:`carafe_deploy.masks.paste_masks`, float32.

    Returns:
        [M] int64 pixel numbers, column by column, of all masks one after the other, beginnings
        and ends in turn; and [N] int64, how many of them are each mask's.
    """
    height, width = size
    masks, cells = probabilities.shape[:2]
    if masks == 0 or height == 0 or width == 0:
        empty = boxes.new_zeros(0, dtype=torch.int64)
        return empty, boxes.new_zeros(masks, dtype=torch.int64)
    across = _positions(boxes[:, 0], boxes[:, 2], width, cells, threshold)
    down = _positions(boxes[:, 1], boxes[:, 3], height, cells, threshold)
    # Cell i of the mask is row and column i + 1 of the frame; cells outside are zero.
    frame = torch.nn.functional.pad(probabilities, (1, 1, 1, 1))
    cell = across.cell.unsqueeze(1).expand(-1, cells + 2, -1)
    columns = _lerp(  # [N, S + 2, W]
        frame.gather(2, cell), frame.gather(2, cell + 1), across.fraction.unsqueeze(1)
    )
    start, last, row = _stretches(down, height, cells)
    row = row.unsqueeze(2).expand(-1, -1, width)
    above, below = columns.gather(1, row), columns.gather(1, row + 1)  # [N, K, W]
    begins, ends = (
        _lerp(above, below, down.fraction.gather(1, at.clamp(0, height - 1)).unsqueeze(2))
        for at in (start, last)
    )
    # Stretches without rows come last, and belong to no mask.
    inside = (start <= last).unsqueeze(2) & across.valid.unsqueeze(1)
    limit = float(np.float32(threshold))  # of float32 probabilities
    states = torch.stack(((begins >= limit) & inside, (ends >= limit) & inside), dim=2)
    states = states.flatten(1, 2).transpose(1, 2)  # [N, W, 2K]
    states = torch.nn.functional.pad(states, (1, 1))
    mask, column, step = (states[..., 1:] != states[..., :-1]).nonzero().unbind(1)
    stretch = torch.div(step, 2, rounding_mode="trunc")
    within = step % 2 == 1
    # After the last stretch the mask ends where its last row does.
    count = (start <= last).sum(1)
    final = last.gather(1, (count - 1).clamp(min=0).unsqueeze(1)) + 1  # [N, 1]
    start = torch.where(start <= last, start, final)
    at = torch.cat((start, final), 1)[mask, stretch]
    # Within a stretch: between the pixels where the line from begin to end crosses the threshold.
    stretch = stretch.clamp(max=start.shape[1] - 1)
    begin, end = (values[mask, stretch, column].double() for values in (begins, ends))
    pixels = (last - start)[mask, stretch]
    crossing = (limit - begin) / (end - begin) * pixels
    # The first pixel of the new state: rising includes the threshold, falling excludes it.
    after = torch.where(end > begin, crossing.ceil(), crossing.floor() + 1)
    after = torch.fmin(torch.fmax(after, after.new_ones(())), pixels).to(torch.int64)
    at = torch.where(within, at + after, at)
    return column * height + at, torch.bincount(mask, minlength=masks)


class _Positions(NamedTuple):
    """Where pixels fall between mask cells along one axis, each [N, edge]: in cells, ascending;
    framed cell (0 is outside) at or before the centre; distance from there; reached by the mask.
    """

    position: Tensor
    cell: Tensor
    fraction: Tensor
    valid: Tensor


def _positions(low: Tensor, high: Tensor, edge: int, cells: int, threshold: float) -> _Positions:
    """As ``masks._sample_positions``, for every pixel of the axis."""
    extent = (high - low).unsqueeze(1)
    has_area = (extent > 0) & extent.isfinite()
    extent = torch.where(has_area, extent, 1.0)
    reach = (0.5 - threshold) * extent.double() / cells
    pixel = torch.arange(edge, device=low.device)
    first = (low.double().unsqueeze(1) - reach).floor() - 1
    stop = (high.double().unsqueeze(1) + reach).ceil() + 1
    grid = (pixel + 0.5 - low.unsqueeze(1)) / extent * 2 - 1
    position = ((grid + 1) * cells - 1) / 2
    valid = has_area & (pixel >= first) & (pixel < stop) & (position >= -1) & (position < cells)
    cell = position.clamp(-1, cells).floor()
    index = cell.to(torch.int64).clamp(-1, cells - 1) + 1
    return _Positions(position, index, position - cell, valid)


def _stretches(down: _Positions, height: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel rows between two neighbouring cell rows: first, last, and the cell row, each [N, K].

    K is S + 1. Those that hold no pixel have a last before their first, and come last.
    """
    cell = torch.arange(cells + 1, device=down.cell.device).expand(len(down.cell), -1)
    # Rows that the mask does not reach are before the first cell, or after the last one.
    row = torch.arange(height, device=cell.device)
    first = torch.where(down.valid, row, height).amin(1, keepdim=True)
    stop = torch.where(down.valid, row + 1, 0).amax(1, keepdim=True)
    edges = (torch.arange(cells + 2, device=cell.device) - 1).to(down.position.dtype)
    found = torch.searchsorted(down.position, edges.expand(len(cell), -1).contiguous())
    found = torch.minimum(torch.maximum(found, first), stop)
    start, last = found[:, :-1], found[:, 1:] - 1
    order = (start > last).to(torch.int8).argsort(dim=1, stable=True)
    return start.gather(1, order), last.gather(1, order), cell.gather(1, order)


def _lerp(start: Tensor, stop: Tensor, at: Tensor) -> Tensor:
    """Step by step, as NumPy rounds; torch.lerp and fused kernels round otherwise."""
    return (stop - start) * at + start
