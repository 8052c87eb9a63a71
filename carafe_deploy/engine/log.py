"""TensorRT's messages: the errors for exceptions, everything for a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

#: Called with severity (``"ERROR"``, ``"VERBOSE"``, ...) and message.
Listener = Callable[[str, str], None]

_ERRORS = ("INTERNAL_ERROR", "ERROR")


class Heard:
    """The errors that came while listening."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, severity: str, message: str) -> None:
        """Keep an error."""
        if severity in _ERRORS:
            self.errors.append(message.strip())

    def reason(self) -> str:
        """All errors in one line."""
        return "; ".join(dict.fromkeys(self.errors)) or "TensorRT gave no reason"


class Log(Protocol):
    """A TensorRT logger that tells whoever listens."""

    def listening(self, listener: Listener | None = None) -> Any:
        """Context manager that yields a :class:`Heard`; ``listener`` hears every severity."""
        ...


def make_log(trt: Any) -> Log:
    """A logger for one of TensorRT's modules.

    TensorRT calls it from C++ and from other threads, where an exception would end the process:
    one that a listener raises ends up in silence.
    """

    class Logger(trt.ILogger):
        """Hands every message to whoever listens."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._listeners: list[Listener] = []

        def log(self, severity: Any, message: str) -> None:
            for listener in tuple(self._listeners):
                try:
                    listener(severity.name, message)
                except Exception:
                    self._listeners.remove(listener)

        @contextmanager
        def listening(self, listener: Listener | None = None) -> Iterator[Heard]:
            heard = Heard()
            added: list[Listener] = [heard] if listener is None else [heard, listener]
            self._listeners += added
            try:
                yield heard
            finally:
                self._listeners = [known for known in self._listeners if known not in added]

    logger: Log = Logger()
    return logger
