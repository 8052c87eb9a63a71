"""What becomes of an error of one backend: its first line for a row, the rest for whoever asks.

Backends raise what they like: RuntimeError, OSError, classes of their own. None of it may end what
is done with the others. Tracebacks go to the log, at level DEBUG of the logger that has this
module's name; ``carafe-deploy --debug`` shows them.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError

__all__ = ["LOGGER", "Failure", "Outcome", "caught", "failure_of", "first_line"]

#: Name of the logger that tracebacks go to.
LOGGER = __name__


@dataclass(frozen=True)
class Failure:
    """One error: its reason on one line, and its traceback.

    Attributes:
        lacking: this machine lacks a package or a device; nothing is broken.
        foreseen: it is of :mod:`carafe_deploy.errors`, so that the reason names the remedy.
    """

    reason: str
    traceback: str = ""
    lacking: bool = False
    foreseen: bool = False


@dataclass(repr=False)
class Outcome(OneLine):
    """What :func:`caught` tells once its block has ended; None if nothing was raised."""

    failure: Failure | None = None


@contextmanager
def caught() -> Iterator[Outcome]:
    """Turn whatever the block raises into a failure; interrupts and exits pass."""
    outcome = Outcome()
    try:
        yield outcome
    except Exception as error:
        outcome.failure = failure_of(error)


def failure_of(error: Exception) -> Failure:
    """The error as values; its traceback is logged, unless the machine just lacks something."""
    # traceback itself copes with a message that raises.
    text = _writable("".join(traceback.format_exception(error)))
    is_lacking = isinstance(error, (BackendUnavailableError, ModuleNotFoundError))
    if not isinstance(error, BackendUnavailableError):
        logging.getLogger(LOGGER).debug("%s", text.rstrip())
    return Failure(
        reason=first_line(error) + _lost_gpu(),
        traceback=text,
        lacking=is_lacking,
        foreseen=isinstance(error, CarafeDeployError),
    )


def first_line(error: Exception) -> str:
    """What went wrong, on one line; whole sentences where the error is one of ours."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed: pip install {error.name}"
    try:
        text = _writable(str(error))
    except Exception:
        text = "its message cannot be read"
    if isinstance(error, CarafeDeployError):
        return " ".join(text.split())
    return ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])


def _writable(text: str) -> str:
    """Without lone surrogates, which no file takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _lost_gpu() -> str:
    """A kernel that fails makes CUDA refuse all that follows in the process: say so."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception:
        return " (CUDA refuses everything that follows in this process)"
    return ""
