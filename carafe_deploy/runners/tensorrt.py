"""Engines of TensorRT and TensorRT-RTX behind the Runner protocol; needs neither torch nor onnx."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from carafe_deploy.backends import BACKENDS
from carafe_deploy.engine.device import Device, choose_backend
from carafe_deploy.engine.load import (
    CheckedEngine,
    check_capability,
    check_engine,
    deserialise,
)
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    EngineError,
    UnsupportedLevelError,
)
from carafe_deploy.raw_images import RawImages, preprocessing_kernels
from carafe_deploy.runners._lifetime import Lifetime
from carafe_deploy.runners._tensorrt_images import EngineImages
from carafe_deploy.runners._tensorrt_memory import Binding, Bindings, Failure, Given, Host
from carafe_deploy.runners._tensorrt_profile import EngineProfile, layer_information, make_profiler
from carafe_deploy.runners.base import Array, RunTimes, check_inputs

__all__ = ["MODES", "TensorRTRunner"]

#: How an engine can be run.
MODES: tuple[str, ...] = BACKENDS["tensorrt"].options["mode"]

_T = TypeVar("_T")


class TensorRTRunner(Lifetime):
    """Runs an engine written by ``build_engine``.

    Args:
        path: of the engine; its sidecar lies beside it.
        device: ``"cuda"`` or ``"cuda:N"``.
        backend: how GPU memory is reached: ``"torch"``, ``"pycuda"`` or ``"cuda-python"``; None
            for the first that is installed.
        mode: one of :data:`MODES`. ``"cuda-graph"`` captures a CUDA graph for each input shape when
            it comes the second time, and launches that from then on. Each such shape takes an
            execution context of its own.
        shapes: of ``"cuda-graph"``: input shapes that are kept, the least recently used goes first.

    Raises:
        ArtefactError: the engine or its sidecar is missing, damaged, or does not fit the
            TensorRT, plugin library or GPU here; the message says what to build again.
        BackendUnavailableError: TensorRT, the plugin library, the backend, the driver or the GPU
            is missing, or the backend cannot capture graphs (pycuda).
    """

    backend = "tensorrt"
    _error = EngineError

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "cuda",
        *,
        backend: str | None = None,
        mode: str = "eager",
        shapes: int = 4,
    ) -> None:
        if shapes < 1:
            raise EngineError(f"shapes is {shapes}: memory for at least one is needed")
        if mode not in MODES:
            raise EngineError(f"mode is {mode!r}: choose from {', '.join(MODES)}")
        index = _index(device)
        checked = check_engine(path)
        self.backend = checked.flavour.name
        self.info = checked.sidecar.computed
        self._path = checked.path
        self._stages = checked.sidecar.stages
        self._plugin = checked.sidecar.plugin
        self._flavour = checked.flavour
        self._log = checked.flavour.log
        self.mode = mode
        self._graphs = mode == "cuda-graph"
        self._shapes = shapes
        self._bindings: Bindings | None = None
        self._engine: Any = None
        self._runtime: Any = None
        kind = choose_backend(backend)
        if self._graphs and not kind.captures_graphs:
            raise BackendUnavailableError(
                f"{kind.name} cannot capture CUDA graphs: use mode eager, or torch or cuda-python "
                "(pip install 'carafe-deploy[cuda-python]')"
            )
        self.device = f"cuda:{index}"
        self._lock = threading.Lock()
        self._device: Device | None = kind(index)
        kernels = preprocessing_kernels()
        self.preprocesses = kernels is not None
        self._images = None if kernels is None else EngineImages(kernels, self._device)
        self._begin(str(self._path))
        try:
            check_capability(checked, self._device.capability())
            self._open(checked)
        except BaseException:
            self.close()
            raise

    def _open(self, checked: CheckedEngine) -> None:
        assert self._device is not None
        with self._device.current():
            self._runtime, self._engine = deserialise(checked)
        self._bindings = Bindings(
            self._engine, self._device, str(self._path), self._shapes, own_contexts=self._graphs
        )
        expected = {spec.name for spec in (*self.inputs, *self.outputs)}
        if self._stages:
            expected |= set(self.info.stages)
        if set(self._bindings.modes) != expected:
            raise ArtefactError(
                f"{self._path} has the tensors {sorted(self._bindings.modes)}, its sidecar says "
                f"{sorted(expected)}: build it again"
            )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        return self._run(inputs, self.info.output_names)

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """See :class:`~carafe_deploy.runners.base.Runner`; the GPU is not waited for."""
        return self._on_device(inputs, self._started)

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        marks: list[Any] = []
        clock: list[float] = []

        def mark(device: Device) -> None:
            marks.append(device.mark())
            clock.append(time.perf_counter())

        results = self._run(inputs, self.info.output_names, mark)
        assert self._device is not None
        with self._device.current():
            upload, compute, download = self._device.intervals(marks)
        return results, RunTimes(upload, compute, download, (clock[2] - clock[1]) * 1e3)

    def profile(self, inputs: Mapping[str, Array], runs: int) -> EngineProfile:
        """Time of every layer, the mean of ``runs`` runs in an execution context of their own.

        One more run before them is left out. No CUDA graph is used.
        """
        return self._on_device(inputs, lambda device, arrays: self._profile(device, arrays, runs))

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`.

        Raises:
            UnsupportedLevelError: the engine was not built with its stages as outputs.
        """
        self._check_usable()
        if not self._stages:
            raise UnsupportedLevelError(
                f"{self._path} has no intermediate tensors: build it with --stages"
            )
        return self._run(inputs, (*self.info.output_names, *self.info.stages))

    def _run(
        self,
        inputs: Mapping[str, Array],
        names: Sequence[str],
        mark: Callable[[Device], None] = lambda device: None,
    ) -> dict[str, Array]:
        return self._on_device(
            inputs, lambda device, arrays: self._execute(device, arrays, names, mark)
        )

    def _on_device(
        self, inputs: Mapping[str, Array], action: Callable[[Device, dict[str, Given]], _T]
    ) -> _T:
        self._check_usable()
        assert self._device is not None
        check_inputs(self.info, inputs, raw=self.preprocesses)
        arrays = {spec.name: _contiguous(inputs[spec.name]) for spec in self.inputs}
        # One thread at a time: memory of a shape, and TensorRT's context, are all threads'.
        with self._lock, self._running(), self._device.current(), self._log.listening() as heard:
            try:
                return action(self._device, arrays)
            except Failure as failure:
                raise EngineError(
                    f"{self._path} failed to {failure}: {heard.reason()}"
                ) from failure

    @property
    def _memory(self) -> Bindings:
        assert self._bindings is not None  # until it is closed
        return self._bindings

    def _execute(
        self,
        device: Device,
        arrays: Mapping[str, Given],
        names: Sequence[str],
        mark: Callable[[Device], None],
    ) -> dict[str, Array]:
        """Run; ``mark`` is called before and after uploading, and before and after downloading."""
        binding, is_new = self._memory.of(arrays)
        results = {name: np.empty(*binding.results[name]) for name in names}
        images = np.empty(_raw_bytes(arrays), np.uint8)
        self._enqueue_all(device, binding, is_new, arrays, Host(images, results), mark)
        device.synchronize()
        return {name: _widened(array) for name, array in results.items()}

    def _started(
        self, device: Device, arrays: Mapping[str, Given]
    ) -> Callable[[], dict[str, Array]]:
        binding, is_new = self._memory.of(arrays)
        host = self._memory.host(binding, _raw_bytes(arrays), self.info.output_names)
        host.inputs = arrays  # they stay until they are copied
        # Behind the run in its stream, so that the next one overwrites nothing before.
        self._enqueue_all(device, binding, is_new, arrays, host)
        end = device.mark()
        results: dict[str, Array] | None = None

        def finish() -> dict[str, Array]:
            nonlocal results
            if results is not None:
                return results
            with self._running(), device.current():
                device.wait(end)
            results = {name: _widened(array.copy()) for name, array in host.outputs.items()}
            host.inputs = {}
            binding.host.append(host)
            return results

        return finish

    def _enqueue_all(
        self,
        device: Device,
        binding: Binding,
        is_new: bool,
        arrays: Mapping[str, Given],
        host: Host,
        mark: Callable[[Device], None] = lambda device: None,
    ) -> None:
        """A run, from the inputs to the host's outputs."""
        mark(device)
        self._upload(device, binding.pointers, arrays, host.images)
        mark(device)
        self._enqueue(device, binding, is_new)
        mark(device)
        for name, array in host.outputs.items():
            if array.size:
                device.download(array, binding.pointers[name])
        mark(device)

    def _upload(
        self,
        device: Device,
        pointers: Mapping[str, int],
        arrays: Mapping[str, Given],
        images: npt.NDArray[np.uint8],
    ) -> None:
        for name, given in arrays.items():
            if isinstance(given, RawImages):
                assert self._images is not None  # or they were refused
                self._images.enqueue(given, pointers[name], images)
            else:
                device.upload(pointers[name], given)

    def _profile(self, device: Device, arrays: Mapping[str, Given], runs: int) -> EngineProfile:
        pointers = self._memory.of(arrays)[0].pointers
        binding = Binding(self._engine.create_execution_context(), pointers)
        if binding.context is None:
            raise Failure("create an execution context")
        self._memory.tell(binding, arrays)
        images = np.empty(_raw_bytes(arrays), np.uint8)
        self._upload(device, pointers, arrays, images)
        trt = self._flavour.load()
        profiler = make_profiler(trt)
        for number in range(runs + 1):
            if not binding.context.execute_async_v3(device.stream):
                raise Failure("run")
            device.synchronize()
            if number == 0:
                binding.context.profiler = profiler
        times = {name: total / runs for name, total in profiler.times.items()}
        nodes = [] if self._plugin is None else self._plugin.layers
        return EngineProfile(
            times,
            layer_information(trt, self._engine),
            {node.name: node.operator for node in nodes},
        )

    # --- execution -------------------------------------------------------------------------------

    def _enqueue(self, device: Device, binding: Binding, is_new: bool) -> None:
        def enqueue() -> None:
            if not binding.context.execute_async_v3(device.stream):
                raise Failure("run")

        # The first run of a shape may allocate, which a graph cannot record.
        if self._graphs and not is_new and binding.graph is None and self._capturable(binding):
            device.synchronize()
            binding.graph = device.capture(enqueue)
        if binding.graph is None:
            enqueue()
        else:
            device.launch(binding.graph)

    def _capturable(self, binding: Binding) -> bool:
        """TensorRT-RTX still compiles kernels in the first runs, and says when it is done."""
        ask = getattr(binding.context, "is_stream_capturable", None)
        return ask is None or self._device is None or bool(ask(self._device.stream))

    def _settings(self) -> tuple[str, ...]:
        return (self.mode,) * (self.mode != "eager")

    def _free(self) -> None:
        device, self._device = self._device, None
        assert device is not None
        with device.current():
            if self._bindings is not None:
                self._bindings.clear()
            self._bindings = self._engine = self._runtime = self._images = None
        device.close()


def _index(device: str) -> int:
    name, _, number = device.partition(":")
    if name != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise BackendUnavailableError(f"device is {device!r}: engines run on cuda or cuda:N")
    return int(number or 0)


def _contiguous(given: Given) -> Given:
    return given if isinstance(given, RawImages) else np.ascontiguousarray(given)


def _raw_bytes(arrays: Mapping[str, Given]) -> int:
    """That the images have before they are preprocessed."""
    return sum(
        image.nbytes
        for given in arrays.values()
        if isinstance(given, RawImages)
        for image in given.images
    )


def _widened(array: Array) -> Array:
    """float32 from half precision; other types as they are."""
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
