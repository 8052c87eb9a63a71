"""Running commands as a user does, and artefacts to run them on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.cli import main
from carafe_deploy.graph.options import ExportOptions
from tests.process import Outcome, run_process

FASTER = "shapes_faster_rcnn_carafe-2a9d7f44.pth"
MASK = "shapes_mask_rcnn_carafe-fbec7e06.pth"


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command inside this process, in an empty folder of its own."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """Run a command in a process of its own."""

    def call(*arguments: object, **settings: Any) -> Outcome:
        return run_process(*arguments, cwd=tmp_path, **settings)

    return call


@pytest.fixture(scope="session")
def checkpoint(shapes_dir: Path) -> Path:
    """The small Mask R-CNN."""
    return shapes_dir / MASK


@pytest.fixture(scope="session")
def faster_checkpoint(shapes_dir: Path) -> Path:
    """The small Faster R-CNN."""
    return shapes_dir / FASTER


@pytest.fixture(scope="session")
def ts_file(export: Callable[..., Path]) -> Path:
    """The small Mask R-CNN as TorchScript."""
    return export("mask", ".ts")


@pytest.fixture(scope="session")
def blind_file(export: Callable[..., Path]) -> Path:
    """A TorchScript file that finds nothing: no score is higher than 1."""
    return export("mask", ".ts", ExportOptions(score_threshold=1.0))


@pytest.fixture
def images(shapes_dir: Path, tmp_path: Path) -> Path:
    """A folder with the first three validation images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("000001.png", "000002.png", "000003.png"):
        shutil.copy(shapes_dir / "val" / name, folder)
    return folder
