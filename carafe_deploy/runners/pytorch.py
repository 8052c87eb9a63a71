"""PyTorch behind the Runner protocol: eager, compiled, as CUDA graphs, or both."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.backends import MODES
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError
from carafe_deploy.ops._kernels import ENVIRONMENT_VARIABLE, kernel_library
from carafe_deploy.runners._torch import TorchRunner
from carafe_deploy.types import ModelInfo

__all__ = ["MODES", "PyTorchRunner"]

#: Input shapes that models of a process are compiled for.
SHAPES = 64

_Forward = Callable[[Tensor, Tensor], Sequence[Tensor]]


class PyTorchRunner(TorchRunner):
    """Runs modules that were built elsewhere; runners know no architectures.

    Args:
        info: of the model.
        device: where its weights are.
        forward: images and image sizes in, outputs out.
        stages: the same with intermediate tensors; always run eagerly.
        mode: one of :data:`MODES`. ``"compile"`` compiles for every input shape
            (:func:`torch.compile`), ``"cuda-graph"`` captures a graph for each, and
            ``"compile-graph"`` compiles and then captures; the first run of a shape takes that
            long, with a compiler half a minute.
        channels_last: images are handed over in that memory format; the weights should have it.
        tf32: on a GPU, let float32 convolutions and matrix products round their factors to 10 bits
            of mantissa.
        label: names the runner in messages; None for the model's name.

    Raises:
        BackendUnavailableError: CUDA graphs were asked for on another device, or the operators have
            no CUDA kernels; in plain PyTorch they wait for the device, which no graph can hold. Or
            the detector is to be compiled for a GPU, and Triton or a C compiler is not there.
        CarafeDeployError: there is no such mode, or ``tf32`` and another precision than fp32.
    """

    backend = "pytorch"

    def __init__(
        self,
        info: ModelInfo,
        device: torch.device,
        forward: _Forward,
        stages: _Forward,
        *,
        mode: str = "eager",
        channels_last: bool = False,
        tf32: bool = False,
        label: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise CarafeDeployError(f"mode is {mode!r}: choose from {', '.join(MODES)}")
        is_compiled, is_graph = mode.startswith("compile"), mode.endswith("graph")
        if is_graph and device.type != "cuda":
            raise BackendUnavailableError(
                f"mode {mode} needs a GPU, device is {device.type}: give --device cuda"
            )
        if is_graph:
            _need_kernels(mode)
        if is_compiled:
            if device.type == "cuda":
                _need_compiler(mode)
            # Beyond torch's limit of 8 shapes a model would run eagerly; with fullgraph it fails.
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, SHAPES)
            forward = torch.compile(forward, dynamic=False, fullgraph=True)
        if is_graph:
            forward = _Graphed(forward)
        self.mode = mode
        super().__init__(info, device, forward, stages, channels_last, tf32=tf32, label=label)

    def _settings(self) -> tuple[str, ...]:
        return (*(self.mode,) * (self.mode != "eager"), *super()._settings())


def _need_kernels(mode: str) -> None:
    library = kernel_library()
    if library is None or not library.has_cuda:
        found = (
            f"there is none, or {ENVIRONMENT_VARIABLE} switches it off"
            if library is None
            else f"{library.path} is for CPUs only"
        )
        raise BackendUnavailableError(
            f"mode {mode} needs libcarafe_kernels.so with CUDA kernels, {found}: build it with "
            "`make plugins`, or choose mode eager"
        )


def _need_compiler(mode: str) -> None:
    """Triton compiles the kernels, and a C compiler what launches them."""
    if importlib.util.find_spec("triton") is None:
        raise BackendUnavailableError(
            f"mode {mode} needs Triton on a GPU, and it is not installed: pip install triton, or "
            "choose mode cuda-graph"
        )
    named = os.environ.get("CC")
    compilers = (named,) if named else ("gcc", "clang")
    if not any(map(shutil.which, compilers)):
        raise BackendUnavailableError(
            f"mode {mode} needs a C compiler on a GPU, and there is no {' or '.join(compilers)}: "
            "install one or name it in CC, or choose mode cuda-graph"
        )


class _Graphed:
    """Captures one CUDA graph for each shape of the inputs and replays it from then on.

    Results are overwritten by the next call with the same shape.
    """

    #: Runs before a capture: libraries allocate and choose algorithms in them.
    WARMUP = 3

    def __init__(self, forward: _Forward) -> None:
        self._forward = forward
        self._graphs: dict[Any, tuple[Any, tuple[Tensor, ...], Sequence[Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._graphs:
            with torch.cuda.device(inputs[0].device):
                self._graphs[key] = self._capture(inputs)
        graph, own, results = self._graphs[key]
        for target, tensor in zip(own, inputs, strict=True):
            target.copy_(tensor)
        graph.replay()
        return results

    def _capture(self, inputs: tuple[Tensor, ...]) -> Any:
        own = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARMUP):
                self._forward(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do (pasting masks, for one) is no part of it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = self._forward(*own)
        return graph, own, results
