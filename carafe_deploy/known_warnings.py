"""Warnings that say nothing to who uses this package; all others are shown."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

#: How a message begins (a regular expression), and why nobody needs to read it.
KNOWN: dict[str, str] = {
    r"`?torch\.jit\.\w+`? is deprecated": "TorchScript is the format that was asked for",
    r"You are using the legacy TorchScript-based ONNX export": "it was asked for by name",
    r"The feature will be removed\. Please remove usage": "that exporter's own use of its parts",
    r"Constant folding - Only steps=1 can be constant folded": "a node more, which runtimes fold",
    r"# The axis name: \w+ will not be used, since it shares the same shape constraints": (
        "images and their sizes share the batch, as they should"
    ),
    r"Detected pickle protocol \d+ in the checkpoint": "what cannot be read is refused by name",
    r"'torch\.load' received a zip file that looks like a TorchScript": "it is refused",
    r"TypedStorage is deprecated": "PyTorch's own reading of files from before 1.6",
    r".*invalid escape sequence": "Windows paths in dumped configs, read as they are",
}

_LOCK = threading.RLock()


@contextlib.contextmanager
def without_known_warnings() -> Iterator[None]:
    """Inside, warnings of :data:`KNOWN` are dropped; others go where they went before.

    One thread at a time: before Python 3.14, ``warnings.catch_warnings`` exchanges the filters of
    the whole process, and of two threads that overlap the later to leave puts back the other's.
    """
    with _LOCK, warnings.catch_warnings():
        for message in KNOWN:
            warnings.filterwarnings("ignore", message)
        yield
