"""PyTorch behind the Runner protocol: eager, compiled, as CUDA graphs, or both."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from carafe_deploy.backends import MODES
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError, RunError
from carafe_deploy.ops._kernels import ENVIRONMENT_VARIABLE, kernel_library
from carafe_deploy.runners._graphs import Graphed
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
        graph_memory: bytes on the device that captured graphs may take before those that were not
            used for longest are dropped; None for :data:`carafe_deploy.runners._graphs.SHARE` of
            it.
        channels_last: images are handed over in that memory format; the weights should have it.
        tf32: on a GPU, let float32 convolutions and matrix products round their factors to 10 bits
            of mantissa.
        label: names the runner in messages; None for the model's name.

    Raises:
        BackendUnavailableError: CUDA graphs were asked for on another device, or the operators have
            no CUDA kernels; in plain PyTorch they wait for the device, which no graph can hold. Or
            the detector is to be compiled for a GPU, and Triton or a C compiler is not there.
        CarafeDeployError: there is no such mode, or ``tf32`` and another precision than fp32, or
            ``graph_memory`` and no graph.
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
        graph_memory: int | None = None,
        channels_last: bool = False,
        tf32: bool = False,
        label: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise CarafeDeployError(f"mode is {mode!r}: choose from {', '.join(MODES)}")
        is_compiled, is_graph = mode.startswith("compile"), mode.endswith("graph")
        if graph_memory is not None and not (is_graph and graph_memory > 0):
            raise CarafeDeployError(
                f"graph_memory is {graph_memory!r} in mode {mode}: give a number of bytes, and "
                "mode cuda-graph or compile-graph"
            )
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
            forward = _limited(torch.compile(forward, dynamic=False, fullgraph=True), mode)
        if is_graph:
            forward = Graphed(forward, graph_memory)
        self.mode = mode
        super().__init__(info, device, forward, stages, channels_last, tf32=tf32, label=label)

    def _settings(self) -> tuple[str, ...]:
        return (*(self.mode,) * (self.mode != "eager"), *super()._settings())


def _limited(compiled: _Forward, mode: str) -> _Forward:
    """Says what it means when torch refuses to compile once more."""

    def forward(images: Tensor, sizes: Tensor) -> Sequence[Tensor]:
        try:
            return compiled(images, sizes)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise RunError(
                f"mode {mode} compiles for each input shape, {SHAPES} of them in a process, and "
                f"{list(images.shape)} is one more: run images of so many sizes in mode eager or "
                "cuda-graph"
            ) from error

    return forward


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
