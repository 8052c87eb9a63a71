"""Pages to look at, and a browser to look with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --complete a skip is an error, but nothing that `make test` sets up has a browser."""
    complete = config.getoption("--complete", default=False)
    if CHROMIUM is None and complete and collection_path.name == "test_chromium.py":
        return True
    return None


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt install chromium")
    return CHROMIUM
