"""Whole comparisons of the small Mask R-CNN: planted errors fail where they were planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import (
    AnnotationError,
    ArtefactError,
    CarafeDeployError,
    EngineError,
    ImageError,
    UnsupportedLevelError,
)
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import Image, load_image
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import StagedDetector, build_detector, prepare_for_inference
from carafe_deploy.parity import ParityReport, run_parity
from carafe_deploy.runners.base import Runner
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.tolerances import tolerance
from tests.parity.spoilt import Closed, Spoil, Spoilt, Tensors
from tests.scripted import ERRORS, Scripted


class Compare(Protocol):
    def __call__(self, *levels: str, run: Spoil | None = None, **settings: Any) -> ParityReport: ...


@pytest.fixture
def compare(reference: Runner, images: list[Image], val: Path, shapes_dir: Path) -> Compare:
    """The reference with itself spoilt, or another candidate, at some levels: on one image, or
    with annotations for AP."""

    def call(
        *levels: str,
        run: Spoil | None = None,
        stages: Spoil | None = None,
        candidate: Runner | None = None,
        **settings: Any,
    ) -> ParityReport:
        if levels == ("ap",):
            settings = {"annotations": val, "image_dir": shapes_dir / "val", "limit": 1} | settings
        else:
            settings = {"images": images[:1]} | settings
        other = candidate or Spoilt(reference, run=run, stages=stages)
        return run_parity(reference, other, levels=levels or None, **settings)

    return call


def _failed(report: ParityReport) -> list[str]:
    return [f"{row.level} {row.name}" for row in report.failures]


def test_an_artefact_agrees_with_itself_on_every_level(
    reference: Runner, images: list[Image], val: Path, shapes_dir: Path, compare: Compare
) -> None:
    annotated = {"annotations": val, "image_dir": shapes_dir / "val", "limit": 2}
    report = compare(candidate=reference, images=images, **annotated)
    assert report.passed
    assert {row.max_abs_error for row in report.rows} == {0.0, None}
    assert all(row.matched == row.total for row in report.rows)
    assert [row.name for row in report.rows if row.level != "stages"] == [
        "carafe_encoded 1x32x2x3",
        "carafe_encoded 1x32x4x6",
        "carafe_encoded 1x32x8x12",
        "carafe_encoded 1x32x16x24",
        "rpn_candidates 1000 of each of 5 levels from 32x48",
        "batched_nms 5x1000",
        "multilevel_roi_align 1000 to 7x7",
        "box_candidates 1000 proposals of 3 classes",
        "batched_nms 3x1000",
        "multilevel_roi_align 100 to 14x14",
        "carafe_encoded 100x1x14x14",
        "boxes and masks",
        "box AP",
        "mask AP",
    ]
    stages = [row.name for row in report.rows if row.level == "stages"]
    assert stages == [name for name in reference.info.stages if name != "proposal_scores"]
    detections = next(row for row in report.rows if row.level == "detections")
    assert detections.total is not None
    assert detections.total >= 10


def test_levels_that_an_artefact_lacks_are_left_out_with_the_reason(
    reference: Runner, compare: Compare
) -> None:
    closed = Closed(reference)
    report = compare(candidate=closed)
    assert report.passed
    assert [row.level for row in report.rows] == ["detections"]
    assert report.skipped == {
        "operators": "x.engine runs as a whole",
        "stages": "x.engine has no intermediate tensors",
    }
    assert ParityReport.from_json(report.to_json()) == report
    for level in report.skipped:  # unless they are asked for
        with pytest.raises(UnsupportedLevelError, match=r"x\.engine"):
            compare(level, "detections", candidate=closed)
    with pytest.raises(UnsupportedLevelError, match="nothing can be compared without images"):
        compare(candidate=closed, images=())


@pytest.mark.parametrize(
    ("script", "levels", "failed"),
    [
        ({"operators": True}, ["operators", "detections"], ["operators"]),
        ({"stages": True}, ["stages", "detections"], ["stages"]),
        ({"run": 1}, ["stages", "detections"], ["detections"]),
        ({"run": 1, "stages": True}, ["stages", "detections"], ["stages", "detections"]),
    ],
    ids=["operators", "stages", "first run", "everything"],
)
@pytest.mark.parametrize("error", [next(iter(ERRORS)), EngineError("failed to run: no memory")])
def test_what_an_artefact_raises_ends_its_level_alone(
    reference: Runner,
    compare: Compare,
    error: Exception,
    script: dict[str, Any],
    levels: list[str],
    failed: list[str],
) -> None:
    report = compare(*levels, candidate=Scripted(reference, error, **script))
    reason = ERRORS.get(error, str(error))
    assert {name: one.reason for name, one in report.failed.items()} == dict.fromkeys(
        failed, reason
    )
    assert {row.level for row in report.rows} == set(levels) - set(failed)
    assert not report.failures
    assert not report.passed
    assert ParityReport.from_json(report.to_json()) == report


# --- stages --------------------------------------------------------------------------------------


def _with_one_other_weight(runner: Runner, checkpoint: Path, key: str) -> Runner:
    """The same detector, but for the largest weight of one tensor, which grows by a tenth."""
    detector, _ = load_detector(checkpoint)
    copy = build_detector(detector.config)
    copy.load_state_dict(detector.state_dict())
    weight = copy.get_parameter(key)
    with torch.no_grad():
        weight.view(-1)[weight.abs().argmax()] *= 1.1
    deployed = prepare_for_inference(copy)
    return PyTorchRunner(runner.info, torch.device("cpu"), deployed, StagedDetector(deployed))


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("backbone.layer1.0.conv1.weight", "layer1.0"),
        ("backbone.layer4.1.conv2.weight", "C5"),
        ("neck.upsample_modules.0.content_encoder.weight", "encoder0"),
        ("neck.fpn_convs.2.conv.weight", "P4"),
        ("rpn_head.rpn_cls.weight", "rpn_cls0"),
        ("rpn_head.rpn_reg.weight", "rpn_reg0"),
        ("roi_head.bbox_head.fc_cls.weight", "cls_score"),
        ("roi_head.bbox_head.fc_reg.weight", "bbox_pred"),
        ("roi_head.mask_head.conv_logits.weight", "mask_coarse_logits"),
    ],
)
def test_one_other_weight_fails_the_first_stage_behind_it(
    reference: Runner, checkpoint: Path, compare: Compare, key: str, first: str
) -> None:
    candidate = _with_one_other_weight(reference, checkpoint, key)
    report = compare("stages", "operators", candidate=candidate)
    assert not report.passed
    assert _failed(report)[0] == f"stages {first}"


OF_PROPOSALS = ("roi_features", "shared_fc1", "shared_fc2", "cls_score", "bbox_pred")
OF_DETECTIONS = (
    *("mask_roi_features", "mask_conv1", "mask_conv2", "mask_encoder", "mask_coarse_logits"),
    *("mask_carafe", "mask_logits"),
)


def _shuffle_proposals(tensors: Tensors) -> None:
    order = np.random.default_rng(0).permutation(tensors["proposals"].shape[1])
    for name in ("proposals", "proposal_scores", *OF_PROPOSALS):
        tensors[name] = tensors[name][:, order]


def _shuffle_detections(tensors: Tensors) -> None:
    count = int(tensors["num_dets"][0, 0])
    order = [*reversed(range(count)), *range(count, tensors["det_boxes"].shape[1])]
    for name in ("det_boxes", "det_scores", "det_classes"):
        tensors[name] = tensors[name][:, order]
    for name in OF_DETECTIONS:
        tensors[name] = tensors[name][order]


def _spoil_mask_padding(tensors: Tensors) -> None:
    for name in OF_DETECTIONS:
        tensors[name][int(tensors["num_dets"][0, 0]) :] = np.nan


@pytest.mark.parametrize("change", [_shuffle_proposals, _shuffle_detections, _spoil_mask_padding])
def test_order_and_padding_of_rows_do_not_matter(compare: Compare, change: Spoil) -> None:
    report = compare("stages", stages=change)
    assert report.passed
    assert all(row.max_abs_error == 0.0 for row in report.rows)


def _pad_proposals(tensors: Tensors) -> None:
    """As if 100 had been found, with whatever in the padding."""
    tensors["proposals"][:, 100:] = 0
    tensors["proposal_scores"][:, 100:] = 0
    for name in OF_PROPOSALS:
        tensors[name][:, 100:] = np.random.default_rng().normal()


def test_padding_of_proposals_is_left_out(reference: Runner, images: list[Image]) -> None:
    sides = (Spoilt(reference, stages=_pad_proposals) for _ in range(2))
    report = run_parity(*sides, images=images[:1], levels=("stages",))
    rows = {row.name: row for row in report.rows}
    assert report.passed
    for name in ("proposals", *OF_PROPOSALS):
        assert rows[name].total == 100


def _move_proposals(share: float) -> Spoil:
    def move(tensors: Tensors) -> None:
        tensors["proposals"][:, : int(share * tensors["proposals"].shape[1])] += 5.0

    return move


def _raise_scores(tensors: Tensors) -> None:
    tensors["proposal_scores"] *= 1.01


@pytest.mark.parametrize(
    ("change", "passes"),
    [(_move_proposals(0.001), True), (_move_proposals(0.02), False), (_raise_scores, False)],
)
def test_enough_proposals_must_agree(compare: Compare, change: Spoil, passes: bool) -> None:
    failed = _failed(compare("stages", stages=change))
    assert ("stages proposals" in failed) is not passes
    assert change is _raise_scores or len(failed) == (not passes)


def _cut_a_stage(tensors: Tensors) -> None:
    tensors["P3"] = tensors["P3"][:, :8]


def test_a_stage_of_another_shape_is_an_error(compare: Compare) -> None:
    with pytest.raises(ArtefactError, match=r"P3 is \[1, 32, 16, 24\] in the reference and \[1, 8"):
        compare("stages", stages=_cut_a_stage)


# --- detections ----------------------------------------------------------------------------------


def _shift_box(tensors: Tensors) -> None:
    tensors["det_boxes"][0, 0, [0, 2]] += 4.0


def _other_class(tensors: Tensors) -> None:
    tensors["det_classes"][0, 0] = (tensors["det_classes"][0, 0] + 1) % 3


def _other_score(tensors: Tensors) -> None:
    tensors["det_scores"][0, 0] -= 5 * tolerance("detections", "score").value


def _other_mask(tensors: Tensors) -> None:
    tensors["det_masks"][0, 0, :10] = 0.0


def _without_the_best(tensors: Tensors) -> None:
    for name in ("det_boxes", "det_scores", "det_classes", "det_masks"):
        tensors[name] = np.roll(tensors[name], -1, axis=1)
    tensors["num_dets"] -= 1


def _extra(score: float) -> Spoil:
    def add(tensors: Tensors) -> None:
        row = int(tensors["num_dets"][0, 0])
        tensors["det_boxes"][0, row] = (2, 3, 30, 40)
        tensors["det_scores"][0, row] = score
        tensors["det_classes"][0, row] = 0
        tensors["num_dets"] += 1

    return add


@pytest.mark.parametrize(
    ("change", "only_in_reference", "only_in_candidate"),
    [
        (_shift_box, 1, 1),
        (_other_class, 1, 1),
        (_other_score, 1, 1),
        (_other_mask, 1, 1),
        (_without_the_best, 1, 0),
        (_extra(0.4), 0, 1),
    ],
)
def test_one_wrong_detection_fails_the_detections_and_no_other_level(
    compare: Compare, change: Spoil, only_in_reference: int, only_in_candidate: int
) -> None:
    report = compare("stages", "detections", run=change)
    assert _failed(report) == ["detections boxes and masks"]
    details = report.failures[0].details
    assert details["only_in_reference"] == only_in_reference
    assert details["only_in_candidate"] == only_in_candidate


@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (2.0, False)])
def test_detections_at_the_threshold_may_be_missing(
    reference: Runner, compare: Compare, share: float, passes: bool
) -> None:
    score = reference.info.score_threshold + share * tolerance("detections", "score").value
    report = compare("detections", run=_extra(score))
    assert report.passed is passes
    assert report.rows[0].details["borderline"] == passes


def test_detections_of_equal_score_may_swap(reference: Runner, images: list[Image]) -> None:
    def tie(tensors: Tensors) -> None:
        tensors["det_scores"][0, :2] = 0.9

    def tie_and_swap(tensors: Tensors) -> None:
        tie(tensors)
        for name in ("det_boxes", "det_classes", "det_masks"):
            tensors[name][0, :2] = tensors[name][0, 1::-1].copy()

    sides = Spoilt(reference, run=tie), Spoilt(reference, run=tie_and_swap)
    report = run_parity(*sides, images=images[:1], levels=("detections",))
    assert report.passed
    assert report.rows[0].max_abs_error == 0.0


def _find_nothing(tensors: Tensors) -> None:
    tensors["num_dets"][:] = 0


def _find_elsewhere(tensors: Tensors) -> None:
    tensors["det_boxes"][..., 2:] = tensors["det_boxes"][..., :2] + 1


def test_a_comparison_of_nothing_neither_passes_nor_fails(
    reference: Runner, images: list[Image]
) -> None:
    blind = Spoilt(reference, run=_find_nothing, stages=_find_nothing)
    report = run_parity(blind, blind, images=images[:1], levels=("stages", "detections"))
    assert (report.passed, report.failures, report.state) == (False, (), "nothing compared")
    assert report.rows[-1] in report.uncompared
    assert report.rows[-1].total == 0
    assert report.rows[-1].max_abs_error is None
    assert "choose others, which show circle, square, triangle" in report.rows[-1].note
    masks = next(row for row in report.uncompared if row.name == "mask_logits")
    assert masks.note == "there are no paired detections"
    # What was compared has passed all the same.
    assert {row.state for row in report.rows if row not in report.uncompared} == {"passed"}
    assert f"NOTHING COMPARED in {len(report.uncompared)} rows of " in str(report)
    data = json.loads(report.to_json())
    assert (data["passed"], data["state"]) == (False, "nothing compared")
    assert (data["rows"][-1]["passed"], data["rows"][-1]["state"]) == (None, "nothing compared")
    assert ParityReport.from_json(report.to_json()) == report


# --- average precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [_find_nothing, _find_elsewhere])
def test_ap_of_two_that_find_nothing_is_no_success(
    reference: Runner, val: Path, shapes_dir: Path, spoil: Spoil
) -> None:
    blind = Spoilt(reference, run=spoil)
    data = {"annotations": val, "image_dir": shapes_dir / "val", "limit": 1}
    report = run_parity(blind, blind, levels=("ap",), **data)
    assert [row.state for row in report.rows] == ["nothing compared"] * 2
    assert "in which neither artefact finds anything" in report.rows[0].note


def test_one_that_finds_what_the_other_does_not_is_a_difference(compare: Compare) -> None:
    assert compare("ap", run=_find_nothing).state == "failed"


def test_lower_precision_fails_ap_alone(compare: Compare) -> None:
    report = compare("ap", run=_without_the_best, limit=3)
    assert _failed(report) == ["ap box AP", "ap mask AP"]
    row = report.rows[0]
    assert row.details["reference"] > row.details["candidate"] + row.tolerance
    assert row.max_abs_error == pytest.approx(row.details["reference"] - row.details["candidate"])
    assert row.note.endswith("on 3 images")


def test_annotations_without_objects_are_an_error(
    compare: Compare, val: Path, tmp_path: Path
) -> None:
    data = json.loads(val.read_text())
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**data, "images": data["images"][:1], "annotations": []}))
    with pytest.raises(AnnotationError, match=r"empty\.json annotates no object in these images"):
        compare("ap", annotations=empty, limit=None)


# --- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        ((), CarafeDeployError, "no level of parity is chosen: give some of operators, stages"),
        (("stage",), CarafeDeployError, "no level 'stage' of parity: choose from operators, st"),
        (("stages",), ImageError, "parity of stages needs images"),
        (("detections",), ImageError, "parity of detections needs images"),
        (("ap",), AnnotationError, "parity of AP needs annotations"),
    ],
)
def test_levels_without_their_data_are_an_error(
    reference: Runner, levels: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_parity(reference, reference, levels=levels)


def test_levels_follow_from_the_data_given(
    reference: Runner, images: list[Image], compare: Compare
) -> None:
    steps: list[tuple[str, int, int]] = []
    report = compare(images=images, progress=lambda *step: steps.append(step))
    assert {row.level for row in report.rows} == {"operators", "stages", "detections"}
    levels = ("stages", "detections")
    assert steps[-4:] == [(level, done, 2) for level in levels for done in (1, 2)]
    assert steps[0] == ("operators", 1, 11)


# --- between backends and precisions -------------------------------------------------------------


def test_onnxruntime_agrees_with_pytorch(
    reference: Runner, images: list[Image], export: Callable[..., Path]
) -> None:
    static = ExportOptions((1, 1), (128, 128), (192, 192))
    with open_runner(export("mask", ".onnx", static, exporter="torchscript")) as candidate:
        report = run_parity(reference, candidate, images=images)
    assert report.passed, report.failures
    assert report.reference == "pytorch fp32 shapes_mask_rcnn_carafe"
    assert report.candidate == "onnxruntime (kernels) fp32 shapes_mask_rcnn_carafe"
    names = [row.name for row in report.rows if row.level == "operators"]
    assert {f"{name}, function bodies" for name in names[::2]} == set(names[1::2])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_agrees_with_single(
    reference: Runner, checkpoint: Path, shapes_dir: Path, precision: str
) -> None:
    # On two images a single detection is more than the share that may differ.
    images = [load_image(path) for path in sorted((shapes_dir / "val").iterdir())[:8]]
    with open_runner(checkpoint, options=ExportOptions(precision=precision)) as candidate:
        report = run_parity(reference, candidate, images=images)
    assert report.passed, report.failures
    # Held to the limits of single precision they would fail.
    stages = [row for row in report.rows if row.level == "stages" and row.measure == "relative"]
    limit = tolerance("stages", "pyramid", "fp32").value
    assert max(row.max_rel_error or 0.0 for row in stages) > limit
