"""A backend that breaks on cue: at open, in a certain run, in stages, operators, or at close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carafe_deploy.runners.base import Array, Runner, Wrapper

__all__ = ["ERRORS", "CudaError", "Scripted"]


class CudaError(Exception):
    """As onnxruntime's, it shares no base with anybody's errors."""


#: What backends raise -> what a row says of it.
ERRORS: Mapping[Exception, str] = {
    RuntimeError("CUDA error: misaligned address\nCompile with TORCH_USE_CUDA_DSA"): (
        "RuntimeError: CUDA error: misaligned address"
    ),
    CudaError(
        "[ONNXRuntimeError] : 6 : no memory"
    ): "CudaError: [ONNXRuntimeError] : 6 : no memory",
    OSError("libcudart.so.13: cannot open"): "OSError: libcudart.so.13: cannot open",
    ImportError("undefined symbol: _Z1x"): "ImportError: undefined symbol: _Z1x",
    MemoryError(): "MemoryError",
}


class Scripted(Wrapper):
    """A runner that does what another does, until it raises.

    Args:
        runner: does the work.
        error: what it raises.
        run: the number of the run that fails, and all after it; None for none.
        stages: looking inside fails.
        operators: running a single operator fails.
        close: closing fails, after having closed.
    """

    def __init__(
        self,
        runner: Runner,
        error: Exception,
        *,
        run: int | None = None,
        stages: bool = False,
        operators: bool = False,
        close: bool = False,
    ) -> None:
        super().__init__(runner)
        self._error = error
        self._run, self._stages, self._operators, self._close = run, stages, operators, close
        self.runs = 0
        self.closed = 0

    def _count(self) -> None:
        self.runs += 1
        self._raise_if(self._run is not None and self.runs >= self._run)

    def _raise_if(self, wanted: bool) -> None:
        if wanted:
            raise self._error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._count()
        return super().run(inputs)

    def run_timed(self, inputs: Mapping[str, Array]) -> Any:
        self._count()
        return super().run_timed(inputs)

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._raise_if(self._stages)
        return super().run_stages(inputs)

    def run_operator(self, call: Any, inputs: Any, implementation: str = "") -> tuple[Array, ...]:
        self._raise_if(self._operators)
        return super().run_operator(call, inputs, implementation)

    def close(self) -> None:
        super().close()
        self.closed += 1
        self._raise_if(self._close)
