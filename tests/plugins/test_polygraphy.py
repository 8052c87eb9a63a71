"""polygraphy, which merely dlopens what --plugins names, builds an engine of a trained detector."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from carafe_deploy.graph.options import ExportOptions
from tests.plugins.built import built

PACKAGES = ("polygraphy", "tensorrt_rtx", "tensorrt_rtx_libs")

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in PACKAGES),
    reason="polygraphy or tensorrt_rtx is not installed",
)


def tensorrt_rtx_library() -> Path:
    """NVIDIA's library in its wheel."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("libtensorrt_rtx.so.1")


def convert(
    model: Path, engine: Path, plugins: list[Path], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run ``polygraphy convert`` with TensorRT-RTX."""
    command = [
        sys.executable,
        "-c",
        "import sys; from polygraphy.tools import main; sys.exit(main())",
    ]
    command += ["convert", model, "--convert-to", "trt"]
    command += ["-o", engine, "--plugins", *plugins, *options]
    return subprocess.run(
        command,
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def model(export: Callable[..., Path]) -> Path:
    options = ExportOptions((1, 1), (128, 128), (128, 128))
    return export("mask", ".onnx", options, exporter="dynamo")


def test_engine_of_a_detector_holds_the_plugins(model: Path, tmp_path: Path) -> None:
    engine = tmp_path / "detector.engine"
    register = built("libcarafe_tensorrt_register.so")
    plugins = [tensorrt_rtx_library(), register]
    result = convert(model, engine, plugins, "--compute-capabilities", "8.9")
    assert result.returncode == 0, result.stdout + result.stderr
    plan = engine.read_bytes()
    for plugin in (b"CarafeEncoded", b"MultilevelRoiAlign", b"BatchedNms"):
        assert plugin in plan
    for field in (b"kernel_size", b"finest_scale", b"iou_threshold"):
        assert field in plan


def test_without_tensorrt_named_first_the_reason_is_told(model: Path, tmp_path: Path) -> None:
    engine = tmp_path / "detector.engine"
    result = convert(model, engine, [built("libcarafe_tensorrt_register.so")])
    assert result.returncode != 0
    assert "polygraphy: name its path before this library's in --plugins" in result.stderr
    assert not engine.exists()
