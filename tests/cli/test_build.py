"""`carafe-deploy build` and the script that calls it."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.cli.build import runs_here
from carafe_deploy.engine.flavours import PLUGIN_LIBRARY, find_flavour
from carafe_deploy.engine.sidecar import Sidecar
from carafe_deploy.libraries import find_library
from tests.engine.tiny import tiny_info, tiny_model

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]

needs_rtx = pytest.mark.skipif(
    not find_flavour("tensorrt_rtx").is_installed or find_library(PLUGIN_LIBRARY) is None,
    reason="TensorRT-RTX (pip install 'carafe-deploy[rtx]') or make plugins is missing",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "tiny.onnx")


@needs_rtx
def test_json_describes_the_engine(run: Run, model: Path) -> None:
    outcome = run(
        "build", model, "--min", "1x64x64", "--opt", "2x64x128", "--max", "2x128x128",
        "--compute-capability", "8.6, 12.0", "--workspace", "256", "--log", "build.log", "--json",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    result = outcome.json
    assert (result["file"], result["bytes"]) == ("tiny.engine", Path("tiny.engine").stat().st_size)
    assert result["flavour"] == "tensorrt_rtx"
    assert result["compute_capabilities"] == ["8.6", "12.0"]
    assert result["profile"] == {"min": [1, 64, 64], "opt": [2, 64, 128], "max": [2, 128, 128]}
    assert (result["plugin_layers"], result["classes"]) == (1, ["cat", "dog"])
    sidecar = json.loads(Path(result["sidecar"]).read_text())
    assert sidecar["build"]["workspace_bytes"] == 256 << 20
    assert "[VERBOSE]" in Path("build.log").read_text()
    assert sorted(path.name for path in Path().iterdir()) == [
        "build.log", "tiny.engine", "tiny.engine.json"
    ]  # fmt: skip


@needs_rtx
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_inside_tensorrt_ends_it_at_once(
    process: Run, model: Path, tmp_path: Path, name: str, status: int
) -> None:
    """It comes in a callback from C++, where whatever a handler raises is lost."""
    code = (
        "import os, signal\n"
        "from carafe_deploy.engine.progress import Tracker\n"
        f"Tracker.start = lambda *phase: os.kill(os.getpid(), signal.{name})"
    )
    outcome = process("build", model, "-o", "out/x.engine", code=code)
    assert outcome.status == status
    assert outcome.err == ("terminated\n" if status == 143 else "interrupted\n")
    assert list((tmp_path / "out").iterdir()) == []


@needs_rtx
def test_summary_and_next_steps(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carafe_deploy.cli.build.gpu_capability", lambda: None)
    outcome = run("build", model, "-o", "out/x", "--flavour", "tensorrt_rtx", "--stages")
    assert outcome.status == 0, outcome.err
    facts, _, following = outcome.out.partition("next")
    assert "file      out/x.engine (" in facts
    assert "faster_rcnn, 2 classes, fp32" in facts
    assert "min 1×64×64, opt 1×128×256, max 4×192×256" in facts
    assert "1 of them plugins" in facts
    assert [line.strip() for line in following.split("\n")[1:5]] == [
        "carafe-deploy inspect out/x.engine",
        "on a machine with a supported GPU:",
        "carafe-deploy detect out/x.engine IMAGES",
        f"carafe-deploy parity {model} out/x.engine",
    ]


@needs_rtx
@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, False),
        ((8, 9), True),
        ((8, 6), False),  # not built for
        ((9, 0), False),  # later than 8.9, which TensorRT-RTX does not support
        ((12, 0), True),
    ],
)
def test_whether_an_engine_runs_here(
    run: Run, model: Path, capability: tuple[int, int] | None, expected: bool
) -> None:
    sidecar = Sidecar(
        bytes=1, sha256="", flavour="tensorrt_rtx", version="1", compute_capabilities=("8.9+",),
        plugin=None, source={}, profiles=(), stages=False, layers={}, build={}, model=tiny_info(),
    )  # fmt: skip
    assert runs_here(sidecar, capability) == expected


@needs_rtx
def test_a_folder_as_output(run: Run, model: Path) -> None:
    assert run("build", model, "-o", ".", "--json").json["file"] == "tiny.engine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.json", "model.json is truncated, damaged or no ONNX file"),
        (".", ". is a folder: name an .onnx file"),
        (
            "epoch_12.pth",
            "epoch_12.pth is a checkpoint: `carafe-deploy export epoch_12.pth` first makes an ONNX",
        ),
        ("x.ts", "x.ts is a TorchScript file: engines are built from ONNX files, `carafe-deploy "),
        ("x.engine", "x.engine is an engine: engines are built from ONNX files, give the one"),
    ],
)
def test_a_model_that_is_none(run: Run, name: str, message: str) -> None:
    Path("model.json").write_text("{}")  # a suffix that the onnx package would read as text
    run("build", name).assert_refused(f"error: {message}")


def test_without_the_onnx_package_its_extra_is_named(process: Run, model: Path) -> None:
    outcome = process("build", model, code="sys.modules['onnx'] = None")
    assert outcome.status == 2
    assert 'this needs onnx, which is not installed: pip install "carafe-deploy[onnx]"' in (
        outcome.err
    )


@needs_rtx
def test_script(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `run` is asked for because it changes into an empty folder.
    guarded: list[bool] = []
    monkeypatch.setattr("carafe_deploy.termination.guard", lambda: guarded.append(True))
    monkeypatch.setattr("sys.argv", ["build_engine.py", str(model), "-o", "out.engine"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "export" / "build_engine.py"), run_name="__main__")
    assert (done.value.code, guarded) == (0, [True])
    assert {path.name for path in Path().iterdir()} == {"out.engine", "out.engine.json"}
