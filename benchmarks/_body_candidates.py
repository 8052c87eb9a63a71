"""Decompositions that lost against those in carafe_deploy/ops, kept to measure them again."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from carafe_deploy.operators.carafe import CARAFE
from carafe_deploy.operators.roi_align import MULTILEVEL_ROI_ALIGN
from carafe_deploy.ops._body_carafe import Call, pixel_weights, tap_positions
from carafe_deploy.ops.body_writer import FLOAT, INT64, BodyWriter

# --- Carafe --------------------------------------------------------------------------------------


def multiply_add(body: BodyWriter, call: Call, features: str) -> str:
    """k*k multiplications and additions over the whole result, phases as two broadcast axes."""
    k, s = call.k, call.s
    size = body.Concat(call.height, call.width, axis=0)
    padded = body.Pad(features, [0, 0, k // 2, k // 2] * 2)
    masks = body.reshape(call.weights, call.images, k * k, 1, call.height, s, call.width, s)
    result = ""
    for tap, mask in enumerate(body.Split(masks, axis=1, num_outputs=k * k, out=k * k)):
        corner = list(divmod(tap, k))
        view = body.Slice(padded, corner, body.Add(size, corner), [2, 3])
        product = body.Mul(body.Unsqueeze(view, [3, 5]), body.Squeeze(mask, 1))
        result = body.Add(result, product) if result else product
    return result  # [images, C/G, H, s, W, s]


def skewed_tiles(body: BodyWriter, call: Call, features: str) -> str:
    """Tiles of 4x4 whose weights are put in place by padding and reshaping.

    Taps padded to the window's size lie where the tile's first pixel wants them. Padding each
    pixel's row of weights by one, and each row of pixels by k - 1 more, shifts the next ones along
    in the flattened array; cutting off the end makes it rectangular again.
    """
    k, s, edge = call.k, call.s, 4
    side = edge + k - 1
    window = side * side
    windows, weights, tiles, where = _tiling(body, call, features, edge)
    count = body.Mul(call.images, tiles)
    weights = body.reshape(weights, body.Mul(count, edge * edge * s * s), k, k)
    weights = body.Pad(weights, [0, 0, 0, 0, edge - 1, edge - 1])
    weights = body.reshape(weights, body.Mul(count, edge * edge), s * s * window)
    weights = body.Pad(weights, [0, 0, 0, 1])
    weights = body.reshape(weights, body.Mul(count, edge), edge * (s * s * window + 1))
    weights = body.Pad(weights, [0, 0, 0, k - 1])
    weights = body.reshape(weights, count, edge * (edge * (s * s * window + 1) + k - 1))
    outputs = edge * edge * s * s
    weights = body.Slice(weights, [0], [outputs * window], [1])
    weights = body.reshape(weights, call.images, tiles, outputs, window)
    result = body.MatMul(weights, windows)
    result = body.reshape(result, call.images, body.Mul(tiles, outputs), call.channels)
    return body.Transpose(body.Gather(result, where, axis=1), perm=[0, 3, 1, 2])


def channels_first_tiles(body: BodyWriter, call: Call, features: str) -> str:
    """Tiles of 4x4 with the product's sides swapped, [C, window] x [window, outputs].

    The result needs no transpose of channels, but its rows are put together from pieces of 4*s.
    """
    k, s, edge = call.k, call.s, 4
    window = (edge + k - 1) ** 2
    windows, weights, tiles, _ = _tiling(body, call, features, edge)
    placement = body.OneHot(tap_positions((edge, edge), k), window, np.array([0, 1], np.float32))
    weights = body.MatMul(weights, placement)
    weights = body.reshape(weights, call.images, tiles, edge, edge, s, s * window)
    weights = body.Transpose(weights, perm=[0, 1, 2, 4, 3, 5])  # rows of the result together
    weights = body.reshape(weights, call.images, tiles, edge * edge * s * s, window)
    swap = [0, 1, 3, 2]  # merged into the product by ONNX Runtime
    result = body.MatMul(body.Transpose(windows, perm=swap), body.Transpose(weights, perm=swap))
    down, across = (body.Div(body.Add(n, edge - 1), edge) for n in (call.height, call.width))
    rows = edge * s
    result = body.reshape(result, call.images, down, across, call.channels, rows, rows)
    result = body.Transpose(result, perm=[0, 3, 1, 4, 2, 5])
    result = body.reshape(
        result, call.images, call.channels, body.Mul(down, rows), body.Mul(across, rows)
    )
    size = body.Mul(body.Concat(call.height, call.width, axis=0), s)
    return body.Slice(result, [0, 0], size, [2, 3])


def _tiling(body: BodyWriter, call: Call, features: str, edge: int) -> tuple[str, str, str, str]:
    """Square tiles as in the package: windows, weights, number of tiles, place of each output."""
    k, s = call.k, call.s
    margin, side = k // 2, edge + k - 1
    down, across = (body.Div(body.Add(n, edge - 1), edge) for n in (call.height, call.width))
    tiles = body.Mul(down, across)
    bottom = body.Sub(body.Mul(down, edge), call.height)
    right = body.Sub(body.Mul(across, edge), call.width)
    ends = body.Add(bottom, margin), body.Add(right, margin)
    padding = body.Concat([0, margin, margin, 0, 0], *ends, 0, axis=0)
    padded = body.Pad(body.Transpose(features, perm=[0, 2, 3, 1]), padding)
    _, high, wide = body.dims(padded, 3)
    padded = body.reshape(padded, call.images, body.Mul(high, wide), call.channels)
    inside = np.arange(side)
    y = body.Add(body.Mul(body.Unsqueeze(body.arange(down), [1, 2, 3]), edge), inside[:, None])
    x = body.Add(body.Mul(body.Unsqueeze(body.arange(across), [1, 2]), edge), inside)
    pixels = body.reshape(body.Add(body.Mul(y, wide), x), tiles, side * side)
    windows = body.Gather(padded, pixels, axis=1)
    pixels = body.reshape(body.arange(call.pixels), call.height, call.width)
    pixels = body.Pad(pixels, body.Concat([0, 0], bottom, right, axis=0), mode="edge")
    pixels = body.Transpose(body.reshape(pixels, down, edge, across, edge), perm=[0, 2, 1, 3])
    weights = pixel_weights(body, call)
    weights = body.Gather(weights, body.reshape(pixels, tiles, edge * edge), axis=1)
    where = body.arange(body.Mul(tiles, edge * edge * s * s))
    where = body.reshape(where, down, across, edge, edge, s, s)
    where = body.Transpose(where, perm=[0, 2, 4, 1, 3, 5])
    where = body.reshape(where, body.Mul(down, edge * s), body.Mul(across, edge * s))
    size = body.Mul(body.Concat(call.height, call.width, axis=0), s)
    return windows, weights, tiles, body.Slice(where, [0, 0], size)


def striped_tiles(body: BodyWriter, call: Call, features: str, edge: int = 4) -> str:
    """One row of square tiles at a time in a Scan, so that intermediates stay in the cache.

    With ``edge`` 1 it is the plain way: all windows of a row, one small product a pixel.
    """
    k, s = call.k, call.s
    margin, side = k // 2, edge + k - 1
    window, outputs = side * side, edge * edge * s * s
    down, across = (body.Div(body.Add(n, edge - 1), edge) for n in (call.height, call.width))
    bottom = body.Sub(body.Mul(down, edge), call.height)
    right = body.Sub(body.Mul(across, edge), call.width)
    ends = body.Add(bottom, margin), body.Add(right, margin)
    padding = body.Concat([0, margin, margin, 0, 0], *ends, 0, axis=0)
    padded = body.Pad(body.Transpose(features, perm=[0, 2, 3, 1]), padding)
    wide = body.dims(padded, 3)[2]
    inside = np.arange(side)
    x = body.Add(body.Mul(body.Unsqueeze(body.arange(across), [1, 2]), edge), inside)
    pixels = body.Add(body.Mul(inside[:, None], wide), x)  # [across, side, side]
    weights = body.reshape(
        pixel_weights(body, call), call.images, call.height, call.width, s * s * k * k
    )
    weights = body.Pad(weights, body.Concat([0] * 5, bottom, right, 0, axis=0))
    weights = body.reshape(weights, call.images, down, edge, across, edge * s * s * k * k)
    weights = body.Transpose(weights, perm=[1, 0, 3, 2, 4])
    weights = body.reshape(weights, down, call.images, across, edge * edge, s * s, k * k)
    place = tap_positions((edge, edge), k)
    where = body.reshape(body.arange(body.Mul(across, outputs)), across, edge, edge, s, s)
    where = body.Transpose(where, perm=[1, 3, 0, 2, 4])
    where = body.reshape(where, edge * s, body.Mul(across, edge * s))
    shared = {
        "s_padded": padded,
        "s_pixels": body.reshape(pixels, across, window),
        "s_place": body.OneHot(place, window, np.array([0, 1], np.float32)),
        "s_where": body.Slice(where, [0], body.Mul(call.width, s), [1]),
        "s_rows": body.Concat(call.images, body.Mul(wide, side), call.channels, axis=0),
        "s_split": body.Concat(call.images, across, outputs, window, axis=0),
        "s_flat": body.Concat(call.images, body.Mul(across, outputs), call.channels, axis=0),
    }
    stripe = _stripe(side, shared)
    starts = body.Unsqueeze(body.Mul(body.arange(down), edge), 1)
    result = body.Scan(starts, weights, body=stripe, num_scan_inputs=2, scan_output_axes=[2])
    rows, columns = body.Mul(down, edge * s), body.Mul(call.width, s)
    result = body.reshape(result, call.images, call.channels, rows, columns)
    return body.Slice(result, [0], body.Mul(call.height, s), [2])


def _stripe(side: int, shared: dict[str, str]) -> onnx.GraphProto:
    """One iteration: first padded row [1] and weights in, [images, C/G, edge*s, W*s] out."""
    body = BodyWriter()
    rows = body.Slice("s_padded", "s_start", body.Add("s_start", side), 1)
    windows = body.Gather(body.reshape(rows, "s_rows"), "s_pixels", axis=1)
    weights = body.reshape(body.MatMul("s_weights", "s_place"), "s_split")
    result = body.reshape(body.MatMul(weights, windows), "s_flat")
    body.Transpose(body.Gather(result, "s_where", axis=1), perm=[0, 3, 1, 2], out="s_out")
    inside = body.function(CARAFE, opset=18)  # for its nodes alone
    for node in inside.node:  # values of the surrounding function by its names, others made unique
        for names in (node.input, node.output):
            names[:] = [shared.get(n, n if n.startswith("s_") else f"s_{n}") for n in names]
    return helper.make_graph(
        inside.node,
        "stripe",
        [
            helper.make_tensor_value_info("s_start", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("s_weights", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("s_out", TensorProto.FLOAT, None)],
    )


# --- MultilevelRoiAlign --------------------------------------------------------------------------


def roi_align_sum(strides: tuple[int, ...], size: int, finest_scale: int) -> onnx.FunctionProto:
    """Every level pools all RoIs, those of other levels zeroed (no samples); the results add up."""
    return _roi_align(strides, size, finest_scale, scatter=False)


def roi_align_scatter(strides: tuple[int, ...], size: int, finest_scale: int) -> onnx.FunctionProto:
    """Every level pools its own RoIs and scatters them into the result."""
    return _roi_align(strides, size, finest_scale, scatter=True)


def _roi_align(
    strides: tuple[int, ...], size: int, finest_scale: int, *, scatter: bool
) -> onnx.FunctionProto:
    body = BodyWriter()
    features = [f"features{level}" for level in range(len(strides))]
    batch, count = body.dims("rois", 2)
    total, channels = body.Mul(batch, count), body.dims(features[0], 2)[1]
    rois = body.reshape("rois", total, 4)
    low, high = body.Split(rois, axis=1, num_outputs=2, out=2)
    scale = body.Sqrt(body.ReduceProd(body.Sub(high, low), 1))
    scale = body.Add(body.Div(scale, float(finest_scale)), 1e-6)
    powers = np.exp2(np.arange(1, len(strides))).astype(np.float32)
    levels = body.Cast(body.GreaterOrEqual(scale, powers), to=INT64)
    levels = body.ReduceSum(levels, 1)
    images = body.Unsqueeze(body.arange(batch), 1)
    images = body.reshape(body.Expand(images, body.Concat(batch, count, axis=0)), total)
    zeros = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    result = ""
    if scatter:
        result = body.ConstantOfShape(body.Concat(total, channels, size, size, axis=0), value=zeros)
    for level, (name, stride) in enumerate(zip(features, strides, strict=True)):
        own = body.Equal(levels, level)
        if scatter:
            index = body.Squeeze(body.NonZero(body.Squeeze(own, 1)), 0)
            inputs = body.Gather(rois, index), body.Gather(images, index)
        else:
            inputs = body.Where(own, rois, 0.0), images
        pooled = body.RoiAlign(
            body.Cast(name, to=FLOAT), *inputs, output_height=size, output_width=size,
            sampling_ratio=0, spatial_scale=1.0 / stride,
            coordinate_transformation_mode="half_pixel",
        )  # fmt: skip
        if scatter:
            result = body.ScatterND(result, body.Unsqueeze(index, 1), pooled)
        else:
            result = body.Add(result, pooled) if result else pooled
    result = body.reshape(result, batch, count, channels, size, size)
    body.CastLike(result, features[0], out="out")
    return body.function(MULTILEVEL_ROI_ALIGN, opset=18, tensors=1 + len(strides))
