"""The demo, run in full once: what a user sees after `make demo`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy import demo
from carafe_deploy.artefacts import open_runner
from carafe_deploy.cli import main
from carafe_deploy.demo import job
from carafe_deploy.graph import onnx_export, torchscript_export
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import load_image
from carafe_deploy.models.detector import Detector

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    status: int
    result: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, export: Callable[..., Path]) -> Run:
    """Run the demo on both detectors, measuring for short.

    What other tests export as well is not exported again.
    """

    def exporter(suffix: str) -> Callable[..., None]:
        def write(detector: Detector, path: Path, options: ExportOptions, **named: object) -> None:
            kind = "faster" if detector.config.mask is None else "mask"
            assert named["name"] == f"shapes_{kind}_rcnn_carafe"
            shutil.copy(export(kind, suffix, options), path)

        return write

    folder = tmp_path_factory.mktemp("demo")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(job, "BENCH", dataclasses.replace(job.BENCH, rounds=2, block=2))
        patch.setattr(onnx_export, "export_onnx", exporter(".onnx"))
        patch.setattr(torchscript_export, "export_torchscript", exporter(".ts"))
        status = main(["demo", "--out", str(folder), "--json"])
    return Run(status, json.loads(out.getvalue()), folder)


def test_it_passes(run: Run) -> None:
    failed = [
        (report["candidate"], row["level"], row["name"], row["note"])
        for entry in run.result["detectors"]
        for report in entry["parity"]
        for row in report["rows"]
        if not row["passed"]
    ]
    assert failed == []
    assert [entry["passed"] for entry in run.result["detectors"]] == [True, True]
    assert (run.status, run.result["passed"]) == (0, True)


@pytest.mark.parametrize("index", [0, 1], ids=["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("backend", [0, 1, 2], ids=["pytorch", "torchscript", "onnxruntime"])
def test_average_precision_is_mmdetections(
    run: Run, shapes_dir: Path, index: int, backend: int
) -> None:
    name = ("shapes_faster_rcnn_carafe", "shapes_mask_rcnn_carafe")[index]
    recorded = json.loads((shapes_dir / f"{name}.metrics.json").read_text())
    found = run.result["detectors"][index]["backends"][backend]
    assert list(found["numbers"]) == list(recorded)
    for kind, numbers in recorded.items():
        for theirs, ours in (("mAP", "AP"), ("mAP50", "AP50"), ("mAP75", "AP75")):
            assert found["numbers"][kind][ours] == pytest.approx(numbers[theirs], abs=1e-3)
    assert found["recorded"] == recorded["bbox"]["n_dets"]
    assert found["matched"] >= 0.995 * found["recorded"]


@pytest.mark.parametrize("index", [0, 1], ids=["faster_rcnn", "mask_rcnn"])
def test_all_levels_are_compared(run: Run, index: int) -> None:
    entry = run.result["detectors"][index]
    for backend, report in zip(entry["backends"][1:], entry["parity"], strict=True):
        inside = set() if backend["backend"].startswith("tensorrt") else {"operators", "stages"}
        assert {row["level"] for row in report["rows"]} == {"detections", *inside}
        assert report["images"] == demo.PARITY_IMAGES


def test_links_of_the_report_lead_somewhere(run: Run) -> None:
    text = (run.folder / "report.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {"detections.jpg", "report.json"} < links
    assert [link for link in links if not (run.folder / link).is_file()] == []
    assert json.loads((run.folder / "report.json").read_text()) == run.result


def test_pictures_show_images_and_detections(run: Run) -> None:
    assert load_image(run.folder / "detections.jpg").shape[1] > 5 * 160
    for entry in run.result["detectors"]:
        assert len(entry["pictures"]) == demo.PICTURES
        for name in entry["pictures"]:
            # 150 x 100 to 160 x 160 pixels, enlarged.
            assert min(load_image(name).shape[:2]) >= 100 * demo.MAGNIFICATION


def test_exports_can_be_opened(run: Run) -> None:
    for entry in run.result["detectors"]:
        for backend in entry["backends"]:
            with open_runner(backend["file"]) as runner:
                assert runner.backend == backend["backend"]


@pytest.mark.parametrize(("index", "nodes"), [(0, 9), (1, 11)], ids=["faster_rcnn", "mask_rcnn"])
def test_engines_are_built_with_all_plugins(run: Run, index: int, nodes: int) -> None:
    engine = run.result["detectors"][index]["engine"]
    assert (engine["custom_nodes"], engine["plugin_layers"]) == (nodes, nodes)
    sidecar = json.loads(Path(engine["file"] + ".json").read_text())
    assert sidecar["bytes"] == Path(engine["file"]).stat().st_size
    ran = engine["backend"] in [
        backend["backend"] for backend in run.result["detectors"][index]["backends"]
    ]
    assert ran == (not engine["reason"])


def test_nothing_else_is_left(run: Run) -> None:
    checkpoints = sorted(Path(name).stem for name in demo.CHECKPOINTS)
    measured = [path.name for path in run.folder.glob("*.bench.json")]
    assert sorted(measured) == [f"{name}.bench.json" for name in checkpoints]
    assert sorted({path.name for path in run.folder.iterdir()} - set(measured)) == [
        "detections.jpg",
        "faster_rcnn",
        "mask_rcnn",
        "report.html",
        "report.json",
        "report.md",
        *(
            f"shapes_{name}_carafe.{suffix}"
            for name in ("faster_rcnn", "mask_rcnn")
            for suffix in ("engine", "engine.json", "onnx", "ts")
        ),
    ]
