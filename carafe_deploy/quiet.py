"""Calls whose warnings say nothing to whoever runs them, without leaving the process changed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_warnings"]

_LOCK = threading.RLock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings inside, one thread at a time.

    Before Python 3.14, ``warnings.catch_warnings`` exchanges the filters of the whole process: of
    two threads that overlap, the later to leave puts back the other's, and nothing warns any more.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
