"""How checkpoints and engines are run: --mode and --layout reach the runner, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy import artefacts
from carafe_deploy.cli.common import Layout, Mode, open_artefact
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.pth", {}, {}),
        ("a.pth", {"layout": Layout.nchw}, {"channels_last": False}),
        ("a.pth", {"layout": Layout.channels_last}, {"channels_last": True}),
        ("a.pth", {"mode": Mode.compile}, {"mode": "compile"}),
        ("a.pth", {"mode": Mode.cuda_graph, "tf32": True}, {"mode": "cuda-graph", "tf32": True}),
        ("a.engine", {}, {}),
        ("a.engine", {"mode": Mode.cuda_graph}, {"mode": "cuda-graph"}),
        ("a.plan", {"mode": Mode.eager}, {"mode": "eager"}),
        ("a.onnx", {"bodies": True}, {"operators": False}),
        ("a.onnx", {"mode": Mode.cuda_graph}, {"mode": "cuda-graph"}),
    ],
)
def test_what_the_runner_is_opened_with(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    path = tmp_path / name
    path.touch()
    opened: dict[str, Any] = {}
    monkeypatch.setattr(artefacts, "open_runner", lambda path, **settings: opened.update(settings))
    open_artefact(str(path), "cuda", None, **options)
    given = {option: value for option, value in opened.items() if value is not None}
    assert given == {"device": "cuda", **expected}


@pytest.mark.parametrize("command", ["detect", "eval"])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", ("--mode", "cuda-graph"), "cuda-graph needs a GPU, device is cpu: give --dev"),
        ("a.onnx", ("--mode", "compile"), "--mode compile does not fit: a.onnx is an ONNX file"),
        ("a.ts", ("--bodies",), "--bodies does not fit: a.ts is a TorchScript file, which takes"),
        ("a.ts", ("--mode", "cuda-graph"), "--mode cuda-graph does not fit: a.ts is a TorchScript"),
        ("a.engine", ("--mode", "compile"), "--mode compile does not fit: a.engine is an engine"),
        ("a.ts", ("--layout", "nchw"), "--layout nchw does not fit: a.ts is a TorchScript file"),
        ("a.onnx", ("--config", "x.py"), "--config x.py does not fit: a.onnx is an ONNX file"),
        ("a.engine", ("--tf32",), "--tf32 does not fit: a.engine is an engine, which takes mode"),
        ("a.engine", ("--device", "cpu"), "--device cpu does not fit: a.engine is an engine"),
        ("a.onnx", ("--tf32",), "tf32 needs a GPU, device is cpu: give --device cuda"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Run,
    shapes_dir: Path,
    tmp_path: Path,
    command: str,
    name: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    path = tmp_path / name
    path.touch()
    data: tuple[object, ...] = (shapes_dir / "val",)
    if command == "eval":
        data = ("--annotations", shapes_dir / "val.json", "--images", shapes_dir / "val")
    run(command, path, *data, *options).assert_refused(message)


def test_both_layouts_find_the_same(run: Run, checkpoint: Path, shapes_dir: Path) -> None:
    image = sorted((shapes_dir / "val").iterdir())[0]
    found = {}
    for layout in ("nchw", "channels-last"):
        outcome = run("detect", checkpoint, image, "--layout", layout, "--json")
        assert outcome.status == 0, outcome.err
        found[layout] = json.loads(outcome.out)["annotations"]
    assert len(found["nchw"]) > 0
    for first, second in zip(found["nchw"], found["channels-last"], strict=True):
        assert first["category_id"] == second["category_id"]
        assert first["score"] == pytest.approx(second["score"], abs=1e-4)
        assert first["bbox"] == pytest.approx(second["bbox"], abs=0.05)


def test_torchscript_in_nchw(run: Run, checkpoint: Path) -> None:
    import torch

    assert (
        run("export", checkpoint, "-o", "x.ts", "--layout", "nchw", "--size", "64x64").status == 0
    )
    weights = [p for p in torch.jit.load("x.ts").parameters() if p.dim() == 4]
    assert all(weight.is_contiguous() for weight in weights)
