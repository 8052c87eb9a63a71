"""Instance masks: from 28x28 probabilities in a box to run-length encodings of the image's size.

No mask is ever laid out in pixels. Down a column of pixels the bilinearly sampled probability is
linear between two rows of mask cells, so it crosses the threshold at most once there: two samples
for each row of cells give every run, however large the box is.

Where libcarafe_kernels.so is, it does that (plugins/kernels/masks.h); elsewhere NumPy and
pycocotools do, more slowly and to the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.kernels import PasteParams, installed_kernels

_F = np.float32


def paste_masks(
    probabilities: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32],
    size: tuple[int, int],
    threshold: float = 0.5,
) -> tuple[dict[str, Any], ...]:
    """Paste masks into an image and encode them.

    Matches mmdetection 3.3's FCNMaskHead: bilinear ``grid_sample`` at pixel centres, zeros
    outside, ``align_corners=False``, positions in float32. One departure: for a box without area
    mmdetection divides by zero and may paint a strip, here the mask is empty. All masks are one
    call, during which other threads of Python run.

    Args:
        probabilities: [N, S, S] in 0..1, S = 28 for these detectors.
        boxes: [N, 4] x1, y1, x2, y2 in pixels of the image; may reach outside.
        size: (height, width) of the image in pixels.
        threshold: above 0; a pixel belongs to the mask where its probability is at least this.

    Returns:
        N COCO run-length encodings, ``{"size": [height, width], "counts": bytes}``, the same as
        ``pycocotools.mask.encode`` makes of the pasted pixels.

    Raises:
        BackendUnavailableError: neither libcarafe_kernels.so nor pycocotools is there, or the
            library cannot be used.
    """
    probabilities, boxes = (np.ascontiguousarray(each, _F) for each in (probabilities, boxes))
    count, cells = len(probabilities), probabilities.shape[-1]
    if probabilities.shape != (count, cells, cells) or boxes.shape != (count, 4):
        raise ValueError(
            f"probabilities {list(probabilities.shape)} and boxes {list(boxes.shape)}, expected "
            "[N, S, S] and [N, 4]"
        )
    if not 0 < threshold < np.inf:
        raise ValueError(f"threshold is {threshold}, expected a number above 0")
    library = installed_kernels()
    if library is None:
        return tuple(
            _encode(_run_ends(probability, box, size, threshold), size)
            for probability, box in zip(probabilities, boxes, strict=True)
        )
    height, width = size
    params = PasteParams(masks=count, cells=cells, height=height, width=width, threshold=threshold)
    addresses = probabilities.ctypes.data, boxes.ctypes.data
    return _texts(partial(library.paste_masks, params, *addresses), count, size)


def _texts(
    write: Callable[[int, int, int], None], count: int, size: tuple[int, int]
) -> tuple[dict[str, Any], ...]:
    """What the library writes, given where the text goes, its capacity, and where offsets go."""
    offsets = np.zeros(count + 1, np.int64)
    # Enough for three runs a column; a page that is not written takes no memory.
    text = np.empty(count * (8 * size[1] + 64), np.uint8)
    write(text.ctypes.data, text.size, offsets.ctypes.data)
    if offsets[-1] > text.size:
        text = np.empty(offsets[-1], np.uint8)
        write(text.ctypes.data, text.size, offsets.ctypes.data)
    found = text[: offsets[-1]].tobytes()
    height, width = size
    return tuple(
        {"size": [height, width], "counts": found[begin:end]}
        for begin, end in itertools.pairwise(offsets.tolist())
    )


def decode_mask(encoding: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """[H, W] uint8 of zeros and ones from one COCO run-length encoding.

    Raises BackendUnavailableError where pycocotools is not installed.
    """
    decoded: npt.NDArray[np.uint8] = _coco_mask().decode(encoding)
    return decoded


def mask_box(encoding: dict[str, Any]) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of a region that holds the mask; zeros for none.

    Raises BackendUnavailableError where pycocotools is not installed.
    """
    x, y, width, height = map(int, _coco_mask().toBbox(encoding))
    return x, y, width, height


def _coco_mask() -> Any:
    # Imported here, since detectors without masks run without it.
    try:
        from pycocotools import mask
    except ImportError as error:
        raise BackendUnavailableError(
            f"masks need pycocotools ({error}): pip install pycocotools"
        ) from error
    return mask


def _run_ends(
    probability: npt.NDArray[Any],
    box: npt.NDArray[np.float32],
    size: tuple[int, int],
    threshold: float,
) -> npt.NDArray[np.int64]:
    """Pixel numbers, column by column, where runs of one mask begin and end in turn; a run ends
    with its column.
    """
    height, width = size
    x1, y1, x2, y2 = box
    cells = probability.shape[-1]
    left, cell_x, fraction_x = _sample_positions(x1, x2, width, cells, threshold)
    top, cell_y, fraction_y = _sample_positions(y1, y2, height, cells, threshold)
    # Cell i of the mask is row and column i + 1 of the frame; cells outside are zero.
    frame = np.zeros((cells + 2, cells + 2), _F)
    frame[1:-1, 1:-1] = probability
    columns = _lerp(frame[:, cell_x], frame[:, cell_x + 1], fraction_x)  # [S + 2, W']
    column, row = _changes(columns, cell_y, fraction_y, _F(threshold))
    return (column + left) * height + row + top


def _encode(ends: npt.NDArray[np.int64], size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    counts = _run_lengths(ends, size).tolist()
    encoding: dict[str, Any] = _coco_mask().frPyObjects(
        {"size": [height, width], "counts": counts}, height, width
    )
    return encoding


def _run_lengths(positions: npt.NDArray[np.int64], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """COCO's counts, lengths of alternating runs of zeros and ones, zeros first, from run ends."""
    # A run that reaches the bottom goes on at the top of the next column.
    seams = np.flatnonzero(positions[1:-1:2] == positions[2::2])
    if seams.size:
        positions = np.delete(positions, np.concatenate((2 * seams + 1, 2 * seams + 2)))
    lengths = np.diff(positions, prepend=0, append=size[0] * size[1])
    # pycocotools writes a run of length zero at the beginning only.
    return lengths if lengths[-1] else lengths[:-1]


def _sample_positions(
    low: np.float32, high: np.float32, edge: int, cells: int, threshold: float
) -> tuple[int, npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Where pixels fall between mask cells along one axis: the first one that the mask can reach;
    for it and those after it the framed cell (0 is outside) at or before its centre, ascending, and
    the distance from there in cells.
    """
    extent = high - low
    if not 0 < extent < np.inf:
        return 0, np.zeros(0, np.intp), np.zeros(0, _F)
    # No probability is above one, and half a cell beyond the box it has fallen to at most 0.5:
    # pixels further out than the threshold allows are left away, but for one that covers rounding.
    reach = (0.5 - threshold) * float(extent) / cells
    first = int(max(0.0, np.floor(float(low) - reach) - 1))
    last = int(min(float(edge), np.ceil(float(high) + reach) + 1))
    first = min(first, edge)
    centres = np.arange(first, max(first, last), dtype=_F) + _F(0.5)
    # The order of operations is grid_sample's, so that positions round alike.
    grid = (centres - low) / extent * _F(2) - _F(1)
    position = ((grid + _F(1)) * _F(cells) - _F(1)) / _F(2)
    begin, end = np.searchsorted(position, (-1, cells))
    position = position[begin:end]
    cell = np.floor(position)
    return first + int(begin), cell.astype(np.intp) + 1, position - cell


def _lerp(
    start: npt.NDArray[np.float32], stop: npt.NDArray[np.float32], at: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    value = stop - start
    value *= at
    value += start
    return value


def _changes(
    columns: npt.NDArray[np.float32],
    cell: npt.NDArray[np.intp],
    fraction: npt.NDArray[np.float32],
    threshold: np.float32,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where runs start and end: column and row, alternating, in the order of COCO's encoding.

    ``columns`` [S + 2, W'] is the probability at every framed cell row of every pixel column;
    ``cell`` and ``fraction`` [H'] are those of :func:`_sample_positions`.
    """
    # A stretch is the pixel rows between two neighbouring cell rows: [start, last].
    start = np.flatnonzero(np.diff(cell, prepend=-1))
    last = np.append(start[1:], len(cell))[: len(start)] - 1
    above, below = columns[cell[start]], columns[cell[start] + 1]  # [K, W']
    begins = _lerp(above, below, fraction[start, None])
    ends = _lerp(above, below, fraction[last, None])
    # A row for each pixel column: zero, both ends of every stretch in turn, zero.
    states = np.zeros((columns.shape[1], 2 * len(start) + 2), np.bool_)
    states[:, 1:-1:2] = (begins >= threshold).T
    states[:, 2:-1:2] = (ends >= threshold).T
    flat = states.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1])
    column, step = np.divmod(change, states.shape[1])
    stretch, within = np.divmod(step, 2)
    row = np.append(start, len(cell))[stretch]
    # Within a stretch: between the pixels where the line from begin to end crosses the threshold.
    inner = np.flatnonzero(within)
    at = stretch[inner], column[inner]
    begin, end = begins[at].astype(np.float64), ends[at].astype(np.float64)
    pixels = (last - start)[stretch[inner]]
    crossing = (threshold - begin) / (end - begin) * pixels
    # The first pixel of the new state: rising includes the threshold, falling excludes it.
    after = np.where(end > begin, np.ceil(crossing), np.floor(crossing) + 1)
    # NaN, where a probability is not finite, is taken for the lower bound.
    row[inner] += np.fmin(np.fmax(after, 1), pixels).astype(np.intp)
    return column, row
