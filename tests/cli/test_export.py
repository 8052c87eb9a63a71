"""`carafe-deploy export` and the scripts that call it."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from carafe_deploy.graph import torchscript_export
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.graph.torchscript_export import export_torchscript
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
from carafe_deploy.runners.torchscript import TorchScriptRunner
from carafe_deploy.types import METADATA_KEY, ModelInfo

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
#: Fast: smallest size, and for ONNX the older exporter.
SMALL = ("--size", "64x64")
QUICK = (*SMALL, "--exporter", "torchscript")


def test_json_describes_the_file(onnx_export: tuple[Path, Any], checkpoint: Path) -> None:
    path, outcome = onnx_export
    assert outcome.status == 0, outcome.err
    result = outcome.json
    assert (result["file"], result["bytes"]) == (path.name, path.stat().st_size)
    assert result["opset"] == onnx.load(path).opset_import[0].version
    assert result["bounds"] == {"batch": [1, 8], "height": [64, 192], "width": [64, 192]}
    assert result["inputs"][0] == {
        "name": "images",
        "shape": ["batch", 3, "64*height", "64*width"],
        "dtype": "float32",
    }
    assert [spec["name"] for spec in result["outputs"]][-1] == "det_masks"
    assert result["source"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_steps_and_times_go_to_stderr(onnx_export: tuple[Path, Any]) -> None:
    lines = onnx_export[1].err.splitlines()
    assert [line.split()[1] for line in lines] == [
        "read", "load", "prepare", "trace", "attach", "check", "write"
    ]  # fmt: skip
    assert all(line.startswith("✓ ") and line.endswith(" s") for line in lines)


def test_summary_and_next_steps(run: Run, checkpoint: Path) -> None:
    outcome = run("export", checkpoint, "-o", "small.onnx", *QUICK)
    assert outcome.status == 0, outcome.err
    facts, _, following = outcome.out.partition("next")
    assert "file     small.onnx (" in facts
    assert "mask_rcnn, 3 classes, fp32" in facts
    assert "onnx, opset 18, torchscript exporter" in facts
    assert "batch 1, height 64, width 64" in facts
    assert [line.strip() for line in following.split("\n")[1:4]] == [
        "carafe-deploy detect small.onnx IMAGES",
        f"carafe-deploy parity {checkpoint} small.onnx",
        "carafe-deploy eval small.onnx --annotations instances.json --images IMAGES",
    ]


def test_options_reach_the_file(run: Run, checkpoint: Path) -> None:
    options = ["--score-threshold", "0.2", "--nms-iou", "0.4", "--max-detections", "7"]
    outcome = run("export", checkpoint, "-o", "x.onnx", *QUICK, *options, "--uint8-input")
    assert outcome.status == 0, outcome.err
    with OnnxRuntimeRunner("x.onnx") as runner:
        info = runner.info
    assert (info.score_threshold, info.nms_iou_threshold, info.max_detections) == (0.2, 0.4, 7)
    assert info.input.layout == "nhwc_uint8"


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    """What exporters returned and wrote."""
    return {}


@pytest.fixture
def traced(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One trace serves all TorchScript files here, which differ in their names only."""

    def write(detector: Any, path: Path, options: Any, **settings: Any) -> Any:
        chosen = repr((options, settings["source"]))
        if chosen not in files:
            info = export_torchscript(detector, path, options, **settings)
            files[chosen] = info, path.read_bytes()
        info, content = files[chosen]
        path.write_bytes(content)
        return info

    monkeypatch.setattr(torchscript_export, "export_torchscript", write)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "torchscript"], "shapes_mask_rcnn_carafe.ts"),
        (["-o", "a.ts"], "a.ts"),
        (["-o", "b.torchscript"], "b.torchscript"),
        (["-o", "c", "--format", "torchscript"], "c.ts"),
        (["-o", ".", "--format", "torchscript"], "shapes_mask_rcnn_carafe.ts"),
    ],
)
def test_names_of_torchscript_files(
    run: Run, checkpoint: Path, traced: None, arguments: list[str], expected: str
) -> None:
    outcome = run("export", checkpoint, *SMALL, *arguments, "--json")
    assert outcome.status == 0, outcome.err
    assert (outcome.json["file"], outcome.json["opset"]) == (expected, None)
    with TorchScriptRunner(expected) as runner:
        assert runner.info.name == "shapes_mask_rcnn_carafe"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "x.onnx",
            "x.onnx is an ONNX file, which is exported already: give the .pth checkpoint, or "
            "`carafe-deploy build x.onnx` to make an engine of it",
        ),
        ("x.TS", "x.TS is a TorchScript file, which is exported already: give the .pth checkpoint"),
        ("a/x.engine", "a/x.engine is an engine, which is exported already: give the .pth"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_what_is_no_checkpoint_by_its_suffix(
    run: Run, name: str, message: str, exists: bool
) -> None:
    if exists:
        Path("a").mkdir()
        Path(name).write_bytes(b"\x08\x0a")
    outcome = run("export", name)
    outcome.assert_refused(f"error: {message}")
    assert "again" not in outcome.err


def test_bfloat16_comes_with_a_note(
    run: Run, checkpoint: Path, export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(detector: Any, path: Path, options: ExportOptions, **settings: Any) -> ModelInfo:
        assert settings["exporter"] == "dynamo"
        content = export("mask", ".onnx", options).read_bytes()
        path.write_bytes(content)
        [entry] = [e for e in onnx.load(path).metadata_props if e.key == METADATA_KEY]
        return ModelInfo.from_json(entry.value, "it")

    monkeypatch.setattr("carafe_deploy.graph.onnx_export.export_onnx", write)
    monkeypatch.setattr("carafe_deploy.cli.export.gpu_capability", lambda: None)
    outcome = run("export", checkpoint, "-o", "x.onnx", *SMALL, "--precision", "bf16")
    assert outcome.status == 0, outcome.err
    assert "ONNX Runtime's CPU has no bfloat16 Conv" in outcome.out
    following = [line.strip() for line in outcome.out.split("next")[1].splitlines()]
    assert following[1:3] == [
        "on a machine with a GPU:", "carafe-deploy detect x.onnx IMAGES --device cuda"
    ]  # fmt: skip


def test_a_published_model_that_cannot_be_fetched(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CARAFE_DEPLOY_ZOO_URL", "http://127.0.0.1:9/")  # nothing listens there
    run("export", "mask_rcnn_r50_fpn_carafe_1x_coco").assert_refused(
        "cannot fetch mask_rcnn_r50_fpn_carafe_1x_coco: no connection"
    )
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [("export_onnx.py", "out.onnx"), ("export_torchscript.py", "out.ts")],
)
def test_scripts(
    script: str, expected: str, run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `run` is asked for because it changes into an empty folder.
    exporter = ["--exporter", "torchscript"] if script == "export_onnx.py" else []
    words = [script, str(checkpoint), "-o", "out", *SMALL, *exporter]
    guarded: list[bool] = []
    monkeypatch.setattr("carafe_deploy.termination.guard", lambda: guarded.append(True))
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "export" / script), run_name="__main__")
    assert (done.value.code, guarded) == (0, [True])
    assert [path.name for path in Path().iterdir()] == [expected]
