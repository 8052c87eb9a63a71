"""Libraries of the build under test, and processes that load them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def built(path: str) -> Path:
    """A file of the build's library folder; the test fails where it is missing.

    ``CARAFE_DEPLOY_BUILD`` names another build than ``build/dev``.
    """
    build = Path(os.environ.get("CARAFE_DEPLOY_BUILD", ROOT / "build/dev"))
    library = build.absolute() / "lib" / path
    if not library.is_file():
        pytest.fail(f"{library} does not exist: build it with `make plugins`", pytrace=False)
    return library


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own, since what a library registers stays registered."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
