"""Operator parity: what the random inputs look like, and that wrong operators fail."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from carafe_deploy.errors import ArtefactError
from carafe_deploy.operators.roi_align import assign_levels
from carafe_deploy.parity.array_error import array_error, rounded
from carafe_deploy.parity.operator_level import compare_operators, random_inputs
from carafe_deploy.parity.report import ParityRow
from carafe_deploy.runners._torch import TorchRunner
from carafe_deploy.tolerances import tolerance
from carafe_deploy.types import ModelInfo, OperatorCall

CARAFE = {"kernel_size": 5, "group_size": 1, "scale_factor": 2}
CALLS = {
    "carafe": OperatorCall("carafe", ((1, 8, 4, 6), (1, 25, 8, 12)), CARAFE),
    "carafe_encoded": OperatorCall("carafe_encoded", ((1, 8, 4, 6), (1, 100, 4, 6)), CARAFE),
    "multilevel_roi_align": OperatorCall(
        "multilevel_roi_align",
        ((1, 64, 4), (1, 3, 200, 272), (1, 3, 100, 136), (1, 3, 50, 68), (1, 3, 25, 34)),
        {
            "output_size": 7,
            "sampling_ratio": 0,
            "strides": [4, 8, 16, 32],
            "finest_scale": 56,
        },
    ),
    "rpn_nms": OperatorCall(
        "batched_nms",
        ((2, 5, 200, 4), (2, 5, 200)),
        {"iou_threshold": 0.7, "score_threshold": -1.0, "max_output": 200},
    ),
    "class_nms": OperatorCall(
        "batched_nms",
        ((1, 80, 200, 4), (1, 80, 200)),
        {"iou_threshold": 0.5, "score_threshold": 0.05, "max_output": 100},
    ),
}
Outputs = tuple[np.ndarray, ...]
Change = Callable[[str, Sequence[np.ndarray], Outputs], Outputs]


class OperatorRunner(TorchRunner):
    """Runs torch's operators and lets a test spoil what they return."""

    def __init__(
        self,
        *names: str,
        precision: str = "fp32",
        change: Change = lambda name, inputs, outputs: outputs,
    ) -> None:
        calls = tuple(CALLS[name] for name in names)
        info = ModelInfo("toy", "faster_rcnn", ("a",), precision=precision, operators=calls)
        super().__init__(info, torch.device("cpu"), tuple, tuple)
        self._change = change

    def run_operator(self, call: OperatorCall, inputs: Sequence[np.ndarray]) -> Outputs:
        return self._change(call.name, inputs, super().run_operator(call, inputs))


def _inputs(name: str, seed: int = 0, precision: str = "fp32") -> tuple[np.ndarray, ...]:
    return random_inputs(CALLS[name], np.random.default_rng(seed), precision)


@pytest.mark.parametrize("name", CALLS)
def test_inputs_have_the_recorded_shapes_and_repeat(name: str) -> None:
    first, again, other = _inputs(name), _inputs(name), _inputs(name, seed=1)
    assert tuple(array.shape for array in first) == CALLS[name].shapes
    assert {array.dtype for array in first} == {np.dtype(np.float32)}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_masks_are_normalised_over_the_taps() -> None:
    _, masks = _inputs("carafe")
    np.testing.assert_allclose(masks.sum(axis=1), 1.0, rtol=1e-6)


def test_rois_lie_inside_the_image_on_all_levels_and_end_with_padding() -> None:
    rois = _inputs("multilevel_roi_align")[0][0]
    boxes, padding = rois[:-4], rois[-4:]
    assert not padding.any()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2:].max(axis=0) <= (272 * 4, 200 * 4)).all()
    counts = np.bincount(assign_levels(torch.from_numpy(boxes), 4, 56), minlength=4)
    assert counts.min() >= 10


def test_rois_fit_into_a_small_image() -> None:
    call = dataclasses.replace(CALLS["multilevel_roi_align"], shapes=((1, 64, 4), (1, 3, 16, 32)))
    call = dataclasses.replace(call, attributes={**call.attributes, "strides": [4]})
    rois, _ = random_inputs(call, np.random.default_rng(0))
    assert (rois[..., 2:].max(axis=(0, 1)) <= (128, 64)).all()


@pytest.mark.parametrize("name", ["rpn_nms", "class_nms"])
def test_candidates_of_nms_overlap_tie_and_end_with_padding(name: str) -> None:
    boxes, scores = _inputs(name)
    labels, rows = scores.shape[1:]
    assert np.isneginf(scores[..., -rows // 10 :]).all()
    assert np.isneginf(scores[:, -1, rows // 2 :]).all()
    assert (boxes * 2 == np.round(boxes * 2)).all()
    finite = scores[np.isfinite(scores)]
    assert len(np.unique(finite)) < finite.size
    attributes = CALLS[name].attributes
    count, _ = torch.ops.carafe.batched_nms(*map(torch.from_numpy, (boxes, scores)), **attributes)
    candidates = (scores > attributes["score_threshold"]).reshape(len(scores), -1).sum(axis=1)
    all_kept, _ = torch.ops.carafe.batched_nms(
        *map(torch.from_numpy, (boxes, scores)), **{**attributes, "max_output": labels * rows}
    )
    # Some are suppressed, and more are left than fit.
    assert (all_kept[:, 0].numpy() < 0.9 * candidates).all()
    assert (count == attributes["max_output"]).all()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16)])
def test_features_are_representable_and_boxes_untouched(precision: str, dtype: torch.dtype) -> None:
    exact, half = (_inputs("multilevel_roi_align", precision=p) for p in ("fp32", precision))
    assert np.array_equal(half[0], exact[0])
    for feature, original in zip(half[1:], exact[1:], strict=True):
        expected = torch.from_numpy(original).to(dtype).float().numpy()
        assert np.array_equal(feature, expected)
        assert not np.array_equal(feature, original)


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20], np.float32)
    assert rounded(values, "bf16").tolist() == [1.0, 1.0, 1 + 2**-6, -1 - 2**-7]


def test_rounding_to_tf32_keeps_ten_bits_to_nearest_even() -> None:
    values = np.array([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1e30 - 1e20], np.float32)
    expected = [1 + 2**-10, 1.0, 1 + 2**-9]
    found = rounded(values, "tf32")
    assert found[:3].tolist() == expected
    assert abs(found[3] / values[3] - 1) <= 2**-11
    assert not (found.view(np.uint32) & 0x1FFF).any()


def test_an_unknown_operator_is_an_error() -> None:
    call = OperatorCall("deform_conv", ((1, 2),), {})
    with pytest.raises(ArtefactError, match="operator 'deform_conv' is none of carafe, carafe_enc"):
        random_inputs(call, np.random.default_rng(0))


def _compare(*names: str, change: Change, precision: str = "fp32") -> tuple[ParityRow, ...]:
    return compare_operators(
        OperatorRunner(*names), OperatorRunner(*names, precision=precision, change=change)
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_equal_operators_pass_at_every_precision(precision: str) -> None:
    rows = _compare(*CALLS, precision=precision, change=lambda name, inputs, outputs: outputs)
    assert [row.name for row in rows] == [
        "carafe 1x8x4x6",
        "carafe_encoded 1x8x4x6",
        "multilevel_roi_align 64 to 7x7",
        "batched_nms 5x200",
        "batched_nms 80x200",
    ]
    assert all(row.passed and row.matched == row.total > 0 for row in rows)


def test_equal_calls_are_compared_once() -> None:
    names = ("carafe", "carafe", "rpn_nms")
    steps: list[tuple[int, int]] = []
    runner = OperatorRunner(*names)
    rows = compare_operators(runner, runner, progress=lambda *step: steps.append(step))
    assert len(rows) == 2
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", ["carafe", "carafe_encoded", "multilevel_roi_align"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (3.0, False)])
def test_one_wrong_element_fails_just_beyond_the_tolerance(
    name: str, precision: str, share: float, passes: bool
) -> None:
    limit = tolerance("operators", name, precision).value

    def change(operator: str, inputs: Sequence[np.ndarray], outputs: Outputs) -> Outputs:
        (out,) = outputs
        index = np.unravel_index(np.abs(out).argmax(), out.shape)
        out[index] *= 1 + share * limit
        return (out,)

    reference = OperatorRunner(name, precision=precision)
    candidate = OperatorRunner(name, precision=precision, change=change)
    (row,) = compare_operators(reference, candidate)
    assert row.passed is passes
    assert row.total is not None
    assert row.matched == row.total - (not passes)
    assert row.max_rel_error == pytest.approx(share * limit, rel=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_fails(value: float) -> None:
    def change(operator: str, inputs: Sequence[np.ndarray], outputs: Outputs) -> Outputs:
        outputs[0][0, 0, 0, 0] = value
        return outputs

    (row,) = _compare("carafe", change=change)
    assert (row.passed, row.max_abs_error) == (False, np.inf)


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ArtefactError, match=r"carafe 1x8x4x6 is \[1, 8, 8, 12\] in the reference"):
        _compare("carafe", change=lambda name, inputs, outputs: (outputs[0][:, :4],))


def _spoilt_indices(edit: Callable[[list[int], np.ndarray], list[int]]) -> ParityRow:
    """The row of an NMS whose first image's indices went through ``edit(indices, scores)``."""

    def change(operator: str, inputs: Sequence[np.ndarray], outputs: Outputs) -> Outputs:
        count, indices = outputs
        edited = edit(indices[0].tolist(), inputs[1][0].ravel())
        count[0, 0] = sum(index >= 0 for index in edited)
        indices[0] = edited
        return count, indices

    (row,) = _compare("rpn_nms", change=change)
    return row


def _swap(indices: list[int], scores: np.ndarray, *, equal: bool) -> list[int]:
    pairs = itertools.pairwise(indices)
    rank = next(i for i, (a, b) in enumerate(pairs) if bool(scores[a] == scores[b]) is equal)
    indices[rank], indices[rank + 1] = indices[rank + 1], indices[rank]
    return indices


def _other_of_equal_score_at_the_cut(indices: list[int], scores: np.ndarray) -> list[int]:
    others = np.flatnonzero(scores == scores[indices[-1]])
    return [*indices[:-1], int(next(i for i in others if i not in indices))]


@pytest.mark.parametrize(
    ("edit", "matched"),
    [
        pytest.param(partial(_swap, equal=True), 400, id="equal scores swapped"),
        pytest.param(_other_of_equal_score_at_the_cut, 400, id="another of equals comes last"),
        pytest.param(partial(_swap, equal=False), 399, id="order"),
        pytest.param(lambda indices, scores: [*indices[:-1], -1], 399, id="last missing"),
        pytest.param(lambda indices, scores: [*indices[1:], -1], 399, id="first missing"),
        pytest.param(lambda indices, scores: [indices[0], *indices[:-1]], 399, id="twice"),
        pytest.param(lambda indices, scores: [10**6, *indices[1:]], 399, id="no index"),
        pytest.param(
            lambda indices, scores: [*indices[:-1], int(scores.argmin())], 399, id="padding kept"
        ),
    ],
)
def test_choices_are_equal_but_for_the_order_of_equal_scores(
    edit: Callable[[list[int], np.ndarray], list[int]], matched: int
) -> None:
    row = _spoilt_indices(edit)
    assert (row.passed, row.matched, row.total) == (matched == 400, matched, 400)


def test_rows_after_the_last_box_must_be_padding() -> None:
    def change(operator: str, inputs: Sequence[np.ndarray], outputs: Outputs) -> Outputs:
        count, indices = outputs
        count[0, 0] -= 1
        return count, indices

    (row,) = _compare("rpn_nms", change=change)
    assert (row.passed, row.matched, row.total) == (False, 399, 400)


def test_the_smaller_of_two_recordings_is_used() -> None:
    larger = dataclasses.replace(CALLS["carafe"], shapes=((1, 8, 8, 6), (1, 25, 16, 12)))
    reference, candidate = OperatorRunner("carafe"), OperatorRunner("carafe")
    reference.info = dataclasses.replace(reference.info, operators=(larger,))
    (row,) = compare_operators(reference, candidate)
    assert (row.name, row.passed) == ("carafe 1x8x4x6", True)


# --- errors of arrays ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "candidate", "max_abs", "max_rel", "within"),
    [
        ([4.0, 2.0], [4.0, 1.0], 1.0, 0.25, 1),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0, 2),
        ([0.0, 0.0], [0.0, 1.0], 1.0, np.inf, 1),
        ([np.inf, 2.0], [np.inf, 2.0], 0.0, 0.0, 2),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0, 0.0, 2),
        ([-np.inf, 2.0], [np.inf, 2.0], np.inf, np.inf, 1),
        ([1.0, 2.0], [np.nan, 2.0], np.inf, np.inf, 1),
        ([], [], 0.0, 0.0, 0),
    ],
)
def test_errors_by_hand(
    reference: list[float], candidate: list[float], max_abs: float, max_rel: float, within: int
) -> None:
    arrays = (np.array(values, np.float32) for values in (reference, candidate))
    error = array_error("x", *arrays, relative=0.1)
    assert (error.max_abs, error.max_rel, error.within) == (max_abs, max_rel, within)
    assert error.total == len(reference)


def test_rows_agree_as_a_whole() -> None:
    reference = np.ones((3, 2, 2), np.float32)
    candidate = reference.copy()
    candidate[1] += 0.5
    error = array_error("x", reference, candidate, relative=0.1, rows=True)
    assert (error.within, error.total, error.fraction) == (2, 3, 2 / 3)
