"""Carafe and CarafeEncoded: dynamic sizes, gradients, an example by hand, NaN and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carafe_deploy.graph.onnx_export import export_operator_network
from carafe_deploy.operators import OPERATORS as SPECIFICATIONS
from carafe_deploy.ops import carafe, carafe_encoded
from tests.ops import faces
from tests.ops.cases import named

ENTRIES = ("carafe", "carafe_encoded")
OPERATORS = {"carafe": carafe, "carafe_encoded": carafe_encoded}
each_entry = pytest.mark.parametrize("entry", ENTRIES)


@each_entry
def test_dynamic_export_takes_other_sizes(entry: str, tmp_path: Path) -> None:
    attributes = {"kernel_size": 5, "group_size": 2, "scale_factor": 2}
    traced = named(entry, "four groups")
    features = traced.inputs[0]
    sizes = (torch.export.Dim("batch"), torch.export.Dim("height"), torch.export.Dim("width"))
    scale = 1 if entry == "carafe_encoded" else 2
    channels = 25 * 2 * (4 if entry == "carafe_encoded" else 1)
    path = tmp_path / "dynamic.onnx"
    export_operator_network(
        faces.Call(OPERATORS[entry], attributes),
        (features.repeat(2, 1, 1, 1), torch.zeros(2, channels, 5 * scale, 6 * scale)),
        path,
        dynamic_shapes=(
            (
                dict(zip((0, 2, 3), sizes, strict=True)),
                {0: sizes[0], 2: scale * sizes[1], 3: scale * sizes[2]},
            ),
        ),
    )
    generator = torch.Generator().manual_seed(0)
    for n, h, w in ((1, 1, 1), (3, 9, 4), (0, 2, 3)):
        x = torch.randn(n, 8, h, w, generator=generator)
        weights = torch.randn(n, channels, h * scale, w * scale, generator=generator)
        (out,) = faces.run_file(path, [x.numpy(), weights.numpy()])
        expected = faces.reference(entry, [x.double(), weights.double()], attributes)
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=1e-4)


# --- gradients -----------------------------------------------------------------------------------


@each_entry
@pytest.mark.parametrize(
    ("shape", "k", "groups", "s"),
    [
        pytest.param((2, 2, 2, 1), 3, 2, 2, id="groups and batch"),
        pytest.param((1, 2, 1, 2), 5, 1, 1, id="kernel larger than the map"),
        pytest.param((1, 2, 1, 2), 3, 1, 3, id="odd ratio"),
    ],
)
def test_gradcheck(
    entry: str, shape: tuple[int, int, int, int], k: int, groups: int, s: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    n, _, h, w = shape
    encoded = (n, s * s * groups * k * k, h, w)
    masks = (n, groups * k * k, h * s, w * s)
    inputs = [
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (shape, encoded if entry == "carafe_encoded" else masks)
    ]
    attributes = {"kernel_size": k, "group_size": groups, "scale_factor": s}
    assert torch.autograd.gradcheck(lambda *x: OPERATORS[entry](*x, **attributes), inputs)


@each_entry
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_types_are_summed_in_float32(entry: str, dtype: torch.dtype) -> None:
    case = named(entry, "four groups")
    inputs = tuple(tensor.requires_grad_() for tensor in case.arranged(dtype))
    wide = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    upstream = torch.randn(1, 8, 10, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    OPERATORS[entry](*inputs, **case.attributes).backward(upstream)
    OPERATORS[entry](*wide, **case.attributes).backward(upstream.double())
    for narrow, exact in zip(inputs, wide, strict=True):
        assert narrow.grad is not None
        assert narrow.grad.dtype == dtype
        assert exact.grad is not None
        faces.assert_right(entry, narrow.grad, (exact.grad.numpy(),), dtype)


# --- an example by hand --------------------------------------------------------------------------

# Features 1..9 on a 3x3 map, k = 3, s = 2, one channel. The output pixel (i, j) lies in a quarter
# of source pixel p = (i//2, j//2): towards the row above or below (i even or odd) and the column
# left or right (j even or odd). Its kernel weighs p by 1/2, the horizontal neighbour on that side
# by 1/4, the vertical by 1/8 and the diagonal by 1/8, and the other five taps by 0. So
#     8 * out(i, j) = 4*p + 2*horizontal + vertical + diagonal,   outside the map 0.
# For example 8*out(0, 0) = 4*1 = 4 (three neighbours outside), 8*out(1, 1) = 4*1 + 2*2 + 4 + 5 =
# 17, 8*out(2, 3) = 4*5 + 2*6 + 2 + 3 = 37, 8*out(5, 4) = 4*9 + 2*8 + 0 + 0 = 52.
HAND_FEATURES = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
HAND_EIGHTHS = [
    [4, 8, 10, 14, 16, 12],
    [8, 17, 19, 25, 27, 18],
    [17, 29, 31, 37, 39, 27],
    [23, 41, 43, 49, 51, 33],
    [32, 53, 55, 61, 63, 42],
    [28, 44, 46, 50, 52, 36],
]


def hand_masks() -> Tensor:
    """[1, 9, 6, 6]: tap (u, v) is channel 3*u + v, row u - 1 and column v - 1 from the pixel."""
    masks = torch.zeros(1, 9, 6, 6)
    for i in range(6):
        for j in range(6):
            u, v = 2 * (i % 2), 2 * (j % 2)
            masks[0, 3 * 1 + 1, i, j] = 1 / 2
            masks[0, 3 * 1 + v, i, j] = 1 / 4
            masks[0, 3 * u + 1, i, j] = 1 / 8
            masks[0, 3 * u + v, i, j] = 1 / 8
    return masks


HAND_ATTRIBUTES = {"kernel_size": 3, "group_size": 1, "scale_factor": 2}


@pytest.mark.parametrize("dtype", faces.dtypes("carafe"))
def test_hand_computed_example_is_exact(dtype: torch.dtype) -> None:
    features = torch.tensor(HAND_FEATURES, dtype=dtype).view(1, 1, 3, 3)
    out = carafe(features, hand_masks().to(dtype), **HAND_ATTRIBUTES)
    assert (out * 8).tolist() == [[HAND_EIGHTHS]]


def test_hand_computed_example_encoded() -> None:
    features = torch.tensor(HAND_FEATURES, dtype=torch.float64).view(1, 1, 3, 3)
    # Softmax of logarithms gives the weights back, that of -inf a weight of 0.
    encoded = torch.nn.functional.pixel_unshuffle(hand_masks().double().log(), 2)
    out = carafe_encoded(features, encoded, **HAND_ATTRIBUTES)
    np.testing.assert_allclose(out.numpy() * 8, [[HAND_EIGHTHS]], rtol=1e-14)


@each_entry
def test_hand_computed_example_function_body(entry: str) -> None:
    features = np.array([[HAND_FEATURES]], np.float32)
    weights = hand_masks()
    if entry == "carafe_encoded":
        weights = torch.nn.functional.pixel_unshuffle(weights.clamp(min=1e-30).log(), 2)
    expected = np.array([[HAND_EIGHTHS]], np.float32) / 8
    (out,) = faces.run_body(entry, HAND_ATTRIBUTES, [features, weights.numpy()])
    np.testing.assert_allclose(out, expected, rtol=1e-6)


# --- values that are not finite ------------------------------------------------------------------

ONE_TAP_ON = {"kernel_size": 3, "group_size": 1, "scale_factor": 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_reaches_its_window_only(value: float) -> None:
    features = torch.ones(1, 2, 5, 6)
    features[0, 1, 2, 3] = value
    out = carafe(features, torch.full((1, 9, 10, 12), 1 / 9), **ONE_TAP_ON)
    affected = ~out.isfinite()
    expected = torch.zeros_like(affected)
    expected[0, 1, 2 * 1 : 2 * 4, 2 * 2 : 2 * 5] = True  # source pixels within one row and column
    assert torch.equal(affected, expected)


def test_a_weight_of_zero_does_not_mask_a_nan_feature() -> None:
    features = torch.full((1, 1, 1, 1), torch.nan)
    assert carafe(features, torch.zeros(1, 9, 2, 2), **ONE_TAP_ON).isnan().all()


@each_entry
def test_a_nan_weight_spoils_its_own_pixel_only(entry: str) -> None:
    features = torch.ones(1, 2, 3, 3)
    if entry == "carafe":
        weights = torch.zeros(1, 9, 6, 6)
        weights[0, 4, 3, 2] = torch.nan
    else:
        weights = torch.zeros(1, 36, 3, 3)
        weights[0, 4 * 4 + 2, 1, 1] = torch.nan  # tap 4, quarter dy 1, dx 0 of source pixel (1, 1)
    out = OPERATORS[entry](features, weights, **ONE_TAP_ON)
    assert out.isnan().nonzero().tolist() == [[0, 0, 3, 2], [0, 1, 3, 2]]


def test_infinite_logits() -> None:
    features = torch.arange(9.0).view(1, 1, 3, 3)
    encoded = torch.zeros(1, 36, 3, 3).view(1, 9, 4, 3, 3)
    encoded[0, :, 0] = -torch.inf
    encoded[0, 4, 0] = 0.0  # first quarter: every other tap switched off
    encoded[0, 4, 1] = torch.inf  # second: inf - inf
    encoded[0, :, 2] = -torch.inf  # third: nothing left to normalise
    out = carafe_encoded(features, encoded.flatten(1, 2), **ONE_TAP_ON)
    assert torch.equal(out[..., ::2, ::2], features)
    assert out[..., ::2, 1::2].isnan().all()
    assert out[..., 1::2, ::2].isnan().all()
    assert out[..., 1::2, 1::2].isfinite().all()


# --- errors --------------------------------------------------------------------------------------

X = torch.zeros(1, 4, 3, 5)


def masks(channels: int = 9, n: int = 1, h: int = 6, w: int = 10) -> Tensor:
    return torch.zeros(n, channels, h, w)


CARAFE_ERRORS = [
    ((X, masks(), 4, 1, 2), "kernel_size is 4, expected an odd number of at least 1"),
    ((X, masks(), -1, 1, 2), "kernel_size is -1, expected an odd number of at least 1"),
    ((X, masks(), 3, 0, 2), "group_size is 0, scale_factor 2, expected at least 1 each"),
    ((X, masks(), 3, 1, 0), "group_size is 1, scale_factor 0, expected at least 1 each"),
    ((X[0], masks(), 3, 1, 2), "features has 3 and masks 4 dimensions, expected 4 each"),
    ((X, masks()[0], 3, 1, 2), "features has 4 and masks 3 dimensions, expected 4 each"),
    (
        (X, masks().half(), 3, 1, 2),
        "features is torch.float32 and masks torch.float16, expected one floating-point dtype",
    ),
    (
        (X.long(), masks().long(), 3, 1, 2),
        "features is torch.int64 and masks torch.int64, expected one floating-point dtype",
    ),
    (
        (X, masks().to("meta"), 3, 1, 2),
        "features is on cpu and masks on meta, expected one device",
    ),
    ((X, masks(27), 3, 3, 2), "features has 4 channels, not divisible by group_size = 3"),
    ((X, masks(24), 5, 1, 2), r"masks has 24 channels, expected group_size\*kernel_size\*\*2 = 25"),
    (
        (X, masks(n=2), 3, 1, 2),
        r"masks has batch, height and width \(2, 6, 10\), expected \(1, 6, 10\) for features "
        r"\(1, 4, 3, 5\) and scale_factor 2",
    ),
    ((X, masks(h=7), 3, 1, 2), r"height and width \(1, 7, 10\), expected \(1, 6, 10\)"),
    ((X, masks(w=9), 3, 1, 2), r"height and width \(1, 6, 9\), expected \(1, 6, 10\)"),
]
ENCODED_ERRORS = [
    ((X, masks(36, h=3, w=5), 2, 1, 2), "kernel_size is 2, expected an odd number"),
    (
        (X, masks(9, h=3, w=5), 3, 1, 2),
        r"encoded has 9 channels, expected scale_factor\*\*2\*group_size\*kernel_size\*\*2 = 36",
    ),
    ((X, masks(36), 3, 1, 2), r"encoded has batch, height and width \(1, 6, 10\), expected"),
    ((X, masks(36)[0], 3, 1, 2), "features has 4 and encoded 3 dimensions, expected 4 each"),
]


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [("carafe", *error) for error in CARAFE_ERRORS]
    + [("carafe_encoded", *error) for error in ENCODED_ERRORS],
)
def test_errors(entry: str, arguments: tuple[Any, ...], message: str) -> None:
    features, weights, k, groups, s = arguments
    with pytest.raises(ValueError, match=message):
        OPERATORS[entry](features, weights, kernel_size=k, group_size=groups, scale_factor=s)
    with pytest.raises(ValueError, match=message):
        SPECIFICATIONS[entry].implementation.reference(features, weights, k, groups, s)


@pytest.mark.parametrize(("arguments", "message"), [CARAFE_ERRORS[0], CARAFE_ERRORS[10]])
def test_errors_show_without_data_as_well(arguments: tuple[Any, ...], message: str) -> None:
    features, weights, *geometry = arguments
    with pytest.raises(ValueError, match=message):
        torch.ops.carafe.carafe(features.to("meta"), weights.to("meta"), *geometry)
