"""Which artefacts can be compared, and at which sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import ArtefactError
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import Image
from carafe_deploy.parity import run_parity
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
    "stages": ({"stages": ("C2",)}, "and 1 stages"),
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
