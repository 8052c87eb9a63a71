"""Running commands as a user does, and artefacts to run them on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.cli import main
from carafe_deploy.graph.options import ExportOptions

FASTER = "shapes_faster_rcnn_carafe-2a9d7f44.pth"
MASK = "shapes_mask_rcnn_carafe-fbec7e06.pth"


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The whole of stdout; fails if anything but JSON is there."""
        return json.loads(self.out)

    def assert_refused(self, message: str) -> None:
        """Bad input: status 2, an error with this message, and nothing on stdout."""
        assert (self.status, self.out) == (2, ""), self.err
        assert message in " ".join(self.err.split()) or message in self.err
        assert "Traceback" not in self.err


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


def run_process(
    *arguments: object, cwd: Path, code: str = "", env: dict[str, str] | None = None
) -> Outcome:
    """Run a command in a process of its own.

    Args:
        arguments: of the command.
        cwd: where it runs.
        code: Python to run before.
        env: further environment variables.
    """
    program = f"import sys\n{code}\nfrom carafe_deploy.cli import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


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
def onnx_export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The small Mask R-CNN as a dynamic ONNX file, and what the command said."""
    folder = tmp_path_factory.mktemp("onnx")
    outcome = run_process("export", checkpoint, "--json", cwd=folder)
    return folder / "shapes_mask_rcnn_carafe.onnx", outcome


@pytest.fixture(scope="session")
def onnx_file(onnx_export: tuple[Path, Outcome]) -> Path:
    """The small Mask R-CNN as a dynamic ONNX file."""
    return onnx_export[0]


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
