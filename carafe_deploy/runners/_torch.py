"""What the two torch backends share: devices, arrays to tensors and back, single operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import carafe_deploy.ops  # noqa: F401  (registers the operators)
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.runners.base import Array, check_inputs
from carafe_deploy.types import ModelInfo, OperatorCall

__all__ = ["TorchRunner", "one_thread", "resolve_device"]

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
def one_thread() -> Iterator[None]:
    """For detectors so small that PyTorch's threads cost more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchRunner:
    """Runs two callables, one for the outputs, one for outputs and stages."""

    backend = "torch"

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        forward: Callable[[Tensor, Tensor], Sequence[Tensor]],
        stages: Callable[[Tensor, Tensor], Sequence[Tensor]],
    ) -> None:
        self.info = info
        self.inputs = info.input_specs
        self.outputs = info.output_specs
        self._device = device
        self._forward: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = forward
        self._stages: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = stages

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        return self._call(self._forward, inputs, self.info.output_names)

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
            tensors = [
                torch.from_numpy(np.ascontiguousarray(inputs[spec.name])).to(self._device)
                for spec in self.inputs
            ]
            results = function(*tensors)
        return dict(zip(names, map(_array, results), strict=True))

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


def _array(tensor: Tensor) -> Array:
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: Array = tensor.cpu().numpy()
    return array
