from __future__ import annotations

import pytest

from tests.plugins.emulated import EmulatedLibrary, built_emulator


@pytest.fixture(scope="session")
def library() -> EmulatedLibrary:
    return built_emulator()
