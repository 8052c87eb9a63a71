"""Calls of the C interface with random shapes and strides, held against NumPy.

A program for :mod:`tests.fuzz._program`: library, seconds, first seed. Arrays lie between pages
that cannot be touched, at one end or the other, so that a stray access ends the process.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy import kernels as api

Array = npt.NDArray[Any]
Generator = np.random.Generator

#: What an array holds where nothing is to be read or written.
UNTOUCHED = 0xA5
FLOAT64, BFLOAT16 = api.DType.FLOAT64, api.DType.BFLOAT16
TYPES = {
    api.DType.FLOAT32: np.dtype("float32"),
    api.DType.FLOAT16: np.dtype("float16"),
    BFLOAT16: np.dtype("uint16"),
    FLOAT64: np.dtype("float64"),
}
#: Relative to the largest magnitude: results round to their type, sums run in another order.
TOLERANCES = {api.DType.FLOAT32: 2e-5, api.DType.FLOAT16: 4e-3, BFLOAT16: 3e-2, FLOAT64: 1e-12}


class Broken(Exception):
    """A wrong result."""


# --- memory --------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PAGE = mmap.PAGESIZE


class Guarded:
    """An array that begins or ends at a page which ends the process when it is touched."""

    def __init__(self, generator: Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = math.prod(shape) * dtype.itemsize
        inner = -(-max(size, 1) // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, inner + 2 * _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for page in (start, start + _PAGE + inner):
            assert _libc.mprotect(page, _PAGE, 0) == 0
        at_end = generator.random() < 0.7
        offset = _PAGE + (inner - size if at_end else 0)
        self.array: Array = np.frombuffer(
            self._map, dtype, count=math.prod(shape), offset=offset
        ).reshape(shape)
        self.array.view(np.uint8).reshape(-1)[:] = UNTOUCHED
        self.address = start + offset if size else 0


def stored(values: Array, dtype: Any) -> Array:
    """In the bits of a type."""
    if dtype != BFLOAT16:
        return values.astype(TYPES[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def numbers(values: Array, dtype: Any) -> Array:
    """As float64."""
    if dtype == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def given(
    generator: Generator, values: Array, dtype: Any, layout: Any, pitch: int
) -> tuple[Guarded, Array]:
    """A map [N, C, H, W] in memory, its padding channels left as they are; and its numbers."""
    bits = stored(values, dtype)
    batch, channels, height, width = values.shape
    if layout == api.Layout.NCHW:
        memory = Guarded(generator, values.shape, TYPES[dtype])
        memory.array[...] = bits
    else:
        memory = Guarded(generator, (batch, height, width, pitch or channels), TYPES[dtype])
        memory.array[..., :channels] = bits.transpose(0, 2, 3, 1)
    return memory, numbers(bits, dtype)


def room(
    generator: Generator, shape: tuple[int, ...], dtype: Any, layout: Any, pitch: int
) -> Guarded:
    batch, channels, height, width = shape
    if layout == api.Layout.NCHW:
        return Guarded(generator, shape, TYPES[dtype])
    return Guarded(generator, (batch, height, width, pitch or channels), TYPES[dtype])


def check_map(memory: Guarded, expected: Array, dtype: Any, layout: Any, what: str) -> None:
    found = numbers(memory.array, dtype)
    channels = expected.shape[1]
    if layout == api.Layout.NHWC:
        if np.any(found[..., channels:] != 0):
            raise Broken(f"{what}: padding channels are not zero")
        found = found[..., :channels].transpose(0, 3, 1, 2)
    limit = TOLERANCES[dtype] * max(1.0, float(np.abs(expected).max(initial=0.0)))
    error = float(np.abs(found - expected).max(initial=0.0))
    if not error <= limit:
        raise Broken(f"{what}: off by {error:g}, limit {limit:g}")


# --- what is right -------------------------------------------------------------------------------


def reassembled(features: Array, masks: Array, k: int, groups: int, s: int) -> Array:
    """README's formula, masks [N, groups*k*k, s*H, s*W]."""
    batch, channels, height, width = features.shape
    padded = np.pad(features, ((0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2))
    out = np.zeros((batch, channels, s * height, s * width))
    per_group = channels // groups
    for group, u, v in itertools.product(range(groups), range(k), range(k)):
        own = slice(group * per_group, (group + 1) * per_group)
        shifted = padded[:, own, u : u + height, v : v + width].repeat(s, axis=2).repeat(s, axis=3)
        out[:, own] += masks[:, [(group * k + u) * k + v]] * shifted
    return out


def weights_of(encoded: Array, k: int, groups: int, s: int) -> Array:
    """Pixel shuffle and softmax over the taps."""
    batch, _, height, width = encoded.shape
    parts = encoded.reshape(batch, groups, k * k, s, s, height, width)
    parts = np.exp(parts - parts.max(axis=2, keepdims=True))
    parts /= parts.sum(axis=2, keepdims=True)
    return parts.transpose(0, 1, 2, 5, 3, 6, 4).reshape(
        batch, groups * k * k, s * height, s * width
    )


def axis_weights(low: Any, high: Any, stride: int, side: int, bins: int, ratio: int) -> Array:
    """[bins, side]: share of every pixel in each bin's mean, as torchvision places samples."""
    f = np.float32
    scale = f(1) / f(stride)
    start = f(low) * scale - f(0.5)
    size = (f(high) * scale - f(0.5) - start) / f(bins)
    samples = f(ratio) if ratio else np.ceil(size)
    weights = np.zeros((bins, side))
    for bin_, index in itertools.product(range(bins), range(max(int(samples), 0))):
        at = start + f(bin_) * size + (f(index) + f(0.5)) * size / samples
        if not -1 <= at <= side or side == 0:
            continue
        at = max(at, f(0))
        first = min(int(at), side - 1)
        second = min(first + 1, side - 1)
        share = 0.0 if first >= side - 1 else float(at - f(first))
        weights[bin_, first] += (1 - share) / samples
        weights[bin_, second] += share / samples
    return weights


def decoded(boxes: Array, deltas: Array, normalization: Array, size: Array) -> Array:
    """mmdetection's DeltaXYWHBBoxCoder: boxes and deltas [..., 4], clipped to height and width."""
    deltas = deltas * normalization[1] + normalization[0]
    extent = boxes[..., 2:] - boxes[..., :2]
    center = (boxes[..., :2] + boxes[..., 2:]) / 2 + extent * deltas[..., :2]
    most = math.log(1000 / 16)
    half = extent * np.exp(np.clip(deltas[..., 2:], -most, most)) / 2
    corners = np.concatenate((center - half, center + half), axis=-1)
    return np.clip(corners, 0, np.array([size[1], size[0]] * 2, np.float64))


def suppressed(boxes: Array, scores: Array, iou: Any, least: Any, most: int) -> list[int]:
    """Of one image: boxes [L, M, 4], scores [L, M], all in float32."""
    labels, candidates = scores.shape
    kept: list[tuple[float, int]] = []
    for label in range(labels):
        own: list[int] = []
        order = sorted(
            (i for i in range(candidates) if scores[label, i] > least),
            key=lambda i: (-scores[label, i], i),
        )
        for i in order:
            if len(own) == most:
                break
            if not any(exceeds(boxes[label, j], boxes[label, i], iou) for j in own):
                own.append(i)
                kept.append((-float(scores[label, i]), label * candidates + i))
    return [index for _, index in sorted(kept)[:most]]


def exceeds(kept: Array, other: Array, iou: Any) -> bool:
    sides = np.minimum(kept[2:], other[2:]) - np.maximum(kept[:2], other[:2])
    width, height = np.maximum(sides, np.float32(0))
    overlap = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (kept, other)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return bool(overlap / (areas[0] + areas[1] - overlap) > iou)


# --- calls ---------------------------------------------------------------------------------------


def pick(generator: Generator, *values: int) -> int:
    return int(generator.choice(values))


def pitch_of(generator: Generator, channels: int) -> int:
    """Packed, said or not, or with room behind the channels."""
    return pick(generator, 0, channels, channels + 1, channels + int(generator.integers(1, 20)))


def call_carafe(library: Any, g: Generator) -> str:
    dtype = api.DType(pick(g, *TYPES))
    layout, encoded = api.Layout(pick(g, 0, 1)), bool(pick(g, 0, 1))
    batch, groups = pick(g, 0, 1, 1, 2), pick(g, 1, 1, 2, 3)
    channels = groups * pick(g, 0, 1, 2, 3, 5, 8, 17)
    height, width = pick(g, 0, 1, 2, 5, 9), pick(g, 0, 1, 3, 7, 16, 33)
    k, s = pick(g, 1, 3, 5, 7), pick(g, 1, 2, 2, 3, 4)
    mask_channels = groups * k * k * (s * s if encoded else 1)
    side = 1 if encoded else s
    pitches = [pitch_of(g, each) for each in (channels, mask_channels, channels)]
    features, x = given(
        g, g.standard_normal((batch, channels, height, width)), dtype, layout, pitches[0]
    )
    masks, weights = given(
        g,
        g.standard_normal((batch, mask_channels, side * height, side * width)),
        dtype,
        layout,
        pitches[1],
    )
    shape = (batch, channels, s * height, s * width)
    out = room(g, shape, dtype, layout, pitches[2])
    if encoded and batch and height and width:
        weights = weights_of(weights, k, groups, s)
    params = api.CarafeParams(
        dtype=dtype, layout=layout, source=int(encoded), batch=batch, channels=channels,
        height=height, width=width, kernel_size=k, groups=groups, scale=s,
        feature_pitch=pitches[0], mask_pitch=pitches[1], out_pitch=pitches[2],
    )  # fmt: skip
    library.carafe(
        params, features.address, masks.address, out.address, threads=pick(g, 0, 1, 2, 5)
    )
    if out.array.size:
        expected = np.zeros(shape)
        if channels:
            expected = reassembled(x, weights, k, groups, s)
        check_map(out, expected, dtype, layout, f"carafe {list(shape)}, k {k}, {dtype.name}")
    return "carafe right"


def call_roi_align(library: Any, g: Generator) -> str:
    dtype = api.DType(pick(g, api.DType.FLOAT32, api.DType.FLOAT16, BFLOAT16))
    layout = api.Layout(pick(g, 0, 1))
    batch, count, channels = pick(g, 0, 1, 1, 2), pick(g, 0, 1, 3, 9), pick(g, 0, 1, 3, 8, 17)
    levels, bins, ratio = pick(g, 1, 2, 4), pick(g, 1, 2, 5, 7), pick(g, 0, 0, 1, 2, 3)
    strides = [4 << level for level in range(levels)]
    sizes = [(pick(g, 0, 1, 2, 13), pick(g, 0, 1, 3, 20)) for _ in strides]
    feature_pitch, out_pitch = (max(pitch_of(g, channels), channels) for _ in range(2))
    maps = [
        given(g, g.standard_normal((batch, channels, *size)), dtype, layout, feature_pitch)
        for size in sizes
    ]
    rois = Guarded(g, (batch, count, 4), np.dtype("float32"))
    corners = g.uniform(-30, 120, (batch, count, 2))
    rois.array[..., :2] = corners
    rois.array[..., 2:] = corners + g.uniform(-10, 150, (batch, count, 2))
    if count and batch and pick(g, 0, 0, 1):
        rois.array[0, 0] = g.choice([np.nan, np.inf, -np.inf, 1e30, 0.0], 4)
    shape = (batch * count, channels, bins, bins)
    out = room(g, shape, dtype, layout, out_pitch)
    finest = pick(g, 8, 56)
    params = api.RoiAlignParams(
        dtype=dtype, layout=layout, batch=batch, rois=count, channels=channels, levels=levels,
        output_size=bins, sampling_ratio=ratio, finest_scale=finest,
        heights=tuple(h for h, _ in sizes), widths=tuple(w for _, w in sizes),
        strides=tuple(strides), feature_pitch=feature_pitch, out_pitch=out_pitch,
    )  # fmt: skip
    addresses = [memory.address for memory, _ in maps]
    library.multilevel_roi_align(
        params, rois.address, addresses, out.address, threads=pick(g, 0, 1, 3)
    )
    if not out.array.size:
        return "roi_align right"
    expected = np.zeros(shape)
    f = np.float32
    for row, roi in enumerate(rois.array.reshape(-1, 4)):
        if not np.isfinite(roi).all() or np.abs(roi).max() > 1e6:
            expected[row] = np.nan  # what is right there, test_not_finite.py knows
            continue
        with np.errstate(invalid="ignore"):
            scale = np.sqrt((roi[2] - roi[0]) * (roi[3] - roi[1])) / f(finest) + f(1e-6)
        level = max((n for n in range(1, levels) if scale >= f(2**n)), default=0)
        height, width = sizes[level]
        rows = axis_weights(roi[1], roi[3], strides[level], height, bins, ratio)
        columns = axis_weights(roi[0], roi[2], strides[level], width, bins, ratio)
        image = maps[level][1][row // count]
        expected[row] = np.einsum("bh,chw,dw->cbd", rows, image, columns)
    known = np.isfinite(expected).reshape(len(expected), -1).all(axis=1)
    out.array = out.array[known]
    text = f"roi_align {list(shape)}, {sizes}, ratio {ratio}, {dtype.name}"
    check_map(out, expected[known], dtype, layout, text)
    return "roi_align right"


def constants(g: Generator, *shapes: tuple[int, ...]) -> list[Guarded]:
    """float32 arrays: image sizes [B, 2], the normalisation of deltas [2, 4], boxes [..., 4]."""
    found = []
    for shape in shapes:
        memory = Guarded(g, shape, np.dtype("float32"))
        if shape == (2, 4):
            memory.array[...] = [[0, 0.1, 0, -0.1], [0.1, 0.2, 0.3, 0.4]]
        elif shape[-1] == 4:
            low = g.uniform(-20, 60, (*shape[:-1], 2))
            memory.array[..., :2], memory.array[..., 2:] = low, low + g.uniform(1, 40, low.shape)
        else:
            memory.array[...] = g.integers(20, 90, shape)
        found.append(memory)
    return found


def check_candidates(boxes: Guarded, scores: Guarded, expected: tuple[Array, Array]) -> None:
    for memory, wanted, limit in zip((boxes, scores), expected, (1e-2, 1e-4), strict=True):
        unknown = np.isneginf(wanted)
        if np.any(np.isneginf(memory.array) != unknown):
            raise Broken("candidates: others are left out")
        known = ~unknown
        error = np.abs(memory.array[known] - wanted[known]).max(initial=0.0)
        if not error <= limit:
            raise Broken(f"candidates {list(wanted.shape)}: off by {error:g}, limit {limit:g}")


def call_rpn_candidates(library: Any, g: Generator) -> str:
    dtype = api.DType(pick(g, api.DType.FLOAT32, api.DType.FLOAT16, BFLOAT16))
    layout = api.Layout(pick(g, 0, 1))
    batch, levels, anchors, count = pick(g, 0, 1, 3), pick(g, 1, 2, 3), pick(g, 1, 3), pick(g, 1, 9)
    sizes = [(pick(g, 1, 2, 9), pick(g, 1, 3, 12)) for _ in range(levels)]
    pitches = [max(pitch_of(g, each), each) for each in (anchors, 4 * anchors)]
    image_sizes, bases, normalization = constants(g, (batch, 2), (levels, anchors, 4), (2, 4))
    maps = [
        given(g, g.standard_normal((batch, per * anchors, *size)), dtype, layout, pitch)
        for per, pitch in zip((1, 4), pitches, strict=True)
        for size in sizes
    ]
    boxes = Guarded(g, (batch, levels, count, 4), np.dtype("float32"))
    scores = Guarded(g, (batch, levels, count), np.dtype("float32"))
    params = api.RpnCandidatesParams(
        dtype=dtype, layout=layout, batch=batch, levels=levels, anchors=anchors, candidates=count,
        heights=tuple(h for h, _ in sizes), widths=tuple(w for _, w in sizes),
        strides=tuple(4 << level for level in range(levels)),
        logit_pitch=pitches[0], delta_pitch=pitches[1], min_size=-1.0,
    )  # fmt: skip
    library.rpn_candidates(
        params, image_sizes.address, bases.address, normalization.address,
        [memory.address for memory, _ in maps], boxes.address, scores.address,
        threads=pick(g, 0, 1, 3),
    )  # fmt: skip
    expected = np.zeros(boxes.array.shape), np.full(scores.array.shape, -np.inf)
    for image, level in itertools.product(range(batch), range(levels)):
        height, width = sizes[level]
        logits = maps[level][1][image].transpose(1, 2, 0).reshape(-1)
        deltas = maps[levels + level][1][image].reshape(anchors, 4, height, width)
        deltas = deltas.transpose(2, 3, 0, 1).reshape(-1, 4)
        y, x = np.mgrid[:height, :width] * (4 << level)
        shifts = np.stack((x, y, x, y), axis=-1)[:, :, None] + bases.array[level]
        best = np.lexsort((np.arange(len(logits)), -logits))[:count]
        found = decoded(
            shifts.reshape(-1, 4)[best],
            deltas[best],
            normalization.array.astype(np.float64),
            image_sizes.array[image],
        )
        expected[0][image, level, : len(best)] = found
        expected[1][image, level, : len(best)] = logits[best]
    check_candidates(boxes, scores, expected)
    return "rpn_candidates right"


def call_box_candidates(library: Any, g: Generator) -> str:
    dtype = api.DType(pick(g, api.DType.FLOAT32, api.DType.FLOAT16, BFLOAT16))
    batch, count, classes = pick(g, 0, 1, 3), pick(g, 0, 1, 7, 70), pick(g, 0, 1, 3, 20)
    image_sizes, proposals, normalization = constants(g, (batch, 2), (batch, count, 4), (2, 4))
    logits, deltas = (
        Guarded(g, (batch, count, size), TYPES[dtype]) for size in (classes + 1, 4 * classes)
    )
    for memory in (logits, deltas):
        memory.array[...] = stored(g.standard_normal(memory.array.shape), dtype)
    numbers_given = Guarded(g, (batch, 1), np.dtype("int32"))
    numbers_given.array[...] = g.integers(0, count + 1, (batch, 1))
    boxes = Guarded(g, (batch, classes, count, 4), np.dtype("float32"))
    scores = Guarded(g, (batch, classes, count), np.dtype("float32"))
    params = api.BoxCandidatesParams(dtype=dtype, batch=batch, proposals=count, classes=classes)
    inputs = logits, deltas, proposals, numbers_given, image_sizes, normalization
    library.box_candidates(
        params,
        *(memory.address for memory in (*inputs, boxes, scores)),
        threads=pick(g, 0, 1, 3),
    )
    expected = np.zeros(boxes.array.shape), np.full(scores.array.shape, -np.inf)
    for image in range(batch):
        valid = int(numbers_given.array[image, 0])
        shares = np.exp(numbers(logits.array[image, :valid], dtype))
        shares /= shares.sum(axis=-1, keepdims=True)
        found = decoded(
            proposals.array[image, :valid, None].astype(np.float64),
            numbers(deltas.array[image, :valid], dtype).reshape(valid, classes, 4),
            normalization.array.astype(np.float64),
            image_sizes.array[image],
        )
        expected[0][image, :, :valid] = found.transpose(1, 0, 2)
        expected[1][image, :, :valid] = shares[:, :classes].T
    check_candidates(boxes, scores, expected)
    return "box_candidates right"


def call_nms(library: Any, g: Generator) -> str:
    batch, labels = pick(g, 0, 1, 1, 3), pick(g, 0, 1, 2, 5)
    candidates, most = pick(g, 0, 1, 7, 40, 70), pick(g, 1, 3, 50, 400)
    boxes = Guarded(g, (batch, labels, candidates, 4), np.dtype("float32"))
    scores = Guarded(g, (batch, labels, candidates), np.dtype("float32"))
    corners = g.integers(0, 30, (batch, labels, candidates, 2))
    boxes.array[..., :2] = corners
    boxes.array[..., 2:] = corners + g.integers(-1, 20, corners.shape)
    scores.array[...] = g.integers(-2, 20, scores.array.shape) / 10
    scores.array[g.random(scores.array.shape) < 0.1] = -np.inf
    counts = Guarded(g, (batch, 1), np.dtype("int32"))
    indices = Guarded(g, (batch, most), np.dtype("int64"))
    iou, least = np.float32(g.choice([0.0, 0.3, 0.5, 1.0])), np.float32(g.choice([-0.1, 0.3]))
    params = api.NmsParams(
        batch=batch, labels=labels, candidates=candidates, max_output=most,
        iou_threshold=iou, score_threshold=least,
    )  # fmt: skip
    library.batched_nms(
        params, boxes.address, scores.address, counts.address, indices.address,
        threads=pick(g, 0, 1, 3),
    )  # fmt: skip
    for image in range(batch):
        expected = suppressed(boxes.array[image], scores.array[image], iou, least, most)
        found = indices.array[image].tolist()
        padded = expected + [-1] * (most - len(expected))
        if counts.array[image, 0] != len(expected) or found != padded:
            raise Broken(f"nms {batch}, {labels}, {candidates}, most {most}: image {image}")
    return "nms right"


def taps(source: int, result: int, is_row: bool) -> tuple[Array, Array, Array, Array]:
    """Two source pixels of each result pixel along an axis, and their weights of 11 bits."""
    position = ((np.arange(result) + 0.5) * (source / result) - 0.5).astype(np.float32)
    index = np.floor(position).astype(np.int64)
    fraction = position - np.floor(position)
    if not is_row:
        fraction[(index < 0) | (index >= source - 1)] = 0
        index = index.clip(0, source - 1)
    weights = np.rint((1 - fraction) * 2048), np.rint(fraction * 2048)
    first, second = (weight.astype(np.int64) for weight in weights)
    return index.clip(0, source - 1), (index + 1).clip(0, source - 1), first, second


def call_preprocess(library: Any, g: Generator) -> str:
    source, size, padding = ((pick(g, 1, 2, 5, 40), pick(g, 1, 3, 17, 64)) for _ in range(3))
    padded = size[0] + padding[0] - 1, size[1] + padding[1] - 1
    raw, layout = bool(pick(g, 0, 1)), api.Layout(pick(g, 0, 1))
    layout = api.Layout.NHWC if raw else layout
    dtype = api.DType(pick(g, 0, 1, 2))
    order = 0 if raw else pick(g, 0, 1)
    image = Guarded(g, (*source, 3), np.dtype("uint8"))
    image.array[...] = g.integers(0, 256, image.array.shape)
    table = Guarded(g, (3, 256), np.dtype("float32"))
    table.array[...] = g.normal(size=(3, 256))
    shape = (*padded, 3) if layout == api.Layout.NHWC else (3, *padded)
    out = Guarded(g, shape, np.dtype("uint8") if raw else TYPES[dtype])
    params = api.PreprocessParams(
        dtype=dtype, layout=layout, raw=int(raw), reversed=order,
        source_height=source[0], source_width=source[1], height=size[0], width=size[1],
        padded_height=padded[0], padded_width=padded[1],
    )  # fmt: skip
    table_address = 0 if raw else table.address
    threads = pick(g, 0, 1, 3)
    library.preprocess(params, image.address, table_address, out.address, threads=threads)
    x0, x1, a0, a1 = taps(source[1], size[1], is_row=False)
    y0, y1, b0, b1 = taps(source[0], size[0], is_row=True)
    pixels = image.array.astype(np.int64)
    across = (pixels[:, x0] * a0[:, None] + pixels[:, x1] * a1[:, None]) >> 4
    b0, b1 = b0[:, None, None], b1[:, None, None]
    resized = ((b0 * across[y0] >> 16) + (b1 * across[y1] >> 16) + 2 >> 2).clip(0, 255)
    expected: Array = np.zeros((*padded, 3), out.array.dtype)
    if raw:
        expected[: size[0], : size[1]] = resized
    else:
        planes = resized[..., ::-1] if order else resized
        values = np.stack([table.array[channel][planes[..., channel]] for channel in range(3)], 2)
        expected[: size[0], : size[1]] = stored(values, dtype)
    if layout == api.Layout.NCHW:
        expected = expected.transpose(2, 0, 1)
    if not np.array_equal(out.array.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8)):
        raise Broken(f"preprocess {source} to {size}, {padded}, {dtype!r}, {layout!r}, raw {raw}")
    return "preprocess right"


def counts_of(text: bytes) -> list[int]:
    """Lengths of runs that COCO's encoding holds."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value = shift = 0
        more = True
        while more:
            bits = text[at] - 48
            value |= (bits & 0x1F) << shift
            shift, at, more = shift + 5, at + 1, bool(bits & 0x20)
            if not more and bits & 0x10:
                value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def call_masks(library: Any, g: Generator) -> str:
    count, cells = pick(g, 0, 1, 3), pick(g, 1, 2, 28)
    height, width = pick(g, 0, 1, 7, 50), pick(g, 0, 1, 9, 60)
    probabilities = Guarded(g, (count, cells, cells), np.dtype("float32"))
    probabilities.array[...] = g.choice(
        [0, 0.3, 0.5, 1, np.nan, np.inf], size=(count, cells, cells)
    )
    boxes = Guarded(g, (count, 4), np.dtype("float32"))
    wild = g.choice([-3e38, -1e9, -20.5, 0, 3, 30.25, 1e9, 3e38, np.inf, np.nan], size=(count, 4))
    tame = np.sort(g.uniform(-30, 90, (count, 2, 2)), axis=1).reshape(count, 4)
    boxes.array[...] = wild if pick(g, 0, 1) else tame
    params = api.PasteParams(
        masks=count, cells=cells, height=height, width=width,
        threshold=float(g.choice([1e-9, 0.3, 0.5, 0.9, 1e300])),
    )  # fmt: skip
    offsets = Guarded(g, (count + 1,), np.dtype("int64"))
    room_for = pick(g, 0, 1, 20)
    for _ in range(2):  # with any room, and with what it takes
        text = Guarded(g, (room_for,), np.dtype("uint8"))
        addresses = probabilities.address, boxes.address, text.address
        library.paste_masks(params, *addresses, room_for, offsets.address)
        room_for = int(offsets.array[-1])
    places = offsets.array.tolist()
    for begin, end in itertools.pairwise(places):
        lengths = counts_of(text.array[begin:end].tobytes())
        if sum(lengths) != height * width or any(length < 1 for length in lengths[1:]):
            raise Broken(f"masks {count}, {cells}, {height}x{width}: runs {lengths}")
    return "masks right"


#: What an attacker puts into a field of 32 bits.
NASTY = (0, 1, 2, 3, 7, 64, 46341, 65536, 1 << 29, 2**31 - 2, 2**31 - 1, -1, -(2**31))


#: Parameters, function, and how many addresses it takes, the stream among them.
FUNCTIONS = (
    (api.CarafeParams, "carafe_forward", 4),
    (api.RpnCandidatesParams, "carafe_rpn_candidates", 7),
    (api.BoxCandidatesParams, "carafe_box_candidates", 9),
    (api.RoiAlignParams, "carafe_multilevel_roi_align", 4),
    (api.NmsParams, "carafe_batched_nms", 6),
    (api.PreprocessParams, "carafe_preprocess", 4),
)


def call_with_nothing(library: Any, g: Generator) -> str:
    """Any parameters, no addresses: refused, or right since there is nothing to do."""
    kind, function, addresses = FUNCTIONS[pick(g, *range(len(FUNCTIONS)))]
    params = kind()
    for name, field in kind._fields_:
        if field is ctypes.c_float:
            setattr(params, name, float(g.choice([0.0, 0.5, -1.0, np.nan, np.inf])))
        elif field is ctypes.c_int32:
            usual = pick(g, 0, 1, 1, 2, 3)
            setattr(params, name, usual if g.random() < 0.6 else pick(g, *NASTY))
        else:
            setattr(params, name, field(*(pick(g, *NASTY) for _ in range(field._length_))))
    raw = library._library
    if kind is api.NmsParams:
        raw.carafe_batched_nms_workspace.restype = ctypes.c_int64
        if raw.carafe_batched_nms_workspace(ctypes.byref(params)) < -1:
            raise Broken("a workspace of fewer bytes than none")
    threads = pick(g, 0, 1, -1, 2**31 - 1)
    status = getattr(raw, function)(ctypes.byref(params), 0, *[None] * addresses, threads)
    if status not in (0, 1):
        raise Broken(f"{function}: status {status}")
    if status == 1 and not raw.carafe_last_error():
        raise Broken(f"{function}: refused without a word")
    return "refused" if status else "nothing to do"


CALLS: tuple[Callable[[Any, Generator], str], ...] = (
    call_carafe,
    call_carafe,
    call_roi_align,
    call_rpn_candidates,
    call_box_candidates,
    call_nms,
    call_preprocess,
    call_masks,
    call_with_nothing,
)


def main(path: str, seconds: str, seed: str) -> None:
    library = api.KernelLibrary(path)
    end = time.monotonic() + float(seconds)
    for number in itertools.count(int(seed)):
        print("case", number, flush=True)
        generator = np.random.default_rng(number)
        try:
            print("outcome 1", CALLS[pick(generator, *range(len(CALLS)))](library, generator))
        except Broken as broken:
            print("broken", broken)
        except ValueError as error:
            print("broken", "refused:", error)
        if time.monotonic() >= end:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
