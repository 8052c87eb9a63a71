"""Memory of a TensorRT engine's inputs and outputs, on the GPU and on the host, by their shapes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.engine.device import Device
from carafe_deploy.errors import ArtefactError
from carafe_deploy.raw_images import RawImages
from carafe_deploy.runners.base import Array

__all__ = ["Binding", "Bindings", "Failure", "Given", "Host"]

#: An input.
Given = Array | RawImages

_Shapes = tuple[tuple[int, ...], ...]
#: Shape and dtype by output.
_Results = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]

#: Name of TensorRT's data type -> how the bytes come to NumPy, which has no bfloat16.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "uint16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}


class Failure(Exception):
    """TensorRT said no; its log says why."""


@dataclass(repr=False)
class Host(OneLine):
    """Memory of one run: bytes of its raw images, what its outputs come into, and its inputs."""

    images: npt.NDArray[np.uint8]
    outputs: dict[str, Array]
    results: _Results = field(default_factory=dict)
    inputs: Mapping[str, Given] = field(default_factory=dict)


@dataclass(repr=False)
class Binding(OneLine):
    """Memory of a run.

    Attributes:
        context: that runs it.
        pointers: device memory by tensor name.
        sizes: bytes of it.
        results: shape and dtype of each output.
        graph: captured, once it is.
        host: page-locked, which no run has now.
    """

    context: Any
    pointers: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    results: _Results = field(default_factory=dict)
    graph: Any = None
    host: list[Host] = field(default_factory=list)


class Bindings:
    """Memory of an engine: one set that grows and serves all shapes, or a few, each of one's own.

    Args:
        engine: as TensorRT deserialised it.
        device: whose current context is the caller's.
        label: of the engine, for messages.
        limit: sets of shapes that have their own; the least recently used goes first.
        own_contexts: shapes have an execution context and addresses of their own, as graphs take,
            which hold on to both.
    """

    def __init__(
        self, engine: Any, device: Device, label: str, limit: int, *, own_contexts: bool
    ) -> None:
        self._engine = engine
        self._device = device
        self._label = label
        self._limit = limit
        self._own_contexts = own_contexts
        self._bindings: OrderedDict[_Shapes, Binding] = OrderedDict()
        self._shared: Binding | None = None
        #: Shapes that the one that is shared is set to.
        self._set: _Shapes | None = None
        #: INPUT or OUTPUT by tensor.
        self.modes: dict[str, str] = {
            name: engine.get_tensor_mode(name).name
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
        }

    def of(self, arrays: Mapping[str, Given]) -> tuple[Binding, bool]:
        """Memory for these shapes, and whether it is new."""
        key = tuple(array.shape for array in arrays.values())
        if self._own_contexts:
            return self._own(key, arrays)
        if self._shared is None:
            self._shared = Binding(self._new_context())
        if key != self._set:
            self._set = None
            self._device.synchronize()  # the context that is to change may still run
            self._fit(self._shared, arrays)
            self._set = key
        return self._shared, False

    def _own(self, key: _Shapes, arrays: Mapping[str, Given]) -> tuple[Binding, bool]:
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key], False
        while len(self._bindings) >= self._limit:
            self._release(self._bindings.popitem(last=False)[1])
        binding = Binding(self._new_context())
        try:
            self._fit(binding, arrays)
        except BaseException:
            self._release(binding)
            raise
        self._bindings[key] = binding
        return binding, True

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise Failure("create an execution context")
        return context

    def _fit(self, binding: Binding, arrays: Mapping[str, Given]) -> None:
        """Memory that is large enough stays."""
        self._set_shapes(binding.context, arrays)
        for name, mode in self.modes.items():
            dtype = self._dtype(name)
            shape = tuple(binding.context.get_tensor_shape(name))
            if mode == "OUTPUT":
                binding.results[name] = (shape, dtype)
            size = max(1, math.prod(shape) * dtype.itemsize)
            if size > binding.sizes.get(name, 0):
                before = binding.pointers.get(name)
                binding.pointers[name] = self._device.allocate(size)
                binding.sizes[name] = size
                if before is not None:
                    self._device.release(before)
        self._set_addresses(binding)

    def tell(self, binding: Binding, arrays: Mapping[str, Given]) -> None:
        """Tell the binding's context shapes and addresses."""
        self._set_shapes(binding.context, arrays)
        self._set_addresses(binding)

    def _set_shapes(self, context: Any, arrays: Mapping[str, Given]) -> None:
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise Failure(f"take {name} of shape {list(array.shape)}")
        unknown = context.infer_shapes()
        if unknown:
            raise Failure(f"infer shapes without {', '.join(unknown)}")

    def _set_addresses(self, binding: Binding) -> None:
        for name, pointer in binding.pointers.items():
            if not binding.context.set_tensor_address(name, pointer):
                raise Failure(f"take an address for {name}")

    def _dtype(self, name: str) -> np.dtype[Any]:
        known = self._engine.get_tensor_dtype(name).name
        if known not in _DTYPES:
            raise ArtefactError(
                f"{self._label} has {name} as {known}, which no detector here has: build it again"
            )
        return np.dtype(_DTYPES[known])

    def _release(self, binding: Binding) -> None:
        self._device.synchronize()
        if binding.graph is not None:
            self._device.discard(binding.graph)
        for pointer in binding.pointers.values():
            self._device.release(pointer)

    def host(self, binding: Binding, num_bytes: int, names: Sequence[str]) -> Host:
        """For one more run with this binding."""
        wanted = {name: binding.results[name] for name in names}
        host = next((one for one in binding.host if one.results == wanted), None)
        if host is None:
            host = Host(np.empty(0, np.uint8), {}, wanted)
        else:
            binding.host.remove(host)
        if len(host.images) < num_bytes:
            host.images = self._device.host_memory(num_bytes)
        for name, (shape, dtype) in wanted.items():
            if name not in host.outputs:
                size = math.prod(shape) * dtype.itemsize
                memory = self._device.host_memory(max(size, 1))[:size]
                host.outputs[name] = memory.view(dtype).reshape(shape)
        return host

    def clear(self) -> None:
        """Free everything."""
        for binding in (*self._bindings.values(), *filter(None, (self._shared,))):
            self._release(binding)
            binding.context = None
        self._bindings.clear()
        self._shared = self._engine = None
