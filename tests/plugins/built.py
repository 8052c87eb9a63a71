"""Libraries of the build under test, and processes that load them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def build_folder() -> Path:
    """``build/dev``, or what ``CARAFE_DEPLOY_BUILD`` names."""
    return Path(os.environ.get("CARAFE_DEPLOY_BUILD", ROOT / "build/dev")).absolute()


def built(name: str, folder: str = "lib") -> Path:
    """A file of the build; what cannot be run is a failure, not something to skip."""
    path = build_folder() / folder / name
    if not path.is_file():
        pytest.fail(f"{path} does not exist: build it with `make plugins`", pytrace=False)
    return path


def script(name: str) -> ModuleType:
    """A program of ``plugins/tests``, as a module."""
    folder = ROOT / "plugins/tests"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # they import one another
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own, since what a library registers stays registered."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
