"""Inputs and outputs of a session, kept on a device between runs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from carafe_deploy.runners.base import Array, RunTimes

__all__ = ["Buffers"]

#: ONNX Runtime's name of a type -> NumPy's.
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class Buffers:
    """Runs a session with its inputs and outputs bound to memory of a device.

    Memory of the inputs is kept for the next run of the same sizes. That of the outputs is, too,
    where their sizes are known: then all addresses stay, as a CUDA graph takes for granted.

    Args:
        session: to run; one thread at a time.
        names: of the outputs.
        device: ONNX Runtime's name of the kind of device.
        index: its number.
    """

    def __init__(self, session: Any, names: Sequence[str], device: str, index: int = 0) -> None:
        self._session, self._names = session, tuple(names)
        self._place = device, index
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._lock = threading.Lock()
        known = {value.name: value for value in session.get_outputs()}
        shapes = [known[name].shape for name in self._names]
        if all(isinstance(size, int) for shape in shapes for size in shape):
            for name, shape in zip(self._names, shapes, strict=True):
                dtype = np.dtype(_TYPES[known[name].type])
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    shape, dtype, device, index
                )
                self._outputs[name] = value
                self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Array]) -> tuple[list[Array], RunTimes]:
        """Outputs in order, and what the parts of the run took by the host's clock."""
        with self._lock:
            marks = [time.perf_counter()]
            for name, array in feeds.items():
                self._upload(name, array)
            if not self._outputs:
                self._binding.clear_binding_outputs()
                for name in self._names:
                    self._binding.bind_output(name, *self._place)
            self._binding.synchronize_inputs()
            marks.append(time.perf_counter())
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            marks.append(time.perf_counter())
            results = [np.array(array) for array in self._binding.copy_outputs_to_cpu()]
            marks.append(time.perf_counter())
        return results, RunTimes(*(1e3 * (end - start) for start, end in itertools.pairwise(marks)))

    def _upload(self, name: str, array: Array) -> None:
        kept = self._inputs.get(name)
        if kept is not None and tuple(kept.shape()) == array.shape:
            kept.update_inplace(array)
            return
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._place)
        self._binding.bind_ortvalue_input(name, value)
        self._inputs[name] = value
