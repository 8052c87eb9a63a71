"""Eager PyTorch behind the Runner protocol."""

from __future__ import annotations

from carafe_deploy.runners._torch import TorchRunner

__all__ = ["PyTorchRunner"]


class PyTorchRunner(TorchRunner):
    """Runs modules that were built elsewhere; runners know no architectures."""

    backend = "pytorch"
