"""What every runner is besides running: open or closed, of one process, one line when printed."""

from __future__ import annotations

import ctypes
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self

from carafe_deploy.errors import CarafeDeployError, RunError, UnsupportedLevelError
from carafe_deploy.runners.base import Array, RunTimes
from carafe_deploy.types import ModelInfo, OperatorCall, TensorSpec

__all__ = ["Lifetime"]

#: Characters of a runtime's message that are told; some name every node of the graph.
_REASON = 300


class Lifetime(ABC):
    """Base of the runners, each of which adds ``run`` and ``_free``.

    A constructor sets ``info`` and ``device`` and calls :meth:`_begin` as soon as there is what to
    free.

    Threads and GPU contexts do not survive a fork: a runner of the parent would wait for ever, or
    worse, so in another process it only says how to do without, and frees nothing when closed.
    """

    backend: str
    info: ModelInfo
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocesses = False
    implementations: tuple[str, ...] = ("",)

    #: What a closed runner, and one in another process, raises.
    _error: ClassVar[type[CarafeDeployError]] = CarafeDeployError
    _label = ""
    _process = 0
    _closed = True

    def _begin(self, label: str) -> None:
        """Open from now on; ``label`` names it in messages."""
        self.inputs, self.outputs = self.info.input_specs, self.info.output_specs
        self._label, self._process, self._closed = label, os.getpid(), False
        _OPEN.add(self)

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """See :class:`~carafe_deploy.runners.base.Runner`; it has ended already."""
        results = self.run(inputs)
        return lambda: results

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`~carafe_deploy.runners.base.Runner`; all of it is computing."""
        begun = time.perf_counter()
        results = self.run(inputs)
        return results, RunTimes(0.0, (time.perf_counter() - begun) * 1e3, 0.0)

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Refuse: it cannot be looked into."""
        self._check_usable()
        raise UnsupportedLevelError(f"{self._label} has no intermediate tensors")

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[Array], implementation: str = ""
    ) -> tuple[Array, ...]:
        """Refuse: it has no operators of its own."""
        self._check_usable()
        raise UnsupportedLevelError(
            f"{self._label} runs as a whole, so {call.name} cannot be run alone: compare its stages"
        )

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

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Inside, whatever the runtime raises names the artefact.

        Raises:
            RunError: it raised something.
        """
        try:
            yield
        except CarafeDeployError:
            raise
        except Exception as error:  # runtimes' own classes share no public base
            raise RunError(
                f"{self._label} fails when it runs ({_reason(error)}): export or build it again, "
                "or give it smaller or fewer images at a time where memory is short"
            ) from error

    @abstractmethod
    def _free(self) -> None:
        """Give everything back. Called once, in the process that opened it."""

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

    def __exit__(self, *exception: object) -> None:
        self.close()


def _reason(error: Exception) -> str:
    """On one line. TorchScript puts its own traceback first, what happened comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1] if lines[0].startswith("The following operation failed") else lines[0]
    return f"{type(error).__name__}: {line.removeprefix('RuntimeError: ')[:_REASON]}"


#: Whatever has been opened in this process and is still there.
_OPEN: weakref.WeakSet[Lifetime] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """In a fork: what frees a runner of the parent waits for threads that are not there."""
    for runner in tuple(_OPEN):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runner))


os.register_at_fork(after_in_child=_keep_for_ever)
