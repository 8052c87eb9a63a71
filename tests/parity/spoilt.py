"""Runners whose answers or metadata a test has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from carafe_deploy.errors import UnsupportedLevelError
from carafe_deploy.runners.base import Runner
from carafe_deploy.types import ModelInfo, OperatorCall

Tensors = dict[str, np.ndarray]
Spoil = Callable[[Tensors], None]


class Spoilt:
    """Another runner whose results went through a function."""

    def __init__(
        self, runner: Runner, *, run: Spoil | None = None, stages: Spoil | None = None
    ) -> None:
        self.backend, self.info = runner.backend, runner.info
        self.inputs, self.outputs = runner.inputs, runner.outputs
        self.device, self.preprocesses = runner.device, runner.preprocesses
        self.implementations = runner.implementations
        self._runner, self._run, self._stages = runner, run, stages

    def run(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        tensors = self._runner.run(inputs)
        if self._run is not None:
            self._run(tensors)
        return tensors

    def start(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], Tensors]:
        tensors = self.run(inputs)
        return lambda: tensors

    def run_stages(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        tensors = self._runner.run_stages(inputs)
        if self._stages is not None:
            self._stages(tensors)
        return tensors

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[np.ndarray], implementation: str = ""
    ) -> tuple:
        return self._runner.run_operator(call, inputs, implementation)


class WithInfo(Spoilt):
    """Another runner with other metadata."""

    def __init__(self, runner: Runner, info: ModelInfo) -> None:
        super().__init__(runner)
        self.info = info


class Closed(Spoilt):
    """Another runner that cannot be looked into, as engines are."""

    def run_stages(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        raise UnsupportedLevelError("x.engine has no intermediate tensors")

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[np.ndarray], implementation: str = ""
    ) -> tuple:
        raise UnsupportedLevelError("x.engine runs as a whole")
