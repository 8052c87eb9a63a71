"""Which artefacts can be compared, and at which sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import ArtefactError, UnsupportedLevelError
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import Image
from carafe_deploy.parity import run_parity
from carafe_deploy.parity.compatible import check_same_model, common_stages
from carafe_deploy.parity.operator_level import compare_operators
from carafe_deploy.runners.base import Runner
from carafe_deploy.types import InputFormat, ModelInfo, OperatorCall
from tests.parity.spoilt import WithInfo


def _call_with(info: ModelInfo, **attributes: object) -> tuple[OperatorCall, ...]:
    first, *others = info.operators
    return (
        dataclasses.replace(first, attributes={**first.attributes, **attributes}),
        *others,
    )


DIFFERENCES = {
    "class": ({"classes": ("circle", "square", "star")}, r"classes\[2\] is 'triangle' and 'star'"),
    "classes": ({"classes": ("circle",)}, "3 and 1 classes"),
    "architecture": (
        {"architecture": "faster_rcnn"},
        "architecture is mask_rcnn and faster_rcnn",
    ),
    "score": ({"score_threshold": 0.3}, r"score_threshold is 0.05 and 0.3. Export both from one"),
    "nms": ({"nms_iou_threshold": 0.6}, "nms_iou_threshold is 0.5 and 0.6"),
    "rows": ({"max_detections": 50}, "max_detections is 100 and 50"),
    "two": (
        {"mask_threshold": 0.4, "mask_size": 14},
        "mask_threshold is 0.5 and 0.4; mask_size is 28 and 14",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_different_models_are_an_error(reference: Runner, name: str) -> None:
    change, message = DIFFERENCES[name]
    candidate = WithInfo(reference, dataclasses.replace(reference.info, **change))
    with pytest.raises(ArtefactError, match=f"different models or settings: .*{message}"):
        run_parity(reference, candidate)


def test_different_preprocessing_is_an_error(reference: Runner) -> None:
    other = dataclasses.replace(reference.info.preprocessing, bgr_to_rgb=False)
    candidate = WithInfo(reference, dataclasses.replace(reference.info, preprocessing=other))
    with pytest.raises(ArtefactError, match=r"preprocessing\.bgr_to_rgb is True and False"):
        run_parity(reference, candidate)


def test_operators_of_one_artefact_alone_are_left_out(reference: Runner) -> None:
    """Files of older versions have no RpnCandidates."""
    older = tuple(call for call in reference.info.operators if "candidates" not in call.name)
    candidate = WithInfo(reference, dataclasses.replace(reference.info, operators=older))
    check_same_model(reference.info, candidate.info)
    names = [row.name for row in compare_operators(reference, candidate)]
    assert len(names) == len(older)
    assert not any("candidates" in name for name in names)


def test_an_unknown_operator_is_an_error(reference: Runner) -> None:
    first, *others = reference.info.operators
    unknown = (dataclasses.replace(first, name="carafe_encodet"), *others)
    candidate = dataclasses.replace(reference.info, operators=unknown)
    with pytest.raises(ArtefactError, match="operator 'carafe_encodet' is none of carafe, "):
        check_same_model(reference.info, candidate)


def test_different_operators_are_an_error(reference: Runner) -> None:
    operators = _call_with(reference.info, kernel_size=3)
    candidate = WithInfo(reference, dataclasses.replace(reference.info, operators=operators))
    with pytest.raises(ArtefactError, match=r"operators\[0\] is \('carafe_encoded'"):
        run_parity(reference, candidate)


def test_artefacts_without_a_common_size_are_an_error(reference: Runner) -> None:
    sizes = InputFormat(height=(128, 128)), InputFormat(height=(192, 192))
    sides = (WithInfo(reference, dataclasses.replace(reference.info, input=size)) for size in sizes)
    with pytest.raises(ArtefactError, match="reference accepts height 128, the candidate 192: "):
        run_parity(*sides)


def test_a_static_artefact_is_compared_at_its_own_size(
    reference: Runner, checkpoint: Path, images: list[Image]
) -> None:
    static = ExportOptions(batch=(2, 2), height=(192, 192), width=(192, 192), uint8_input=True)
    with open_runner(checkpoint, options=static) as candidate:
        report = run_parity(reference, candidate, images=[*images, images[0]])
    assert report.passed
    assert "carafe_encoded 1x32x16x24" in [row.name for row in report.rows]


# --- stages --------------------------------------------------------------------------------------

#: What version 0.1.0 named, in its order.
OLDER = (
    *("C2", "C3", "C4", "C5", "carafe0", "carafe1", "carafe2", "carafe3"),
    *("P2", "P3", "P4", "P5", "P6"),
    *(f"rpn_{kind}{level}" for kind in ("cls", "reg") for level in range(5)),
    *("proposals", "proposal_scores", "cls_score", "bbox_pred", "mask_logits"),
)


def _with_stages(runner: Runner, *names: str) -> WithInfo:
    return WithInfo(runner, dataclasses.replace(runner.info, stages=names))


def test_an_older_export_is_compared_on_the_stages_it_names(
    reference: Runner, images: list[Image]
) -> None:
    candidate = _with_stages(reference, *OLDER)
    report = run_parity(reference, candidate, images=images[:1], levels=("stages",))
    assert report.passed
    names = [row.name for row in report.rows]
    assert set(names) == {*OLDER} - {"proposal_scores"}
    assert names[4:9] == ["carafe3", "carafe2", "carafe1", "carafe0", "P2"]


def test_common_stages_are_in_the_order_of_computation(reference: Runner) -> None:
    sides = _with_stages(reference, "P2", "C2", "stem"), _with_stages(reference, "stem", "P2", "C3")
    found = common_stages(*(side.info for side in sides))
    assert [stage.name for stage in found] == ["stem", "P2", "detections"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (((), ()), "the reference and the candidate cannot be asked for intermediate tensors: exp"),
        ((("C2",), ()), "the candidate cannot be asked for intermediate tensors: export both with"),
        ((("C2",), ("C3",)), "no intermediate tensor has a name in both artefacts: export both"),
    ],
)
def test_artefacts_without_a_common_stage(
    reference: Runner, images: list[Image], names: tuple[tuple[str, ...], ...], message: str
) -> None:
    sides = [_with_stages(reference, *own) for own in names]
    with pytest.raises(UnsupportedLevelError, match=message):
        run_parity(*sides, images=images[:1], levels=("stages",))
    report = run_parity(*sides, images=images[:1])
    assert {row.level for row in report.rows} == {"operators", "detections"}
    assert report.skipped["stages"].startswith(message[:20])


def test_a_stage_of_another_version_is_an_error(reference: Runner, images: list[Image]) -> None:
    sides = [_with_stages(reference, "C2", "C7") for _ in range(2)]
    with pytest.raises(ArtefactError, match="stage 'C7' is unknown: the artefact was made by anot"):
        run_parity(*sides, images=images[:1], levels=("stages",))
