"""Deploy detectors trained with CARAFE (arXiv:1905.02188). Importing this needs NumPy only."""

from __future__ import annotations

from carafe_deploy.libraries import onnxruntime_library

__version__ = "0.1.0"

__all__ = ["__version__", "onnxruntime_library"]
