"""`carafe-deploy models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from carafe_deploy.models import zoo

Run = Callable[..., Any]


def test_table_has_numbers_files_and_addresses(run: Run) -> None:
    outcome = run("models")
    assert outcome.status == 0
    for entry in zoo.MODELS:
        row = next(line for line in outcome.out.splitlines() if line.startswith(entry.name + " "))
        numbers = [entry.box_ap, entry.mask_ap, entry.fps]
        assert row.split()[1:] == [str(number) for number in numbers if number is not None]
        assert {entry.file_name, f"  {entry.url()}"} <= set(outcome.out.splitlines())


def test_next_step_names_a_model(run: Run) -> None:
    assert run("models").out.splitlines()[-1].strip() in {
        f"carafe-deploy export {entry.name}" for entry in zoo.MODELS
    }


def test_json(run: Run) -> None:
    assert run("models", "--json").json[0] == {
        "name": "faster_rcnn_r50_fpn_carafe_1x_coco",
        "architecture": "faster_rcnn",
        "box_ap": 38.6,
        "mask_ap": None,
        "fps": 16.5,
        "file": "faster_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.386_20200504_175733-385a75b7.pth",
        "url": "http://download.openmmlab.com/mmdetection/v2.0/carafe/"
        "faster_rcnn_r50_fpn_carafe_1x_coco/"
        "faster_rcnn_r50_fpn_carafe_1x_coco_bbox_mAP-0.386_20200504_175733-385a75b7.pth",
    }
