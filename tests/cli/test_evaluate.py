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


def test_what_computed_the_operators_is_said(run: Run, onnx_file: Path, data: list[object]) -> None:
    found = {}
    for options, by in (((), "kernels"), (("--bodies",), "function bodies")):
        outcome = run("eval", onnx_file, *data, "--limit", 2, "--output", "out", *options)
        assert outcome.status == 0, outcome.err
        assert f"operators computed by {by}\n" in outcome.out
        metrics = json.loads(Path("out/metrics.json").read_text())
        assert metrics["implementation"] == by
        found[by] = metrics["numbers"]["bbox"]["AP"]
    assert found["kernels"] == pytest.approx(found["function bodies"], abs=1e-3)


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


@pytest.fixture
def cut(shapes_dir: Path, tmp_path: Path) -> Callable[[Callable[[Any], None]], list[object]]:
    """Options that name the first five images, their annotations changed by a function."""

    def write(change: Callable[[Any], None]) -> list[object]:
        content = json.loads((shapes_dir / "val.json").read_text())
        content["images"] = content["images"][:5]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        change(content)
        (tmp_path / "cut.json").write_text(json.dumps(content))
        return ["--annotations", tmp_path / "cut.json", "--images", shapes_dir / "val"]

    return write


def test_annotations_without_masks(run: Run, ts_file: Path, data: list[object], cut: Any) -> None:
    def change(content: Any) -> None:
        for entry in content["annotations"]:
            del entry["segmentation"]

    whole = run("eval", ts_file, *data, "--json").json["numbers"]["bbox"]
    outcome = run("eval", ts_file, *cut(change))
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[0].split() == ["box"]
    assert ["AP", f"{whole['AP']:.4f}"] in [line.split() for line in outcome.out.splitlines()]
    assert "note: no annotated object has a mask: only boxes are evaluated" in outcome.out
    assert "segmentation" in json.loads(Path("out/eval/results.json").read_text())[0]


def test_annotations_that_lack_a_class(run: Run, ts_file: Path, cut: Any) -> None:
    def change(content: Any) -> None:
        content["categories"] = [c for c in content["categories"] if c["name"] != "square"]
        kept = {category["id"] for category in content["categories"]}
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in kept]

    whole = run("eval", ts_file, *cut(lambda content: None), "--json").json
    outcome = run("eval", ts_file, *cut(change))
    assert outcome.status == 0, outcome.err
    assert "note: the annotations have 2 of the detector's 3 classes" in outcome.out
    assert "not annotated, and left out of the results: 'square'" in outcome.out
    found = json.loads(Path("out/eval/metrics.json").read_text())
    shared = {name: whole["per_class"]["bbox"][name] for name in ("circle", "triangle")}
    assert found["per_class"]["bbox"] == {**shared, "square": None}
    assert found["numbers"]["bbox"]["AP"] == pytest.approx(sum(shared.values()) / 2)


def test_a_test_set_gives_detections_for_submission(
    run: Run, ts_file: Path, data: list[object], cut: Any
) -> None:
    run("eval", ts_file, *data, "-o", "whole")
    outcome = run("eval", ts_file, *cut(lambda content: content.pop("annotations")))
    assert outcome.status == 0, outcome.err
    assert "AP50" not in outcome.out
    assert "note: no object of the detector's classes is annotated: there is no AP" in outcome.out
    assert "next" not in outcome.out  # parity has no AP to compare either
    results = [Path(name, "results.json").read_text() for name in ("out/eval", "whole")]
    assert results[0] == results[1]
    assert set(json.loads(results[0])[0]) == {
        "image_id", "category_id", "bbox", "score", "segmentation"
    }  # fmt: skip


def test_a_broken_image_stops_before_the_run_or_is_left_out(
    run: Run, ts_file: Path, images: Path, cut: Any
) -> None:
    def change(content: Any) -> None:
        content["images"] = content["images"][:3]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 3]

    def only_sound(content: Any) -> None:
        change(content)
        content["images"] = content["images"][::2]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    (images / "000002.png").write_bytes(b"no image")
    options = [*cut(change)[:2], "--images", images]
    outcome = run("eval", ts_file, *options)
    outcome.assert_refused("1 of 3 annotated images cannot be evaluated: cannot decode image")
    assert "--skip-broken" in outcome.err
    assert list(Path().iterdir()) == []
    outcome = run("eval", ts_file, *options, "--skip-broken")
    assert outcome.status == 0, outcome.err
    assert "in 2 images; " in outcome.out
    assert "note: 1 image left out:\n  cannot decode image" in outcome.out
    skipping = json.loads(Path("out/eval/metrics.json").read_text())
    assert (skipping["images"], len(skipping["skipped"])) == (2, 1)
    outcome = run("eval", ts_file, *cut(only_sound), "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["numbers"] == skipping["numbers"]
