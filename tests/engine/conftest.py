"""TensorRT-RTX and the plugin library, where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from carafe_deploy.engine.flavours import PLUGIN_LIBRARY, Flavour, find_flavour
from carafe_deploy.libraries import find_library


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """TensorRT-RTX, which builds without a GPU."""
    flavour = find_flavour("tensorrt_rtx")
    if not flavour.is_installed:
        pytest.skip("TensorRT-RTX is not installed: pip install 'carafe-deploy[rtx]'")
    return flavour


@pytest.fixture(scope="session")
def plugin_library(rtx: Flavour) -> Path:
    """The plugin library."""
    library = find_library(PLUGIN_LIBRARY)
    if library is None:
        pytest.skip("libcarafe_tensorrt.so is not built: make plugins")
    return library
