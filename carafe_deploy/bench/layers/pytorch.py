"""PyTorch's profile by module, or by operator where a model has no modules.

torch.profiler times operators. Hooks make every call of a module a range among them, and the time
of an operator belongs to the innermost range around it. On a GPU that time is what the kernels
took that the operator launched.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from carafe_deploy.bench.record import Layer
from carafe_deploy.errors import UnsupportedLevelError
from carafe_deploy.operators import OPERATORS
from carafe_deploy.runners._torch import TorchRunner
from carafe_deploy.runners.base import Array
from carafe_deploy.types import DOMAIN

__all__ = ["module_rows", "operator_rows"]

#: Name of the range around a forward pass, and how those of modules begin.
_RUN = "carafe_deploy run"
_MODULE = "carafe_deploy module "
#: What a scripted forward pass calls itself.
_SCRIPT = "forward"
#: By the name that torch.profiler calls them.
_CUSTOM = {f"{DOMAIN}::{name}": operator for name, operator in OPERATORS.items()}
#: TorchScript rewrites itself in its first two runs.
_WARMUP = 2


def module_rows(runner: TorchRunner, inputs: Mapping[str, Array], runs: int) -> list[Layer]:
    """One row a module, without its submodules, and one a call of a ``carafe`` operator.

    Raises:
        UnsupportedLevelError: the model does not run eagerly.
    """
    mode = getattr(runner, "mode", "eager")
    if mode != "eager":
        raise UnsupportedLevelError(
            f"mode {mode} leaves no modules to tell apart: profile with --mode eager"
        )
    kinds = {path: type(module).__name__ for path, module in runner.module.named_modules()}
    with _ranges(runner.module):
        passes = _forward_passes(runner, inputs, runs)

    def row_of(event: Any, around: _Row) -> _Row:
        if not event.name.startswith(_MODULE):
            return around
        path = event.name.removeprefix(_MODULE)
        return _Row(path, kinds[path])

    return _aggregated(passes, _Row("", kinds[""]), row_of, "(between modules)", runner)


def operator_rows(runner: TorchRunner, inputs: Mapping[str, Array], runs: int) -> list[Layer]:
    """One row a torch operator that the model calls, and one a call of a ``carafe`` operator."""
    whole = _Row("", _SCRIPT)

    def row_of(event: Any, around: _Row) -> _Row:
        if around != whole or event.name in (_RUN, _SCRIPT):
            return around
        return _Row(event.name, event.name)

    passes = _forward_passes(runner, inputs, runs)
    return _aggregated(passes, whole, row_of, "(between operators)", runner)


class _Row(NamedTuple):
    name: str
    kind: str
    operator: str = ""


# --- recording -----------------------------------------------------------------------------------


@contextmanager
def _ranges(module: nn.Module) -> Iterator[None]:
    """Inside, every call of a submodule is a range of the profile."""
    opened: list[Any] = []
    handles = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            opened.append(record_function(name))
            opened[-1].__enter__()

        return hook

    def leave(module: nn.Module, arguments: Any, result: Any) -> None:
        opened.pop().__exit__(None, None, None)

    try:
        for path, part in module.named_modules():
            if path and not isinstance(part, nn.Identity):
                handles.append(part.register_forward_pre_hook(enter(_MODULE + path)))
                handles.append(part.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_passes(runner: TorchRunner, inputs: Mapping[str, Array], runs: int) -> list[Any]:
    """The profiler's event of each forward pass; those inside hang below it."""
    forward = runner.prepared(inputs)
    for _ in range(_WARMUP):
        forward()
    activities = [ProfilerActivity.CPU]
    if runner.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    with _quiet(), profile(activities=activities) as profiler:
        for _ in range(runs):
            with record_function(_RUN):
                forward()
    return [
        event
        for event in profiler.events()
        if event.name == _RUN and event.device_type.name == "CPU"
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the profiler's library keeps to itself that there is no GPU."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


# --- adding up -----------------------------------------------------------------------------------


def _aggregated(
    passes: Sequence[Any],
    whole: _Row,
    row_of: Callable[[Any, _Row], _Row],
    rest: str,
    runner: TorchRunner,
) -> list[Layer]:
    """Rows from the events of forward passes.

    Args:
        passes: see :func:`_forward_passes`.
        whole: row of what belongs to no other.
        row_of: an event's row, given that of the event around it.
        rest: what to call ``whole``.
        runner: that was profiled.
    """
    own_time = _kernel_time if runner.device.startswith("cuda") else _host_time
    microseconds: dict[_Row, float] = defaultdict(float)

    def add(event: Any, around: _Row, calls: Counter[str]) -> None:
        if around.operator:
            row = around
        elif event.name in _CUSTOM:
            row = _call(event.name, around, calls)
        else:
            row = row_of(event, around)
        microseconds[row] += own_time(event)
        for inner in event.cpu_children:
            add(inner, row, calls)

    for event in passes:
        add(event, whole, Counter())
    return [
        Layer(row.name or rest, row.kind, max(spent, 0.0) / len(passes) / 1e3, row.operator)
        for row, spent in microseconds.items()
    ]


def _call(name: str, around: _Row, calls: Counter[str]) -> _Row:
    """A row of its own for this call within a forward pass, numbered where it is not the first."""
    operator = _CUSTOM[name]
    name = f"{around.name}.{operator.name}".lstrip(".")
    calls[name] += 1
    return _Row(f"{name}_{calls[name] - 1}" if calls[name] > 1 else name, *[operator.onnx_name] * 2)


def _host_time(event: Any) -> float:
    time: float = event.self_cpu_time_total
    return time


def _kernel_time(event: Any) -> float:
    """Without what stands for a range of ours on the GPU, which is no kernel."""
    ours = (_RUN, _MODULE)
    return sum(kernel.duration for kernel in event.kernels if not kernel.name.startswith(ours))
