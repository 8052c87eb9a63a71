"""Bodies of Carafe and CarafeEncoded: valid ONNX, in ONNX Runtime equal to float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from carafe_deploy.ops._body_carafe import (
    VARIANTS,
    assemble_tiles,
    carafe_body,
    choose_carafe_variant,
)
from carafe_deploy.ops.carafe import carafe_encoded_reference, carafe_reference
from tests.ops.one_node import (
    OPSETS,
    Array,
    infer_checked,
    intermediates,
    normal,
    one_node_model,
    run,
    run_in_type,
    session,
    set_input_shapes,
)


def _carafe(
    k: int, groups: int, s: int, *, encoded: bool, variant: str, opset: int = 18
) -> onnx.ModelProto:
    body = carafe_body(
        kernel_size=k,
        group_size=groups,
        scale_factor=s,
        encoded=encoded,
        opset=opset,
        overload=f"k{k}_g{groups}_s{s}",
        variant=variant,
    )
    attributes = {"kernel_size": k, "group_size": groups, "scale_factor": s}
    return one_node_model(body, [["n", "c", "h", "w"], ["n", "m", "mh", "mw"]], attributes)


def _weights(n: int, h: int, w: int, k: int, groups: int, s: int, encoded: bool) -> Array:
    channels = groups * k * k
    if encoded:
        return 3 * normal(n, channels * s * s, h, w, seed=1)
    return normal(n, channels, h * s, w * s, seed=1)


def _expected(features: Array, weights: Array, k: int, groups: int, s: int, encoded: bool) -> Array:
    reference = carafe_encoded_reference if encoded else carafe_reference
    doubles = torch.from_numpy(features).double(), torch.from_numpy(weights).double()
    return reference(*doubles, k, groups, s).numpy()


CARAFE_CASES = {
    # name: (N, C, H, W, k, G, s)
    "the detectors' own": (1, 8, 16, 24, 5, 1, 2),
    "one pixel": (1, 3, 1, 1, 5, 1, 2),
    "one pixel, scale 3": (2, 4, 1, 1, 3, 2, 3),
    "kernel larger than the map": (1, 4, 3, 2, 7, 1, 2),
    "one row": (1, 2, 1, 19, 5, 1, 2),
    "one column": (1, 2, 19, 1, 3, 1, 2),
    "part of a tile at both ends": (2, 8, 9, 13, 5, 1, 2),
    "two groups": (1, 6, 5, 7, 5, 2, 2),
    "four groups, batch of two": (2, 8, 6, 5, 3, 4, 2),
    "a group a channel": (1, 4, 4, 4, 3, 4, 1),
    "no upsampling": (1, 5, 7, 6, 7, 1, 1),
    "scale 3": (1, 4, 5, 6, 5, 1, 3),
    "scale 4": (2, 4, 5, 3, 3, 2, 4),
    "kernel of one tap": (1, 3, 5, 5, 1, 1, 2),
    "one channel, many maps": (9, 1, 14, 14, 5, 1, 2),
}


@pytest.mark.parametrize("encoded", [False, True], ids=["masks", "encoded"])
@pytest.mark.parametrize("variant", ["tiles", "taps"])
@pytest.mark.parametrize("case", CARAFE_CASES.values(), ids=CARAFE_CASES)
def test_equals_reference(
    case: tuple[int, int, int, int, int, int, int], variant: str, encoded: bool
) -> None:
    n, c, h, w, k, groups, s = case
    features, weights = normal(n, c, h, w), _weights(n, h, w, k, groups, s, encoded)
    model = _carafe(k, groups, s, encoded=encoded, variant=variant)
    (found,) = run(model, features, weights)
    expected = _expected(features, weights, k, groups, s, encoded)
    # Sums of up to 49 products of order one, in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile", [(1, 1), (1, 8), (2, 4), (3, 5)])
def test_tiles_of_any_size_give_the_same(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "other tiles", partial(assemble_tiles, tile=tile))
    features, masks = normal(1, 4, 9, 13), _weights(1, 9, 13, 5, 1, 2, encoded=False)
    (found,) = run(_carafe(5, 1, 2, encoded=False, variant="other tiles"), features, masks)
    expected = _expected(features, masks, 5, 1, 2, encoded=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("variant", ["tiles", "taps"])
@pytest.mark.parametrize("encoded", [False, True], ids=["masks", "encoded"])
def test_static_shape_is_inferred(opset: int, variant: str, encoded: bool) -> None:
    model = _carafe(5, 1, 2, encoded=encoded, variant=variant, opset=opset)
    shapes = [(2, 8, 9, 13), (2, 100, 9, 13) if encoded else (2, 25, 18, 26)]
    set_input_shapes(model, *shapes)
    assert infer_checked(model) == [[2, 8, 18, 26]]
    features, weights = (normal(*shape) for shape in shapes)
    (found,) = run(model, features, weights)
    expected = _expected(features, weights, 5, 1, 2, encoded)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["tiles", "taps"])
@pytest.mark.parametrize("encoded", [False, True], ids=["masks", "encoded"])
def test_one_session_takes_all_sizes(variant: str, encoded: bool) -> None:
    model = _carafe(5, 1, 2, encoded=encoded, variant=variant)
    infer_checked(model)
    once = session(model)
    second = "encoded" if encoded else "masks"
    for n, c, h, w in ((1, 4, 8, 8), (3, 2, 5, 11), (0, 2, 4, 4), (1, 1, 1, 2)):
        features, weights = normal(n, c, h, w), _weights(n, h, w, 5, 1, 2, encoded)
        (found,) = once.run(None, {"features": features, second: weights})
        expected = _expected(features, weights, 5, 1, 2, encoded)
        assert found.shape == (n, c, 2 * h, 2 * w)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["tiles", "taps"])
@pytest.mark.parametrize(
    ("half", "opset", "bits"),
    [(TensorProto.FLOAT16, 18, 11), (TensorProto.BFLOAT16, 22, 8)],
    ids=["float16", "bfloat16"],
)
def test_half_types_round_once(half: int, opset: int, bits: int, variant: str) -> None:
    def rounded(array: Array) -> Array:
        dtype = torch.float16 if half == TensorProto.FLOAT16 else torch.bfloat16
        return torch.from_numpy(array).to(dtype).float().numpy()

    features, encoded = rounded(normal(1, 4, 6, 7)), rounded(_weights(1, 6, 7, 5, 1, 2, True))
    model = _carafe(5, 1, 2, encoded=True, variant=variant, opset=opset)
    (found,) = run_in_type(model, half, features, encoded)
    expected = _expected(features, encoded, 5, 1, 2, encoded=True)
    # Half a unit in the last place of the type, and float32's own error where results are small.
    np.testing.assert_allclose(found, expected, rtol=1.01 * 2.0**-bits, atol=1e-5)


def test_encoded_survives_large_logits() -> None:
    features, encoded = normal(1, 4, 5, 5), 200 * _weights(1, 5, 5, 5, 1, 2, encoded=True)
    expected = _expected(features, encoded, 5, 1, 2, encoded=True)
    for variant in ("tiles", "taps"):
        (found,) = run(_carafe(5, 1, 2, encoded=True, variant=variant), features, encoded)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("encoded", [False, True], ids=["masks", "encoded"])
def test_tiles_never_copy_the_map_25_times(encoded: bool) -> None:
    features, weights = normal(1, 64, 24, 40), _weights(1, 24, 40, 5, 1, 2, encoded)
    model = _carafe(5, 1, 2, encoded=encoded, variant="tiles")
    largest = max(array.size for _, array in intermediates(model, features, weights))
    # Tiles of 4x4 with margin 2 hold every pixel four times, as many as the result has.
    assert largest == 4 * features.size


def test_variant_follows_the_channels() -> None:
    assert [choose_carafe_variant(c) for c in (1, 4, 5, 256, None)] == [
        "taps", "taps", "tiles", "tiles", "tiles"
    ]  # fmt: skip


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'fast', expected one of tiles, taps"):
        _carafe(5, 1, 2, encoded=False, variant="fast")
