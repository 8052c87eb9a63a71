"""What every runner is besides running: open or closed, of one process, one line when printed."""

from __future__ import annotations

import os
from typing import ClassVar, Self

from carafe_deploy.closing import Closing
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.types import ModelInfo

__all__ = ["Lifetime"]


class Lifetime(Closing):
    """Base of the runners. A constructor calls :meth:`_begin` as soon as there is what to free.

    Threads and GPU contexts do not survive a fork: a runner of the parent would wait for ever, or
    worse, so in another process it only says how to do without, and frees nothing when closed.
    """

    backend: str
    info: ModelInfo
    device: str

    #: What a closed runner, and one in another process, raises.
    _error: ClassVar[type[CarafeDeployError]] = CarafeDeployError
    _label = ""
    _process = 0
    _closed = True

    def _begin(self, label: str) -> None:
        """Open from now on; ``label`` names it in messages."""
        self._label, self._process, self._closed = label, os.getpid(), False

    def _check_usable(self) -> None:
        """Refuse what cannot be: every public method begins with this.

        Raises:
            CarafeDeployError: the runner is closed, or was opened in another process.
        """
        if self._closed:
            raise self._error(f"{self._label} is closed: open it again")
        process = os.getpid()
        if process != self._process:
            raise self._error(
                f"{self._label} was opened in process {self._process} and is used in its fork "
                f"{process}, where its threads and its GPU are missing: start processes by spawn "
                '(multiprocessing.get_context("spawn")) and open it in each'
            )

    def _free(self) -> None:
        """Give everything back. Called once, in the process that opened it."""
        raise NotImplementedError

    def close(self) -> None:
        """Free all memory; calling it twice is harmless."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() == self._process:
            self._free()

    def _settings(self) -> tuple[str, ...]:
        """How it runs, where not as usual; for its representation."""
        return ()

    def __repr__(self) -> str:
        info = self.info
        words = [f"{info.architecture} {info.precision}", f"on {self.device}", *self._settings()]
        if self._closed:
            words.append("closed")
        return f"<{type(self).__name__} {self._label}: {', '.join(words)}>"

    def __enter__(self) -> Self:
        self._check_usable()
        return self
