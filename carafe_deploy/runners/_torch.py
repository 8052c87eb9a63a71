"""What the two torch backends share: devices, arrays to tensors and back, single operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import carafe_deploy.ops  # noqa: F401  (registers the operators)
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError
from carafe_deploy.runners._memory import keep_freed_memory
from carafe_deploy.runners.base import Array, RunTimes, check_inputs
from carafe_deploy.types import ModelInfo, OperatorCall

__all__ = ["TorchRunner", "resolve_device", "torch_threads"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """``"cpu"``, ``"cuda"`` or ``"cuda:N"`` as a device that exists.

    Raises:
        BackendUnavailableError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendUnavailableError(f"device is {name!r}: give cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise BackendUnavailableError(
                f"device is {name!r}, but torch {torch.__version__} sees {found} CUDA devices: "
                "use --device cpu or install a driver and a CUDA build of torch"
            )
    elif device.type != "cpu":
        raise BackendUnavailableError(f"device is {name!r}: give cpu, cuda or cuda:N")
    return device


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch's number of threads, which is of the whole process; None leaves it as it is.

    Detectors may be so small that more than one costs more than it gains.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchRunner:
    """Runs two callables, one for the outputs, one for outputs and stages.

    With ``channels_last`` images are handed over in that memory format. On the CPU, the process
    keeps memory from one run to the next; see :func:`keep_freed_memory`.
    """

    backend = "torch"

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        forward: Callable[[Tensor, Tensor], Sequence[Tensor]],
        stages: Callable[[Tensor, Tensor], Sequence[Tensor]],
        channels_last: bool = False,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.info = info
        self.inputs = info.input_specs
        self.outputs = info.output_specs
        self._device = device
        self._channels_last = channels_last
        self._forward: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = forward
        self._stages: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = stages

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        return self._call(self._forward, inputs, self.info.output_names)

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        check_inputs(self.info, inputs)
        marks = [self._mark()]
        with torch.inference_mode():
            tensors = self._tensors(inputs)
            marks.append(self._mark())
            begun = time.perf_counter()
            results = self._function(self._forward)(*tensors)
            enqueue = (time.perf_counter() - begun) * 1e3
            marks.append(self._mark())
            arrays = dict(zip(self.info.output_names, map(_array, results), strict=True))
            marks.append(self._mark())
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        upload, compute, download = map(_milliseconds, marks, marks[1:])
        on_gpu = self._device.type == "cuda"
        return arrays, RunTimes(upload, compute, download, enqueue if on_gpu else None)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def module(self) -> Any:
        """What computes the outputs: a ``torch.nn.Module``, or a function where there is none."""
        return self._function(self._forward)

    def prepared(self, inputs: Mapping[str, Array]) -> Callable[[], Sequence[Tensor]]:
        """The forward pass alone: copies to and from the device are not part of it."""
        check_inputs(self.info, inputs)
        module, tensors = self.module, self._tensors(inputs)
        return torch.inference_mode()(lambda: module(*tensors))

    def _mark(self) -> Any:
        """This moment, in the order of the device's work."""
        if self._device.type != "cuda":
            return time.perf_counter()
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        return self._call(self._stages, inputs, (*self.info.output_names, *self.info.stages))

    def run_operator(self, call: OperatorCall, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        operator = getattr(torch.ops.carafe, call.name)
        tensors = [torch.from_numpy(array).to(self._device) for array in inputs]
        if call.name in ("carafe", "carafe_encoded"):
            tensors = [tensor.to(_DTYPES[self.info.precision]) for tensor in tensors]
        elif call.name == "multilevel_roi_align":
            maps = [tensor.to(_DTYPES[self.info.precision]) for tensor in tensors[1:]]
            tensors = [tensors[0], maps]  # type: ignore[list-item]
        with torch.inference_mode():
            results = operator(*tensors, **call.attributes)
        return tuple(map(_array, results if isinstance(results, tuple) else (results,)))

    def _call(
        self, function: Any, inputs: Mapping[str, Array], names: Sequence[str]
    ) -> dict[str, Array]:
        check_inputs(self.info, inputs)
        with torch.inference_mode():
            results = self._function(function)(*self._tensors(inputs))
        return dict(zip(names, map(_array, results), strict=True))

    def _function(self, function: Any) -> Any:
        if function is None:
            raise CarafeDeployError(f"{self.info.name} is closed: open it again")
        return function

    def _tensors(self, inputs: Mapping[str, Array]) -> list[Tensor]:
        """The inputs on the device, in the order of the artefact."""
        tensors = [
            torch.from_numpy(np.ascontiguousarray(inputs[spec.name])).to(self._device)
            for spec in self.inputs
        ]
        if self._channels_last and self.info.input.layout == "nchw_float32":
            tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
        return tensors

    def close(self) -> None:
        """Drop the model; memory on a GPU goes back to the driver."""
        self._forward = self._stages = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _milliseconds(first: Any, second: Any) -> float:
    if isinstance(first, float):
        return (second - first) * 1e3
    return float(first.elapsed_time(second))


def _array(tensor: Tensor) -> Array:
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: Array = tensor.cpu().numpy()
    return array
