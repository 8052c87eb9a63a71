"""`carafe-deploy parity`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from carafe_deploy import artefacts
from carafe_deploy.cli.common import UsageError
from carafe_deploy.cli.parity import open_pair
from carafe_deploy.cli.parity_tables import bars, show_report
from carafe_deploy.errors import UnsupportedLevelError
from carafe_deploy.images import save_image
from carafe_deploy.parity import ParityReport, ParityRow, StageWalk
from carafe_deploy.runners import onnxruntime as onnxruntime_module

Run = Callable[..., Any]


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Path:
    """The same checkpoint with one convolution a hundredth larger."""
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["neck.fpn_convs.0.conv.weight"] *= 1.01
    path = tmp_path / "changed.pth"
    torch.save(content, path)
    return path


def test_equal_artefacts_pass(run: Run, checkpoint: Path, ts_file: Path, images: Path) -> None:
    outcome = run("parity", checkpoint, ts_file, "--images", images, "-o", "parity.json")
    assert outcome.status == 0, outcome.err
    report = json.loads(Path("parity.json").read_text())
    assert report["passed"]
    assert {row["level"] for row in report["rows"]} == {"operators", "stages", "detections"}
    assert f"PASS all {len(report['rows'])} rows" in outcome.out
    assert f"3 images: {images}/000001.png and 2 more" in outcome.out
    assert f"carafe-deploy detect {ts_file} IMAGES" in outcome.out


def test_a_difference_fails_and_is_marked(
    run: Run, checkpoint: Path, changed: Path, images: Path
) -> None:
    outcome = run("parity", checkpoint, changed, "--images", images / "000001.png")
    assert outcome.status == 1
    marks = dict(re.findall(r"^  (\w+ [\w ]*in \w+) .* ([✓✗])$", outcome.out, re.MULTILINE))
    backbone, pyramid, *_ = marks.items()
    assert backbone[0].endswith("worst of 9 in backbone")
    assert pyramid == ("P2 worst of 14 in pyramid", "✗")
    assert backbone[1] == "✓"
    assert re.search(r"^FAIL \d+ rows of \d+$", outcome.out, re.MULTILINE)
    assert f"carafe-deploy parity {checkpoint} {changed} --bisect\n" in outcome.out


def test_few_stages_have_a_line_each() -> None:
    def row(name: str, error: float, passed: bool = True) -> ParityRow:
        return ParityRow("stages", name, error, error, 1, 1, 1e-5, "relative", passed)

    rows = [row("stem", 1e-7), row("C2", 3e-6), row("P2", 2e-6)]
    assert _stage_lines(rows) == ["stem", "C2", "P2"]
    rows += [row(f"L{level}", 1e-6) for level in range(2, 7)]
    rows += [row(f"layer1.{block}", 1e-4, passed=False) for block in range(20)]
    assert _stage_lines(rows) == [
        "layer1.0 first of 20 outside in backbone",
        "P2 worst of 6 in pyramid",
    ]


def _stage_lines(rows: list[ParityRow]) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    show_report(console, ParityReport(tuple(rows), "a", "b", images=1, seed=0))
    return re.findall(r"^  (\w\S*.*?) +\S+ +\S+ +≤ 1e-05 [✓✗]$", console.file.getvalue(), re.M)


def test_json_is_all_of_stdout_whatever_the_verdict(
    run: Run, checkpoint: Path, changed: Path, images: Path
) -> None:
    outcome = run("parity", checkpoint, changed, images / "000001.png", "--json")
    assert (outcome.status, outcome.json["passed"]) == (1, False)


# --- walks ---------------------------------------------------------------------------------------


def test_stages_are_walked_through_with_histograms(
    run: Run, checkpoint: Path, changed: Path, images: Path
) -> None:
    outcome = run("parity", checkpoint, changed, images / "000001.png", "--stages")
    assert outcome.status == 1
    lines = re.findall(
        r"^([a-z]\S+|[CLP]\d) +(\S+) +(\S+) +(\S+) +([≤≥]) \S+ ([✓✗]) ", outcome.out, re.MULTILINE
    )
    assert [line[0] for line in lines][:3] == ["stem", "layer1.0", "C2"]
    assert len(lines) == 56
    assert next(line[0] for line in lines if line[-1] == "✗") == "P2"
    assert re.search(r"^P2 .* ✗ [ ▁▂▃▅▇]+$", outcome.out, re.MULTILINE)
    assert "\nthe difference first grows at P2: on average " in outcome.out
    assert "\nP2 is the first of 56 tensors outside tolerance: " in outcome.out


def test_bisect_is_one_line(run: Run, checkpoint: Path, changed: Path, images: Path) -> None:
    outcome = run("parity", checkpoint, changed, images / "000001.png", "--bisect")
    assert outcome.status == 1
    assert re.fullmatch(
        r"P2 is the first of 56 tensors outside tolerance: relative error \S+ > 5e-05; before it "
        r"are L2 with 0\.0e\+00 and carafe0 with 0\.0e\+00; between L2, carafe0 and P2: "
        r"neck\.fpn_convs\.0\n",
        outcome.out,
    )


def test_bisecting_equal_artefacts_finds_nothing(
    run: Run, checkpoint: Path, ts_file: Path, images: Path
) -> None:
    outcome = run("parity", checkpoint, ts_file, images / "000001.png", "--bisect")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("all 56 tensors are within tolerance; nearest to it is ")
    assert outcome.out.count("\n") == 1


def test_a_walk_as_json(run: Run, checkpoint: Path, changed: Path, images: Path) -> None:
    arguments = ["parity", checkpoint, changed, images / "000001.png", "--bisect"]
    outcome = run(*arguments, "--json", "-o", "walk.json")
    assert outcome.status == 1
    assert outcome.json == json.loads(Path("walk.json").read_text())
    assert outcome.json["first_outside"] == "P2"
    assert len(outcome.json["steps"]) == 56
    assert StageWalk.from_json(outcome.out).reference == "pytorch fp32 shapes_mask_rcnn_carafe"


def test_artefacts_that_cannot_be_looked_into_have_no_walk(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, inputs: Any) -> Any:
        raise UnsupportedLevelError("x.engine has no intermediate tensors: build it with --stages")

    monkeypatch.setattr("carafe_deploy.runners.torchscript.TorchScriptRunner.run_stages", refuse)
    run("parity", ts_file, ts_file, images / "000001.png", "--bisect").assert_refused(
        "build it with --stages"
    )


def test_bars_are_logarithms() -> None:
    assert bars((0, 1, 10, 100, 1000, 10000)) == " ▁▂▃▅▇"
    assert bars((0, 5, 0)) == " ▇ "
    assert bars((1, 0)) == "▁ "
    assert bars((0, 0)) == "  "


# --- options -------------------------------------------------------------------------------------


def test_average_precision_is_compared(
    run: Run, checkpoint: Path, ts_file: Path, shapes_dir: Path
) -> None:
    data = ["--annotations", shapes_dir / "val.json", "--image-dir", shapes_dir / "val"]
    outcome = run("parity", checkpoint, ts_file, "--levels", "ap", *data, "--limit", 4, "--json")
    assert outcome.status == 0, outcome.err
    assert [row["name"] for row in outcome.json["rows"]] == ["box AP", "mask AP"]
    assert "on 4 images" in outcome.json["rows"][0]["note"]


def test_images_of_the_package_are_the_default(run: Run, ts_file: Path) -> None:
    outcome = run("parity", ts_file, ts_file, "--levels", "detections", "--limit", 2)
    assert outcome.status == 0, outcome.err
    assert "2 images: package:shapes/000001.png, package:shapes/000002.png\n" in outcome.out


def test_other_classes_are_tried_on_images_in_which_the_reference_finds_something(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    config = content["meta"]["config"] if "config" in content["meta"] else content["meta"]["cfg"]
    assert "circle" in config
    text = config.replace("'circle'", "'scratch'").replace("'square'", "'dent'")
    content["meta"]["config" if "config" in content["meta"] else "cfg"] = text
    content["meta"].pop("CLASSES", None)
    own = tmp_path / "own.pth"
    torch.save(content, own)
    outcome = run("parity", own, own, "--levels", "detections")
    assert outcome.status == 0, outcome.err
    assert (
        "4 images: package:chelsea.png, package:shapes/000001.png, package:scene-1" in outcome.out
    )
    assert re.search(r" ([1-9]\d*)/\1 +≥ ", outcome.out)


@pytest.mark.parametrize("option", [(), ("--levels", "detections"), ("--stages",), ("--bisect",)])
def test_a_blank_image_proves_nothing(
    run: Run, ts_file: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    blank = tmp_path / "blank.png"
    save_image(blank, np.zeros((120, 160, 3), np.uint8))
    outcome = run("parity", ts_file, ts_file, "--images", blank, *option)
    assert outcome.status == 1
    assert "PASS" not in outcome.out
    if option in ((), ("--levels", "detections")):
        assert re.search(r"^  boxes and masks .* nothing +≥ \S+ –$", outcome.out, re.MULTILINE)
        assert "NOTHING COMPARED in " in outcome.out
        assert f"carafe-deploy parity {ts_file} {ts_file} --images IMAGES" in outcome.out
    else:
        assert re.search("^nothing to compare in .* of 56 tensors", outcome.out, re.MULTILINE)


def test_names_that_a_shell_expanded_are_images(run: Run, ts_file: Path, images: Path) -> None:
    files = sorted(images.iterdir())
    outcome = run("parity", ts_file, ts_file, "--levels", "detections", "--images", *files)
    assert outcome.status == 0, outcome.err
    assert "3 images: " in outcome.out


def test_a_checkpoint_takes_the_settings_of_the_other_artefact(run: Run, checkpoint: Path) -> None:
    options = ["--max-detections", 7, "--score-threshold", 0.3, "--precision", "bf16"]
    size = ["--min-size", "64x64", "--max-size", "128x192", "--batch", "1-2", "--uint8-input"]
    assert run("export", checkpoint, "-o", "x.ts", *options, *size).status == 0
    with ExitStack() as stack:
        first, second = open_pair(str(checkpoint), "x.ts", "cpu", None, stack)
        assert (first.backend, second.backend) == ("pytorch", "torchscript")
        assert first.info == second.info


@pytest.mark.parametrize(
    ("reference", "candidate", "device", "expected"),
    [
        ("a.onnx", "b.ts", "cuda", [("a.onnx", "cuda", None), ("b.ts", "cuda", True)]),
        # An engine runs on its GPU whatever the other runs on.
        ("a.engine", "b.onnx", "cpu", [("a.engine", None, None), ("b.onnx", "cpu", True)]),
        ("a.engine", "b.onnx", None, [("a.engine", None, None), ("b.onnx", None, True)]),
    ],
)
def test_tf32_is_the_candidates(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reference: str,
    candidate: str,
    device: str | None,
    expected: list[tuple[str, str | None, bool | None]],
) -> None:
    opened = []

    def open_runner(path: Path, **settings: Any) -> Any:
        opened.append((path.name, settings["device"], settings["tf32"]))
        return nullcontext(path)

    monkeypatch.setattr(artefacts, "open_runner", open_runner)
    names = [str(tmp_path / name) for name in (reference, candidate)]
    with ExitStack() as stack:
        open_pair(*names, device, None, stack, tf32=True)
    assert opened == expected


def test_a_file_by_its_bodies_against_itself(run: Run, onnx_file: Path, images: Path) -> None:
    command = ("parity", onnx_file, onnx_file, "--bodies", "--images", images, "--limit", 1)
    outcome = run(*command, "--levels", "operators,detections", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["reference"].startswith("onnxruntime (kernels) fp32")
    assert report["candidate"].startswith("onnxruntime (function bodies) fp32")
    errors = [row["max_abs_error"] for row in report["rows"] if row["name"].startswith("carafe")]
    assert 0 < max(errors) < 1e-4  # two ways to sum, not one against itself


def test_bodies_are_not_compared_with_themselves(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_module, "kernels_for", lambda provider, wanted: None)
    with ExitStack() as stack, pytest.raises(UsageError, match="the kernels cannot be had here"):
        open_pair(str(onnx_file), str(onnx_file), "cpu", None, stack, bodies=True)


def test_config_needs_a_checkpoint(ts_file: Path) -> None:
    with (
        ExitStack() as stack,
        pytest.raises(UsageError, match=r"does not fit: .* a TorchScript file"),
    ):
        open_pair(str(ts_file), str(ts_file), "cpu", Path("config.py"), stack)


def test_levels_left_out_are_named(
    run: Run, ts_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, call: Any, inputs: Any, implementation: str = "") -> Any:
        raise UnsupportedLevelError("x.engine runs as a whole")

    monkeypatch.setattr("carafe_deploy.runners.torchscript.TorchScriptRunner.run_operator", refuse)
    outcome = run("parity", ts_file, ts_file, "--images", images / "000001.png")
    assert outcome.status == 0, outcome.err
    assert "operators not compared: x.engine runs as a whole\n" in outcome.out
    outcome = run("parity", ts_file, ts_file, "--levels", "operators")
    assert (outcome.status, outcome.out) == (2, "")
