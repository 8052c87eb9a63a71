"""What a file is by the suffix of its name, and which command it is for."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["KINDS", "SUFFIXES", "mistaken"]

#: File name suffix -> backend.
SUFFIXES = {
    ".pth": "pytorch",
    ".pt": "pytorch",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".onnx": "onnxruntime",
    ".engine": "tensorrt",
    ".plan": "tensorrt",
}

#: Backend -> what its files are, for people.
KINDS = {
    "pytorch": "a checkpoint",
    "torchscript": "a TorchScript file",
    "onnxruntime": "an ONNX file",
    "tensorrt": "an engine",
}


def mistaken(path: str | os.PathLike[str], wanted: str | None) -> str | None:
    """``"x.onnx is an ONNX file"`` where its suffix says that, and another backend is wanted.

    Args:
        path: the file need not exist.
        wanted: a value of :data:`SUFFIXES`; None where nothing that detects is.

    Returns:
        None where the suffix is that backend's, or says nothing.
    """
    found = SUFFIXES.get(Path(path).suffix.lower())
    return None if found in (None, wanted) else f"{path} is {KINDS[found]}"
