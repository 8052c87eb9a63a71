from __future__ import annotations

import pytest

from tests.plugins.emulated import EmulatedLibrary, library_path


@pytest.fixture(scope="session")
def library() -> EmulatedLibrary:
    """Kernels that cannot be run are a failure, not something to skip."""
    path = library_path()
    if not path.exists():
        pytest.fail(f"{path} does not exist: build it with `make test-cpp`", pytrace=False)
    return EmulatedLibrary(path)
