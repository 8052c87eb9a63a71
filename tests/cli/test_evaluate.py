"""`carafe-deploy eval`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def data(shapes_dir: Path) -> list[object]:
    """Options that name the validation set, cut to five images."""
    return ["--annotations", shapes_dir / "val.json", "--images", shapes_dir / "val", "--limit", 5]


def test_table_has_the_twelve_numbers(run: Run, onnx_file: Path, data: list[object]) -> None:
    outcome = run("eval", onnx_file, *data)
    assert outcome.status == 0, outcome.err
    rows = [line.split() for line in outcome.out.splitlines()]
    assert rows[0] == ["box", "mask"]
    assert [row[0] for row in rows[1:13]] == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
    ]  # fmt: skip
    assert all(re.fullmatch(r"[01]\.\d{4}|–", cell) for row in rows[1:13] for cell in row[1:])
    assert [row[1] for row in rows[13:16]] == ["circle", "square", "triangle"]


def test_files_and_json_agree_with_the_table(run: Run, ts_file: Path, data: list[object]) -> None:
    metrics = run("eval", ts_file, *data, "-o", "scores", "--json").json
    assert metrics == json.loads(Path("scores/metrics.json").read_text())
    assert (metrics["images"], len(metrics["numbers"]["segm"])) == (5, 12)
    results = json.loads(Path("scores/results.json").read_text())
    assert len(results) == metrics["detections"]
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    shown = run("eval", ts_file, *data, "-o", "scores").out
    assert f"{metrics['numbers']['bbox']['AP']:.4f}" in shown


def test_a_detector_without_masks_has_one_column(
    run: Run, faster_checkpoint: Path, data: list[object]
) -> None:
    outcome = run("eval", faster_checkpoint, *data)
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[0].split() == ["box"]


def test_next_step_is_parity_on_the_same_data(run: Run, ts_file: Path, data: list[object]) -> None:
    assert run("eval", ts_file, *data).out.splitlines()[-1].strip() == (
        f"carafe-deploy parity CHECKPOINT.pth {ts_file} --annotations {data[1]} "
        f"--image-dir {data[3]}"
    )


def test_no_detections_score_zero(run: Run, blind_file: Path, data: list[object]) -> None:
    outcome = run("eval", blind_file, *data, "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["detections"] == 0
    assert outcome.json["numbers"]["bbox"]["AP"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--annotations": "none.json"}, "annotation file none.json does not exist"),
        ({"--images": "none"}, "5 of 5 annotated images are missing, none/000001.png first"),
        ({"--config": "config.py"}, "--config config.py does not fit: "),
    ],
)
def test_bad_requests(
    run: Run, ts_file: Path, data: list[object], change: dict[str, str], message: str
) -> None:
    options = {**dict(zip(data[::2], data[1::2], strict=True)), **change}
    outcome = run("eval", ts_file, *(word for pair in options.items() for word in pair))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert list(Path().iterdir()) == []
