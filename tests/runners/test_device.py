"""Ways to GPU memory: choice, errors without a GPU, and the same behaviour of each on one."""

from __future__ import annotations

import inspect
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from carafe_deploy.backends import load
from carafe_deploy.engine import device as device_module
from carafe_deploy.engine._device_cuda_python import CudaPythonDevice
from carafe_deploy.engine._device_pycuda import PyCudaDevice
from carafe_deploy.engine._device_torch import TorchDevice
from carafe_deploy.engine.device import PACKAGES, Device, choose_backend, open_device
from carafe_deploy.errors import BackendUnavailableError, EngineError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


def _install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(device_module, "_is_installed", lambda module: module in names)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        (("torch", "pycuda", "cuda.bindings"), TorchDevice),
        (("pycuda", "cuda.bindings"), PyCudaDevice),
        (("cuda.bindings",), CudaPythonDevice),
    ],
)
def test_the_first_installed_backend_is_the_default(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], expected: type[Device]
) -> None:
    _install(monkeypatch, *installed)
    assert choose_backend() is expected
    for name, (module, kind) in PACKAGES.items():
        if module in installed:
            assert choose_backend(name) is load(kind)


def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch)
    with pytest.raises(BackendUnavailableError, match=r"none of .* is installed: .*\[cuda-python"):
        choose_backend()
    with pytest.raises(BackendUnavailableError, match=r"pycuda is not installed: .*\[pycuda\]"):
        choose_backend("pycuda")
    with pytest.raises(BackendUnavailableError, match="'cupy': choose from torch, pycuda, cuda-py"):
        choose_backend("cupy")


def test_a_package_whose_parent_is_missing_is_not_installed() -> None:
    assert device_module._is_installed("no_such_package.inside") is False
    assert device_module._is_installed("json") is True


@no_gpu
@pytest.mark.parametrize("name", ["torch", "cuda-python"])
def test_without_a_gpu_the_message_says_so(name: str) -> None:
    if not device_module._is_installed(PACKAGES[name][0]):
        pytest.skip(f"{PACKAGES[name][0]} is not installed")
    with pytest.raises(BackendUnavailableError, match=r"an NVIDIA GPU and its driver, .*nvid"):
        open_device(backend=name)


def test_every_backend_has_every_call() -> None:
    calls = {
        name
        for name, member in inspect.getmembers(Device, inspect.isfunction)
        if "NotImplementedError" in inspect.getsource(member)
    }
    assert {"capture", "upload", "synchronize"} <= calls
    graphs = {"capture", "launch", "discard"}
    for kind in (load(name) for _, name in PACKAGES.values()):
        assert calls - set(vars(kind)) == (set() if kind.captures_graphs else graphs)


# --- NVIDIA's bindings, with a CUDA runtime that only keeps a record ------------------------------


class _Runtime:
    """As much of ``cuda.bindings.runtime`` as there are calls, each of which succeeds."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9
    )

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.status = 0
        self.host = np.zeros(64, np.uint8)

    def __getattr__(self, name: str):
        results = {
            "cudaGetDeviceCount": 2,
            "cudaGetDevice": 0,
            "cudaStreamCreateWithFlags": 70,
            "cudaMalloc": 4096,
            "cudaMallocHost": self.host.ctypes.data,
            "cudaEventCreateWithFlags": "event",
            "cudaStreamEndCapture": "graph",
            "cudaGraphInstantiate": "executable",
            "cudaGetErrorString": b"out of memory",
        }

        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == "cudaDeviceGetAttribute":
                return 0, arguments[0]
            if name == "cudaGetErrorString":
                return 0, results[name]
            status = self.status
            return (status, results[name]) if name in results else (status,)

        call.__name__ = name
        return call


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> _Runtime:
    fake = _Runtime()
    package = SimpleNamespace(runtime=fake)
    for name, module in (("cuda", SimpleNamespace(bindings=package)), ("cuda.bindings", package)):
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_cuda_python_makes_the_calls_in_order(runtime: _Runtime) -> None:
    array = np.arange(4, dtype=np.float32)
    with CudaPythonDevice(1) as device:
        assert (device.stream, device.capability()) == (70, (8, 9))
        pointer = device.allocate(16)
        device.upload(pointer, array)
        graph = device.capture(lambda: runtime.calls.append(("work",)))
        device.launch(graph)
        device.download(array, pointer)
        device.synchronize()
        device.discard(graph)
        with device.current():
            runtime.calls.append(("work",))
        start = [call[0] for call in runtime.calls].index("cudaMalloc")
    assert runtime.calls[start:] == [
        ("cudaMalloc", 16),
        ("cudaMemcpyAsync", 4096, array.ctypes.data, 16, "up", 70),
        ("cudaStreamBeginCapture", 70, "thread"),
        ("work",),
        ("cudaStreamEndCapture", 70),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),
        ("cudaGraphLaunch", "executable", 70),
        ("cudaMemcpyAsync", array.ctypes.data, 4096, 16, "down", 70),
        ("cudaStreamSynchronize", 70),
        ("cudaGraphExecDestroy", "executable"),
        ("cudaGetDevice",),
        ("cudaSetDevice", 1),
        ("work",),
        ("cudaSetDevice", 0),
        ("cudaFree", 4096),
        ("cudaStreamDestroy", 70),
    ]


def test_cuda_python_frees_memory_of_the_host_with_its_last_array(runtime: _Runtime) -> None:
    with CudaPythonDevice() as device:
        memory = device.host_memory(64)[8:40].view(np.float32)
        memory[:] = 3
        device.wait(device.mark())
    assert runtime.host[8:40].view(np.float32).tolist() == [3] * 8
    assert ("cudaEventSynchronize", "event") in runtime.calls
    assert runtime.calls.count(("cudaEventDestroy", "event")) == 1
    free = ("cudaFreeHost", runtime.host.ctypes.data)
    assert free not in runtime.calls
    del memory
    assert runtime.calls[-1] == free


def test_cuda_python_ends_a_capture_that_fails(runtime: _Runtime) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with CudaPythonDevice() as device:
        with pytest.raises(ZeroDivisionError):
            device.capture(fail)
        assert runtime.calls[-1] == ("cudaStreamEndCapture", 70)


def test_cuda_python_turns_a_status_into_an_error(runtime: _Runtime) -> None:
    with CudaPythonDevice() as device:
        runtime.status = 2
        with pytest.raises(EngineError, match="cudaMalloc failed on the GPU: out of memory"):
            device.allocate(1 << 40)
        runtime.status = 0
    with pytest.raises(BackendUnavailableError, match="device 2 cannot be opened: there are 2"):
        CudaPythonDevice(2)


def test_the_calls_exist_in_nvidias_bindings() -> None:
    module = pytest.importorskip("cuda.bindings.runtime")
    source = inspect.getsource(CudaPythonDevice)
    names = set(re.findall(r"\bcuda[A-Z]\w+", source))
    assert len(names) > 20
    enums = (
        module,
        module.cudaMemcpyKind,
        module.cudaStreamCaptureMode,
        module.cudaDeviceAttr,
        module.cudaError_t,
    )
    assert [name for name in names if not any(hasattr(place, name) for place in enums)] == []


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(PACKAGES))
def test_arrays_come_back_as_they_went(name: str) -> None:
    if not device_module._is_installed(PACKAGES[name][0]):
        pytest.skip(f"{PACKAGES[name][0]} is not installed")
    sent = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    with open_device(backend=name) as device, device.current():
        assert device.capability() == torch.cuda.get_device_capability(0)
        assert device.stream != 0
        pointer = device.allocate(1000)
        device.upload(pointer, sent)
        received = np.zeros_like(sent)
        device.download(received, pointer)
        pinned = device.host_memory(sent.nbytes).view(np.float32).reshape(sent.shape)
        device.download(pinned, pointer)
        device.wait(device.mark())
        np.testing.assert_array_equal(pinned, sent)
        device.synchronize()
        device.release(pointer)
    np.testing.assert_array_equal(received, sent)
