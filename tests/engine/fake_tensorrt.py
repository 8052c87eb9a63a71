"""A TensorRT and a GPU made of NumPy, to drive the runner's own logic without a GPU.

They keep the rules that the runner must obey: memory is addressed by integers and gone once it is
released, copies and executions happen in the order of one stream, outputs have the shape that the
inputs' shapes imply, and a graph replays what was enqueued while it was captured, with the
addresses of then.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from carafe_deploy.engine import device as device_module
from carafe_deploy.engine import flavours
from carafe_deploy.engine.device import Device
from carafe_deploy.engine.profiles import Profile, make_profile, narrowed
from carafe_deploy.engine.sidecar import Sidecar, sidecar_path
from carafe_deploy.types import ModelInfo
from tests.engine.tiny import tiny_info

VERSION = "11.4.0"
PLAN = b"an engine of the fake TensorRT"

#: The GPU's memory: address -> bytes.
Memory = dict[int, bytearray]


class FakeDevice(Device):
    """A GPU of compute capability 8.9."""

    name = "fake"
    stream = 7

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.memory: Memory = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[list[Callable[[], None]]] = []
        self.launches = 0
        self.host_memories = 0
        self.closed = 0
        self.depth = 0
        self.done = 0
        self._next = 4096
        FakeTensorRT.device = self

    @contextmanager
    def current(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def capability(self) -> tuple[int, int]:
        return (8, 9)

    def allocate(self, size: int) -> int:
        assert size > 0
        self._next += 1 << 30  # more than any has
        self.memory[self._next] = bytearray(b"\xff" * size)  # floats of it are no numbers
        return self._next

    def release(self, pointer: int) -> None:
        del self.memory[pointer]

    def upload(self, pointer: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.queue.append(lambda: self._write(pointer, array.tobytes()))  # as it is by then

    def download(self, array: np.ndarray, pointer: int) -> None:
        self.queue.append(lambda: self._read(array, pointer))

    def host_memory(self, size: int) -> np.ndarray:
        self.host_memories += 1
        return np.full(size, 0xFF, np.uint8)

    def _write(self, pointer: int, content: bytes) -> None:
        assert len(content) <= len(self.memory[pointer])
        self.memory[pointer][: len(content)] = content

    def _read(self, array: np.ndarray, pointer: int) -> None:
        content = self.memory[pointer][: array.nbytes]
        array[...] = np.frombuffer(bytes(content), array.dtype).reshape(array.shape)

    def synchronize(self) -> None:
        waiting, self.queue = self.queue, []
        for work in waiting:
            work()
            self.done += 1

    def mark(self) -> list[int]:
        """Filled in with how many tasks were done before it, once it is its turn."""
        event: list[int] = []
        self.queue.append(lambda: event.append(self.done))
        return event

    def wait(self, mark: list[int]) -> None:
        while not mark:
            self.queue.pop(0)()
            self.done += 1

    def intervals(self, marks: list[list[int]]) -> list[float]:
        return [float(second[0] - first[0]) for first, second in itertools.pairwise(marks)]

    def capture(self, enqueue: Callable[[], None]) -> list[Callable[[], None]]:
        assert not self.queue, "work from before the capture would end up in the graph"
        enqueue()
        graph, self.queue = self.queue, []
        self.captured.append(graph)
        return graph

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.launches += 1
        self.queue += graph

    def discard(self, graph: list[Callable[[], None]]) -> None:
        self.captured.remove(graph)

    def close(self) -> None:
        self.closed += 1
        self.memory.clear()


class _Context:
    """Finds one object in each image: a box of its mean, in class 1."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.profiler: object = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        if shape[0] == 3:  # what the profile could have refused
            self._engine.trt.say("ERROR", f"Invalid shape for {name}")
            return False
        return True

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._engine.inputs if spec.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        batch = self._shapes["images"][0]
        if name == "features":
            return (batch, 2)
        return (batch, *self._engine.shapes[name][1:])

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        assert pointer in FakeTensorRT.device.memory
        self._addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        device, addresses, shapes = FakeTensorRT.device, dict(self._addresses), dict(self._shapes)
        assert stream == device.stream
        assert device.depth, "the GPU is not the current one"
        if self._engine.trt.fails:
            self._engine.trt.say("ERROR", "enqueueV3: Error Code 1: Cuda Runtime (out of memory)")
            return False
        device.queue.append(lambda: self._execute(device, addresses, shapes))
        if self.profiler is not None:
            device.synchronize()
            for number, layer in enumerate(self._engine.trt.layers, start=1):
                name = layer["Name"] if isinstance(layer, dict) else layer
                self.profiler.report_layer_time(name, float(number))
        return True

    def _execute(self, device: FakeDevice, addresses: dict, shapes: dict) -> None:
        images = np.empty(shapes["images"], np.float32)
        device._read(images, addresses["images"])
        batch = len(images)
        means = images.mean(axis=(1, 2, 3))
        boxes = np.zeros((batch, 5, 4), np.float32)
        boxes[:, 0] = means[:, None]
        scores = np.zeros((batch, 5), np.float32)
        scores[:, 0] = 0.5
        results = {
            "num_dets": np.ones((batch, 1), np.int32),
            "det_boxes": boxes,
            "det_scores": scores,
            "det_classes": np.ones((batch, 5), np.int32),
            # 1 and 2.5 in bfloat16, whatever the image.
            "features": np.array([[0x3F80, 0x4020]] * batch, np.uint16),
        }
        for name, pointer in addresses.items():
            if name in results:
                device._write(pointer, results[name].tobytes())


class _Engine:
    def __init__(self, trt: FakeTensorRT, info: ModelInfo, stages: tuple[str, ...]) -> None:
        self.trt = trt
        self.inputs = info.input_specs
        self.shapes = {spec.name: spec.shape for spec in info.output_specs}
        self._types = {spec.name: spec.dtype for spec in (*self.inputs, *info.output_specs)}
        self._types.update(dict.fromkeys(stages, "bfloat16"))
        self.num_io_tensors = len(self._types)
        self.contexts = 0

    def get_tensor_name(self, index: int) -> str:
        return list(self._types)[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        inputs = {spec.name for spec in self.inputs}
        return SimpleNamespace(name="INPUT" if name in inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        names = {"float32": "FLOAT", "int32": "INT32", "bfloat16": "BF16"}
        return SimpleNamespace(name=names[self._types[name]])

    def create_engine_inspector(self) -> SimpleNamespace:
        text = json.dumps({"Layers": self.trt.layers, "Bindings": []})
        return SimpleNamespace(get_engine_information=lambda kind: {"JSON": text}[kind])

    def create_execution_context(self) -> _Context:
        self.contexts += 1
        return _Context(self)


class FakeTensorRT(ModuleType):
    """The module ``tensorrt``.

    Attributes:
        info: of the model that every plan holds.
        stages: which are outputs.
        fails: every execution does.
        layers: of every engine, as its inspector tells of them; they take 1, 2, ... ms.
        message: error of a deserialisation that is to fail.
        engine: the last that was opened.
    """

    device: FakeDevice
    __version__ = VERSION

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.info = narrowed(tiny_info(), make_profile(tiny_info()))
        self.stages: tuple[str, ...] = ()
        self.fails = False
        self.layers: list[dict | str] = []
        self.message = ""
        self.engine: _Engine | None = None
        self.logger: object = None
        self.ILogger = type("ILogger", (), {"__init__": lambda self: None})
        self.IProfiler = type("IProfiler", (), {"__init__": lambda self: None})
        self.LayerInformationFormat = SimpleNamespace(JSON="JSON")

    def say(self, severity: str, message: str) -> None:
        self.logger.log(Enum("Severity", severity)[severity], message)

    def Runtime(self, logger: object) -> SimpleNamespace:
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialise)

    def _deserialise(self, plan: bytes) -> _Engine | None:
        assert plan == PLAN
        if self.message:
            self.say("ERROR", self.message)
            return None
        self.engine = _Engine(self, self.info, self.stages)
        return self.engine


def install(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Put the fakes where the real ones would be found."""
    # What is remembered for the process belongs to real modules.
    for name in ("_log", "_load_plugins"):
        original = getattr(flavours, name).__wrapped__
        monkeypatch.setattr(flavours, name, functools.cache(original))
    module = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(device_module, "PACKAGES", {"fake": ("numpy", f"{__name__}:FakeDevice")})
    return module


def write_engine(path: Path, trt: FakeTensorRT, **changes: object) -> Path:
    """An engine file and a sidecar that fit the fakes, but for the changes."""
    settings: dict = {
        "bytes": len(PLAN),
        "sha256": hashlib.sha256(PLAN).hexdigest(),
        "flavour": "tensorrt",
        "version": VERSION,
        "compute_capabilities": ("8.9",),
        "plugin": None,
        "source": {"file": "tiny.onnx", "sha256": "00"},
        "profiles": (Profile((1, 64, 64), (1, 64, 64), (4, 192, 256)),),
        "stages": bool(trt.stages),
        "layers": {},
        "build": {},
        "model": trt.info,
        **changes,
    }
    path.write_bytes(PLAN)
    sidecar_path(path).write_text(Sidecar(**settings).to_json())
    return path
