"""The runtimes, one entry each: everything that knows backends by name follows from here.

Importing this imports none of them, nor NumPy. Code is named as ``"module:function"``.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carafe_deploy.brief import OneLine
from carafe_deploy.requirements import OTHERS, Package

__all__ = [
    "BACKENDS",
    "MODES",
    "Backend",
    "backend_of",
    "load",
    "mistaken",
    "packages",
    "suffixes",
    "title_of",
]

#: How an artefact can be run.
MODES = ("eager", "compile", "cuda-graph", "compile-graph")


@dataclass(frozen=True, repr=False)
class Backend(OneLine):
    """What runs artefacts of one kind.

    Attributes:
        title: for people, e.g. ``"ONNX Runtime"``.
        kind: of artefact, for people, e.g. ``"an ONNX file"``.
        suffixes: of its files' names; none for what another entry opens.
        open: takes the path, the device and the options that were given, and returns a
            :class:`~carafe_deploy.runners.base.Runner`. Importing its module imports the runtime.
        device: where it runs unless another is given; it runs on no CPU if that is none.
        options: name -> the values that fit; empty where a list cannot say it. ``mode`` is always
            among them. Where just one fits, ``open`` is not told.
        reasons: why it does not take a value that others take.
        packages: that belong to it.
        describe: what ``inspect`` tells of a file, for JSON; takes the path, and the config where
            there is such an option.
        known: facts for tables that are known before a file is opened; takes the path.
        profile: rows of a profile; takes the runner, inputs and the number of runs.
        profiler: what those rows are.
        providers: kind of device -> those that are measured on it.
        colour: in charts.
    """

    title: str
    kind: str
    suffixes: tuple[str, ...]
    open: str
    device: str = "cpu"
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: {"mode": ("eager",)})
    reasons: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[Package, ...] = ()
    describe: str = "carafe_deploy.describe:describe_opened"
    known: str = ""
    profile: str = ""
    profiler: str = ""
    providers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    colour: str = "#8a7f5c"

    @property
    def is_model(self) -> bool:
        """It runs checkpoints, which have no settings of their own but take all there are."""
        return "options" in self.options

    @property
    def needs_gpu(self) -> bool:
        """It runs on no CPU."""
        return self.device != "cpu"

    @property
    def on_torch(self) -> bool:
        """PyTorch computes, with the process's number of threads."""
        return any(package.module == "torch" for package in self.packages)


_TORCH = (
    Package("torch", "torch", "2.11", "torch", ("torch",), reported=0),
    Package("torchvision", "torchvision", "0.26", "torch", ("torchvision",)),
)
_ONNX = (
    Package("onnx", "onnx", "1.18", "onnx", ("onnx",)),
    Package("onnxscript", "onnxscript", "0.5", "onnx", ("onnxscript",)),
)
_ORT = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_TENSORRT = Backend(
    title="TensorRT",
    kind="an engine",
    suffixes=(".engine", ".plan"),
    open="carafe_deploy.runners.tensorrt:TensorRTRunner",
    device="cuda",
    options={"mode": ("eager", "cuda-graph")},
    reasons=dict.fromkeys(("compile", "compile-graph"), ": it is compiled already"),
    packages=(
        Package(
            "TensorRT", "tensorrt", "10.1", "trt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
        ),
    ),
    describe="carafe_deploy.engine.contents:inspect_engine",
    known="carafe_deploy.bench.subjects:sidecar_facts",
    profile="carafe_deploy.bench.layers.tensorrt:layer_rows",
    profiler="TensorRT's profiler, by layer",
    colour="#5fa32f",
)

#: By the name that each has in tables and result files.
BACKENDS: dict[str, Backend] = {
    "pytorch": Backend(
        title="PyTorch",
        kind="a checkpoint",
        suffixes=(".pth", ".pt"),
        open="carafe_deploy.open_checkpoint:open_checkpoint",
        options={
            "mode": MODES,
            "tf32": (True, False),
            "fused": (True, False),
            "config": (),
            "precision": ("fp32", "fp16", "bf16"),
            "options": (),
            "channels_last": (True, False),
            "graph_memory": (),
        },
        packages=_TORCH,
        describe="carafe_deploy.describe:describe_checkpoint",
        profile="carafe_deploy.bench.layers.pytorch:module_rows",
        profiler="PyTorch's profiler, by module",
        colour="#e0663f",
    ),
    "torchscript": Backend(
        title="TorchScript",
        kind="a TorchScript file",
        suffixes=(".ts", ".torchscript"),
        open="carafe_deploy.runners.torchscript:TorchScriptRunner",
        options={"mode": ("eager",), "tf32": (True, False), "fused": (True, False)},
        reasons={
            mode: f": the checkpoint itself takes {mode}"
            for mode in ("compile", "cuda-graph", "compile-graph")
        },
        packages=_TORCH,
        profile="carafe_deploy.bench.layers.pytorch:operator_rows",
        profiler="PyTorch's profiler, by operator",
        colour="#d99a2b",
    ),
    "onnxruntime": Backend(
        title="ONNX Runtime",
        kind="an ONNX file",
        suffixes=(".onnx",),
        open="carafe_deploy.runners.onnxruntime:OnnxRuntimeRunner",
        options={
            "mode": ("eager", "cuda-graph"),
            "tf32": (True, False),
            "provider": (),
            "threads": (),
            "operators": (True, False),
            "provider_options": (),
        },
        reasons=dict.fromkeys(
            ("compile", "compile-graph"), ": ONNX Runtime optimises it as it loads"
        ),
        packages=(
            *_ONNX,
            Package("ONNX Runtime", "onnxruntime", "1.20", "ort", _ORT, exclusive=True, reported=0),
        ),
        describe="carafe_deploy.engine.contents:inspect_onnx",
        profile="carafe_deploy.bench.layers.onnxruntime:node_rows",
        profiler="ONNX Runtime's profiler, by node",
        providers={"cpu": ("cpu",), "cuda": ("cuda", "tensorrt", "tensorrt-rtx")},
        colour="#4a8fd0",
    ),
    "tensorrt": _TENSORRT,
    "tensorrt_rtx": dataclasses.replace(
        _TENSORRT,
        title="TensorRT-RTX",
        suffixes=(),  # the sidecar tells the two apart
        packages=(
            Package(
                "TensorRT-RTX",
                "tensorrt_rtx",
                "1.4",
                "rtx",
                ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
                exclusive=True,
                reported=2,
            ),
        ),
        profiler="TensorRT-RTX's profiler, by layer",
        colour="#2fa184",
    ),
}


def load(name: str) -> Any:
    """The code of a ``"module:function"``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def title_of(backend: str) -> str:
    """For people; the name itself where there is no entry, as in a result from elsewhere."""
    return BACKENDS[backend].title if backend in BACKENDS else backend


def suffixes() -> tuple[str, ...]:
    """Of all files that something opens."""
    return tuple(itertools.chain(*(backend.suffixes for backend in BACKENDS.values())))


def backend_of(path: str | os.PathLike[str]) -> str | None:
    """Name of the backend that opens files of this suffix; None where none does."""
    suffix = Path(path).suffix.lower()
    return next((name for name, known in BACKENDS.items() if suffix in known.suffixes), None)


def mistaken(path: str | os.PathLike[str], wanted: str | None) -> str | None:
    """``"x.onnx is an ONNX file"`` where its suffix says that, and another backend is wanted.

    Args:
        path: the file need not exist.
        wanted: a name in :data:`BACKENDS`; None where nothing that detects is.

    Returns:
        None where the suffix is that backend's, or says nothing.
    """
    found = backend_of(path)
    return None if found in (None, wanted) else f"{path} is {BACKENDS[found].kind}"


def packages() -> dict[str, Package]:
    """All that something here needs, by module."""
    needed = itertools.chain(*(backend.packages for backend in BACKENDS.values()), OTHERS)
    return {package.module: package for package in needed}
