"""Deploy detectors trained with CARAFE (arXiv:1905.02188). Importing this needs NumPy only."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__", "onnxruntime_library"]


def onnxruntime_library() -> str:
    """Path of the operators' library for ONNX Runtime 1.20 and newer, see docs/onnxruntime.md.

    With it in a session, an exported file runs by our kernels, without it by its function bodies::

        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(carafe_deploy.onnxruntime_library())

    Raises:
        BackendUnavailableError: it was not built, or is cut short.
    """
    # Not before it is called: the program has to be there soon, see `termination`.
    from carafe_deploy.libraries import check_whole, require_library

    path = require_library("carafe_onnxruntime")
    check_whole(path)
    return str(path)
