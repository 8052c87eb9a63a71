"""What the two torch backends share: devices, arrays to tensors and back, single operators."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

import carafe_deploy.ops  # noqa: F401  (registers the operators)
from carafe_deploy.arrays import writable
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.operators import OPERATORS, is_feature_map
from carafe_deploy.raw_images import RawImages, preprocessing_kernels
from carafe_deploy.runners._lifetime import Lifetime
from carafe_deploy.runners._memory import keep_freed_memory
from carafe_deploy.runners._precision import float32_products
from carafe_deploy.runners._torch_images import TorchImages
from carafe_deploy.runners.base import Array, RunTimes, check_inputs, with_tf32
from carafe_deploy.types import DTYPES, ModelInfo, OperatorCall

__all__ = ["TorchRunner", "resolve_device", "torch_threads"]


#: The process in which runners first computed with several threads.
_process_with_threads: int | None = None


def _note_threads() -> None:
    """Refuse to wait for threads that a fork has left behind.

    PyTorch's threads are the process's; a child forked off afterwards believes to have them.

    Raises:
        BackendUnavailableError: runners computed with several threads in a process of which this is
            a fork, and are to do so here.
    """
    global _process_with_threads
    process, threads = os.getpid(), torch.get_num_threads()
    if threads == 1:
        return
    if _process_with_threads is None:
        _process_with_threads = process
    if _process_with_threads != process:
        raise BackendUnavailableError(
            f"PyTorch has computed in process {_process_with_threads}; in its fork {process} it "
            f"would wait for ever for {threads - 1} of its {threads} threads: start processes by "
            'spawn (multiprocessing.get_context("spawn")), or call torch.set_num_threads(1) here'
        )


def resolve_device(name: str) -> torch.device:
    """``"cpu"``, ``"cuda"`` (the thread's current one) or ``"cuda:N"`` as a device that exists.

    Raises:
        BackendUnavailableError: there is no such device here, or this process is a fork in which
            PyTorch would wait for ever.
    """
    _note_threads()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendUnavailableError(f"device is {name!r}: give cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailableError(f"device is {name!r}: give cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        raise BackendUnavailableError(
            f"device is {name!r}, but torch {torch.__version__} sees {found} CUDA devices: "
            "use --device cpu or install a driver and a CUDA build of torch"
        )
    try:
        index = torch.cuda.current_device() if device.index is None else device.index
    except RuntimeError as error:  # the driver fails, or this is a fork of one that used the GPU
        raise BackendUnavailableError(
            f"device {name!r} cannot be used in this process: {str(error).splitlines()[0]}"
        ) from error
    return torch.device("cuda", index)


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


class TorchRunner(Lifetime):
    """Runs two callables, one for the outputs, one for outputs and stages.

    With ``channels_last`` images are handed over in that memory format. On the CPU, the process
    keeps memory from one run to the next; see :func:`keep_freed_memory`. Float32 is computed in
    float32 whatever the process has chosen, or with ``tf32`` in TF32; see
    :func:`~carafe_deploy.runners._precision.float32_products`.
    """

    backend = "torch"

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        forward: Callable[[Tensor, Tensor], Sequence[Tensor]],
        stages: Callable[[Tensor, Tensor], Sequence[Tensor]],
        channels_last: bool = False,
        *,
        tf32: bool = False,
        label: str | None = None,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.info = with_tf32(info) if tf32 else info
        self.device = str(device)
        self._device = device
        self._channels_last = channels_last
        kernels = preprocessing_kernels() if device.type == "cuda" else None
        self.preprocesses = kernels is not None
        self._images = (
            None if kernels is None else TorchImages(device, kernels, channels_last=channels_last)
        )
        self._tf32 = tf32
        # On a GPU one thread at a time: a graph's inputs and outputs are all threads'.
        self._turn: AbstractContextManager[Any] = (
            threading.Lock() if device.type == "cuda" else nullcontext()
        )
        self._forward: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = forward
        self._stages: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = stages
        self._begin(info.name if label is None else label)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        self._check_usable()
        return self._call(self._forward, inputs, self.info.output_names)

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """See :class:`~carafe_deploy.runners.base.Runner`; a GPU is not waited for."""
        if self._device.type != "cuda":
            return super().start(inputs)
        self._check_usable()
        check_inputs(self.info, inputs, raw=self.preprocesses)
        with self._computing(), torch.cuda.device(self._device):
            results = self.module(*self._tensors(inputs, pinned=True))
            # Behind the run in its stream, so that the next one overwrites nothing before.
            copies = list(map(_copied, results))
            end = torch.cuda.Event(blocking=True)
            end.record()

        def finish() -> dict[str, Array]:
            with self._running():
                end.synchronize()
            return dict(zip(self.info.output_names, map(_array, copies), strict=True))

        return finish

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        self._check_usable()
        check_inputs(self.info, inputs, raw=self.preprocesses)
        with self._computing():
            marks = [self._mark()]
            tensors = self._tensors(inputs)
            marks.append(self._mark())
            begun = time.perf_counter()
            results = self.module(*tensors)
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
    def module(self) -> Any:
        """What computes the outputs: a ``torch.nn.Module``, or a function where there is none."""
        self._check_usable()
        return self._forward

    def prepared(self, inputs: Mapping[str, Array]) -> Callable[[], Sequence[Tensor]]:
        """The forward pass alone: copies to and from the device are not part of it."""
        module = self.module
        check_inputs(self.info, inputs, raw=self.preprocesses)
        tensors = self._tensors(inputs)

        def forward() -> Sequence[Tensor]:
            self._check_usable()
            with self._computing():
                results: Sequence[Tensor] = module(*tensors)
                return results

        return forward

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
        self._check_usable()
        return self._call(self._stages, inputs, (*self.info.output_names, *self.info.stages))

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[Array], implementation: str = ""
    ) -> tuple[Array, ...]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        self._check_usable()
        operator = getattr(torch.ops.carafe, call.name)
        dtype = getattr(torch, DTYPES[self.info.precision])
        tensors = [
            _tensor(array).to(self._device, dtype if is_feature_map(call, index) else None)
            for index, array in enumerate(inputs)
        ]
        with self._computing():
            grouped = OPERATORS[call.name].grouped(tensors)
            results = operator(*grouped, **call.attributes)
            return tuple(map(_array, results if isinstance(results, tuple) else (results,)))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Inside, PyTorch computes as this runner shall."""
        _note_threads()
        with self._turn, self._running(), torch.inference_mode(), float32_products(self._tf32):
            yield

    def _call(
        self, function: Any, inputs: Mapping[str, Array], names: Sequence[str]
    ) -> dict[str, Array]:
        check_inputs(self.info, inputs, raw=self.preprocesses)
        with self._computing():
            results = function(*self._tensors(inputs))
            return dict(zip(names, map(_array, results), strict=True))

    def _tensors(self, inputs: Mapping[str, Array], *, pinned: bool = False) -> list[Tensor]:
        """The inputs on the device, in the order of the artefact; by way of pinned memory, which
        torch keeps for the next ones, without waiting for the device.
        """
        tensors = [self._on_device(inputs[spec.name], pinned) for spec in self.inputs]
        if self._channels_last and self.info.input.layout == "nchw_float32":
            tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
        return tensors

    def _on_device(self, given: Array | RawImages, pinned: bool) -> Tensor:
        if isinstance(given, RawImages):
            assert self._images is not None  # or they were refused
            return self._images(given)
        tensor = _tensor(given)
        if pinned:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=pinned)

    def _settings(self) -> tuple[str, ...]:
        return ("channels-last",) * self._channels_last

    def _free(self) -> None:
        """Drop the model; memory on a GPU goes back to the driver."""
        self._forward = self._stages = self._images = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _tensor(array: Array) -> Tensor:
    """On the CPU, over the array's own memory where that is contiguous; not to be written."""
    return torch.from_numpy(writable(np.ascontiguousarray(array)))


def _milliseconds(first: Any, second: Any) -> float:
    if isinstance(first, float):
        return (second - first) * 1e3
    return float(first.elapsed_time(second))


def _copied(tensor: Tensor) -> Tensor:
    """On its way to pinned memory of the host; no half types, which NumPy may lack."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
        tensor, non_blocking=True
    )


def _array(tensor: Tensor) -> Array:
    if tensor.is_floating_point():
        tensor = tensor.float()
    array: Array = tensor.cpu().numpy()
    return array
