"""ONNX function bodies of Carafe and CarafeEncoded.

Reassembly is a product of every pixel's own k*k weights with its window of the map. Two ways:

- ``tiles``: neighbouring pixels share most of their windows. The map is cut into tiles with a
  margin of k//2, the weights of a tile's outputs are laid out over the tile and its margin, and
  the tile becomes one matrix product [outputs, tile and margin] x [tile and margin, C]. For k = 5
  and tiles of 4x4 that multiplies 2.6 times more than needed and copies the map 4 times instead
  of 25, all in ONNX Runtime's fastest kernel.
- ``taps``: all windows side by side, multiplied and summed. For a few channels the weights are
  larger than the map, and rearranging them for a matrix product costs more than it gains.

Figures for these and for what they replaced: benchmarks/results/function_bodies.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from carafe_deploy.operators.carafe import CARAFE, CARAFE_ENCODED
from carafe_deploy.ops.body_writer import FLOAT, BodyWriter

__all__ = [
    "VARIANTS",
    "Call",
    "assemble_tiles",
    "carafe_body",
    "choose_carafe_variant",
    "pixel_weights",
    "tap_positions",
]

#: Below or at this number of channels "taps" is quicker than "tiles".
_NARROW = 4


def choose_carafe_variant(channels: int | None) -> str:
    """Decomposition for a map of so many channels; None stands for a dynamic number."""
    return "taps" if channels is not None and channels <= _NARROW else "tiles"


def carafe_body(
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
    encoded: bool,
    opset: int,
    overload: str,
    variant: str,
) -> onnx.FunctionProto:
    """Function for ``Carafe(features, masks)`` or ``CarafeEncoded(features, encoded)``.

    Batch, channels, height and width are read from the inputs at run time and may be zero. The
    arithmetic is float32 whatever the inputs' type. With ``"tiles"`` a NaN or infinite feature
    makes NaN of all outputs of every tile that reads it, not only of those within k//2 of it.

    Args:
        kernel_size: odd side k of a reassembly kernel.
        group_size: number G of channel groups with kernels of their own.
        scale_factor: integer upsampling ratio s.
        encoded: for CarafeEncoded, which shuffles and normalises its second input.
        opset: version of the standard operators, 18 or later.
        overload: tells this function from others of the same name in a model.
        variant: a key of ``VARIANTS``, see :func:`choose_carafe_variant`.

    Returns:
        Function with inputs [N, C, H, W] and [N, G*k*k, s*H, s*W], or [N, s*s*G*k*k, H, W] when
        ``encoded``, and one output [N, C, s*H, s*W] of the features' type.

    Raises:
        ValueError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(VARIANTS)}")
    body = BodyWriter()
    weights = "encoded" if encoded else "masks"
    batch, channels, height, width = body.dims("features", 4)
    # A group reads no other group's channels or weights: treat it as an image of its own.
    images = body.Mul(
        body.Mul(batch, group_size),
        body.called_with(kernel_size=kernel_size, group_size=group_size, scale_factor=scale_factor),
    )
    call = Call(
        k=kernel_size, s=scale_factor, encoded=encoded, images=images,
        channels=body.Div(channels, group_size), height=height, width=width,
        pixels=body.Mul(height, width), weights=body.Cast(weights, to=FLOAT),
    )  # fmt: skip
    features = body.Cast("features", to=FLOAT)
    features = body.reshape(features, images, call.channels, height, width)
    result = VARIANTS[variant](body, call, features)
    sizes = body.Mul(height, scale_factor), body.Mul(width, scale_factor)
    result = body.reshape(result, batch, channels, *sizes)
    body.CastLike(result, "features", out="out")
    operator = CARAFE_ENCODED if encoded else CARAFE
    return body.function(operator, opset=opset, overload=overload)


@dataclass(frozen=True)
class Call:
    """Numbers known at export, and names of values known at run time.

    ``images`` counts the groups of all images, ``channels`` those of one group, ``pixels`` are H*W.
    ``weights`` is the second input in float32, of the operator's own shape.
    """

    k: int
    s: int
    encoded: bool
    images: str
    channels: str
    height: str
    width: str
    pixels: str
    weights: str


def assemble_tiles(
    body: BodyWriter, call: Call, features: str, tile: tuple[int, int] = (4, 4)
) -> str:
    """One matrix product a tile of so many rows and columns: [images, C/G, s*H, s*W]."""
    k, s, (rows, columns) = call.k, call.s, tile
    margin = k // 2
    window = (rows + k - 1, columns + k - 1)  # a tile and its margin
    down = body.Div(body.Add(call.height, rows - 1), rows)
    across = body.Div(body.Add(call.width, columns - 1), columns)
    tiles = body.Mul(down, across)
    bottom = body.Sub(body.Mul(down, rows), call.height)  # what the last row of tiles lacks
    right = body.Sub(body.Mul(across, columns), call.width)

    # Features, channels last so that the gather below copies whole pixels; behind the last one a
    # pixel of zeros, which windows see outside the map.
    pixels = body.Transpose(features, perm=[0, 2, 3, 1])
    pixels = body.reshape(pixels, call.images, call.pixels, call.channels)
    zeros = body.Expand(0.0, body.Concat(call.images, 1, call.channels, axis=0))
    pixels = body.Concat(pixels, zeros, axis=1)
    y = body.Mul(body.Unsqueeze(body.arange(down), [1, 2, 3]), rows)
    y = body.Add(y, _axis(-margin, window[0], 1))
    x = body.Mul(body.Unsqueeze(body.arange(across), [1, 2]), columns)
    x = body.Add(x, _axis(-margin, window[1]))
    where = body.Add(body.Mul(y, call.width), x)  # [down, across, *window]
    inside = body.And(_within(body, y, call.height), _within(body, x, call.width))
    where = body.Where(inside, where, call.pixels)
    where = body.reshape(where, tiles, window[0] * window[1])
    windows = body.Gather(pixels, where, axis=1)  # [images, tiles, window, C/G]

    # Weights, by tile; those of pixels that the last tiles lack repeat the border's, unused.
    where = body.reshape(body.arange(call.pixels), call.height, call.width)
    where = body.Pad(where, body.Concat([0, 0], bottom, right, axis=0), mode="edge")
    where = body.reshape(where, down, rows, across, columns)
    where = body.reshape(body.Transpose(where, perm=[0, 2, 1, 3]), tiles, rows * columns)
    weights = body.Gather(pixel_weights(body, call), where, axis=1)
    # A constant 0/1 matrix a pixel of the tile puts its k*k weights where they apply.
    placement = body.OneHot(
        tap_positions(tile, k), window[0] * window[1], np.array([0, 1], np.float32)
    )
    # Without images MatMul takes no other factor than one without images.
    some = body.Concat(body.Min(call.images, 1), [1, 1, 1, 1], axis=0)
    placement = body.Expand(placement, some)
    weights = body.MatMul(weights, placement)  # [images, tiles, tile, s*s, window]
    outputs = rows * columns * s * s
    weights = body.reshape(weights, call.images, tiles, outputs, window[0] * window[1])

    result = body.MatMul(weights, windows)  # [images, tiles, outputs, C/G]
    result = body.reshape(result, call.images, body.Mul(tiles, outputs), call.channels)
    # Number the outputs as the product has them, look the numbers up in the map's order.
    where = body.arange(body.Mul(tiles, outputs))
    where = body.reshape(where, down, across, rows, columns, s, s)
    where = body.Transpose(where, perm=[0, 2, 4, 1, 3, 5])
    where = body.reshape(where, body.Mul(down, rows * s), body.Mul(across, columns * s))
    size = body.Mul(body.Concat(call.height, call.width, axis=0), s)
    where = body.Slice(where, [0, 0], size)  # [s*H, s*W]
    name: str = body.Transpose(body.Gather(result, where, axis=1), perm=[0, 3, 1, 2])
    return name


def _axis(start: int, count: int, trailing: int = 0) -> np.ndarray:
    """So many numbers from ``start`` on along one axis, followed by axes of length 1."""
    return np.arange(start, start + count).reshape(count, *[1] * trailing)


def _within(body: BodyWriter, index: str, size: str) -> str:
    name: str = body.And(body.GreaterOrEqual(index, 0), body.Less(index, size))
    return name


def tap_positions(tile: tuple[int, int], k: int) -> np.ndarray:
    """[tile, k*k]: where in the flattened window a tap of a pixel of the tile lies."""
    y, x = np.mgrid[: tile[0], : tile[1]].reshape(2, -1, 1)
    u, v = np.mgrid[:k, :k].reshape(2, 1, -1)
    return (y + u) * (tile[1] + k - 1) + x + v


def pixel_weights(body: BodyWriter, call: Call) -> str:
    """All weights of a source pixel together: [images, H*W, s*s, k*k].

    In steps that move whole rows or one axis only, which ONNX Runtime does many times faster than
    a general transpose.
    """
    k, s, images, pixels = call.k, call.s, call.images, call.pixels
    if call.encoded:
        weights = body.reshape(call.weights, images, k * k, s * s, pixels)
        weights = body.Transpose(weights, perm=[0, 2, 1, 3])
        weights = body.reshape(weights, images, s * s * k * k, pixels)
        weights = body.Transpose(weights, perm=[0, 2, 1])
        weights = body.reshape(weights, images, pixels, s * s, k * k)
        name: str = body.Softmax(weights, axis=-1)
        return name
    weights = body.reshape(call.weights, images, k * k, body.Mul(pixels, s * s))
    weights = body.Transpose(weights, perm=[0, 2, 1])
    weights = body.reshape(weights, images, call.height, s, call.width, s * k * k)
    weights = body.Transpose(weights, perm=[0, 1, 3, 2, 4])
    return body.reshape(weights, images, pixels, s * s, k * k)


def assemble_taps(body: BodyWriter, call: Call, features: str) -> str:
    """Sum of weights times shifted maps: [images, C/G, H, s, W, s]."""
    k, s, images, channels = call.k, call.s, call.images, call.channels
    height, width, pixels = call.height, call.width, call.pixels
    size = body.Concat(height, width, axis=0)
    padded = body.Pad(features, [0, 0, k // 2, k // 2] * 2)
    shifted = []
    for u, v in np.ndindex(k, k):
        view = body.Slice(padded, [u, v], body.Add(size, [u, v]), [2, 3])
        shifted.append(body.Unsqueeze(view, 1))
    windows = body.Concat(*shifted, axis=1)  # [images, k*k, C/G, H, W]
    if not call.encoded:
        weights = body.reshape(call.weights, images, k * k, 1, height, s, width, s)
        products = body.Mul(body.Unsqueeze(windows, [4, 6]), weights)
        name: str = body.ReduceSum(products, 1, keepdims=0)  # [images, C/G, H, s, W, s]
        return name
    # Softmax by hand: ONNX Runtime's own transposes first when the axis is not the last, and the
    # division is cheaper after the sum.
    weights = body.reshape(call.weights, images, k * k, s * s, 1, pixels)
    weights = body.Exp(body.Sub(weights, body.ReduceMax(weights, 1)))
    windows = body.reshape(windows, images, k * k, 1, channels, pixels)
    result = body.ReduceSum(body.Mul(windows, weights), 1, keepdims=0)
    result = body.Div(result, body.ReduceSum(weights, 1, keepdims=0))  # [images, s*s, C/G, H*W]
    result = body.reshape(result, images, s, s, channels, height, width)
    name = body.Transpose(result, perm=[0, 3, 4, 1, 5, 2])  # [images, C/G, H, s, W, s]
    return name


#: How to get from the call and its features [images, C/G, H, W] in float32 to the result, whose
#: shape need not be the operator's as long as the order of elements is.
VARIANTS: dict[str, Callable[[BodyWriter, Call, str], str]] = {
    "tiles": assemble_tiles,
    "taps": assemble_taps,
}
