"""Fixtures for all tests, and skipping of GPU tests where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from carafe_deploy.data import data_path

TESTS = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small detectors are slower on several threads; tests at full size ask for more."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes_dir() -> Path:
    """Checkpoints, validation images, annotations and mmdetection's detections."""
    return data_path("shapes")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Recorded tensors, key lists and configuration files."""
    return TESTS / "data"


def _no_gpu_reason() -> str | None:
    """Why tests marked ``gpu`` cannot run here, or None where they can."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu``, saying why, on a machine that cannot run them."""
    gpu_items = [item for item in items if "gpu" in item.keywords]
    reason = _no_gpu_reason() if gpu_items else None
    if reason is not None:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
