"""Sessions of ONNX Runtime: providers and what each is told, and our kernels in them."""

from __future__ import annotations

import ctypes
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from carafe_deploy import onnxruntime_library
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError, BackendUnavailableError
from carafe_deploy.libraries import require_library
from carafe_deploy.operators import several_structures
from carafe_deploy.types import OperatorCall

__all__ = [
    "PROVIDERS",
    "Device",
    "Opener",
    "check_bodies",
    "kernels_for",
    "provider_options",
    "release",
]

#: Name -> ONNX Runtime's providers, the one that is meant first.
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt-rtx": ["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"],
}
#: Providers that our kernels are for; the others take whole graphs of standard operators.
_WITH_KERNELS = ("cpu", "cuda")


@dataclass(frozen=True)
class Device:
    """``cpu``, or a GPU by its number."""

    kind: str
    index: int

    @classmethod
    def named(cls, name: str) -> Device:
        """By ``cpu``, ``cuda`` or ``cuda:N``; raises BackendUnavailableError on another name."""
        kind, _, number = name.partition(":")
        if name != "cpu" and (kind != "cuda" or not (number.isdecimal() or name == "cuda")):
            raise BackendUnavailableError(f"device is {name!r}: give cpu, cuda or cuda:N")
        return cls(kind, int(number or 0))

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.index}"


def kernels_for(provider: str, wanted: bool | None) -> str | None:
    """Path of the library to register, or None where function bodies are to run.

    Args:
        provider: one of :data:`PROVIDERS`.
        wanted: True takes the library or raises, False takes the bodies, None takes the library
            where it can be had.

    Raises:
        BackendUnavailableError: it is wanted, and cannot be had or is not for the provider.
    Warns:
        UserWarning: it cannot be had, so bodies run.
    """
    if wanted is False or (wanted is None and provider not in _WITH_KERNELS):
        return None
    try:
        if provider not in _WITH_KERNELS:
            raise BackendUnavailableError(
                f"our kernels are for the providers {' and '.join(_WITH_KERNELS)}, {provider} runs "
                "function bodies: leave operators out, or choose another provider"
            )
        path = onnxruntime_library()
        if provider == "cuda" and not _has_cuda():
            raise BackendUnavailableError(
                f"the kernels beside {path} are for CPUs only: build them with CUDA "
                "(`make plugins` where nvcc is)"
            )
        onnxruntime.SessionOptions().register_custom_ops_library(path)
    except Exception as error:  # onnxruntime's own classes share no public base
        reason = str(error)
        if not isinstance(error, BackendUnavailableError):
            reason = f"ONNX Runtime {onnxruntime.__version__} does not take {path}: {reason}"
        if wanted:
            raise BackendUnavailableError(reason) from error
        warnings.warn(
            "ONNX Runtime computes our operators by function bodies, which is slower: "
            f"{reason}; operators=False (--bodies) silences this",
            stacklevel=2,
        )
        return None
    return path


def check_bodies(path: str | os.PathLike[str], calls: Iterable[OperatorCall]) -> None:
    """Refuse what this ONNX Runtime would run by the wrong function body.

    Raises:
        BackendUnavailableError: it is older than 1.27, and an operator is called in several
            settings.
    """
    several = several_structures(calls)
    if several and release() < (1, 27):
        raise BackendUnavailableError(
            f"{path} calls {', '.join(several)} in several settings, and ONNX Runtime "
            f"{onnxruntime.__version__} takes one function body for all of them: run it with our "
            "kernels (leave --bodies out, operators=True), or install onnxruntime 1.27 or newer"
        )


def release() -> tuple[int, ...]:
    """First two numbers of ONNX Runtime's version."""
    return tuple(int(number) for number in onnxruntime.__version__.split(".")[:2])


def _has_cuda() -> bool:
    """The kernels were compiled for GPUs."""
    info = ctypes.CDLL(str(require_library("carafe_kernels"))).carafe_build_info
    info.restype = ctypes.c_char_p
    return bool(json.loads(info())["architectures"])


def provider_options(
    provider: str,
    index: int,
    *,
    tf32: bool,
    half: bool,
    static: bool,
    given: Mapping[str, str],
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers with what each is told.

    Args:
        provider: one of :data:`PROVIDERS`.
        index: of the GPU.
        tf32: float32 may round to it.
        half: the model computes in a half type, for which NHWC is the faster layout.
        static: it takes one input size, so that memory need not grow in steps.
        given: further options of the first provider, which go before these.
    """
    chosen = {"device_id": str(index)}
    cuda = {**chosen, "use_tf32": str(int(tf32))}
    if half:
        cuda["prefer_nhwc"] = "1"
    if static:
        cuda["arena_extend_strategy"] = "kSameAsRequested"
    options = {"CPUExecutionProvider": {}, "CUDAExecutionProvider": cuda}
    providers = [(name, options.get(name, chosen)) for name in PROVIDERS[provider]]
    providers[0] = (providers[0][0], {**providers[0][1], **given})
    return providers


@dataclass(frozen=True, repr=False)
class Opener(OneLine):
    """Opens sessions that are alike.

    Attributes:
        path: of the file, for messages.
        providers: see :func:`provider_options`.
        threads: of one operator; None lets ONNX Runtime choose.
        kernels: path of the library to register; None runs function bodies.
        optimize: ONNX Runtime may change the graph.
        arena: ONNX Runtime keeps memory for the next run; without, it takes less at once.
    """

    path: Path
    providers: Sequence[tuple[str, Mapping[str, str]]]
    threads: int | None = None
    kernels: str | None = None
    optimize: bool = True
    arena: bool = True

    def open(
        self,
        model: str | bytes,
        *,
        profile: Path | None = None,
        bodies: bool = False,
        graph: bool = False,
    ) -> Any:
        """A session of a file or of a model's bytes.

        Args:
            model: path, or the model serialised.
            profile: beginning of the name of a file that a profile goes to.
            bodies: run function bodies though there are kernels.
            graph: capture the first run in a CUDA graph.

        Raises:
            ArtefactError: ONNX Runtime refuses the model.
            BackendUnavailableError: it cannot start the provider.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = self.arena
        if not self.optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.kernels is not None and not bodies:
            options.register_custom_ops_library(self.kernels)
        providers = [(name, dict(told)) for name, told in self.providers]
        if graph:
            providers[0][1].setdefault("enable_cuda_graph", "1")
        try:
            session = onnxruntime.InferenceSession(model, options, providers)
        except Exception as error:  # onnxruntime's own classes share no public base
            text = str(error)
            if graph and "graph capture" in text:
                raise BackendUnavailableError(
                    f"ONNX Runtime captures {self.path} in no CUDA graph ({_first_line(text)}): "
                    "use mode eager"
                ) from error
            remedy = "export it again"
            if "NOT_IMPLEMENTED" in text and "Conv" in text:
                remedy = (
                    "ONNX Runtime's CPU has no bfloat16 Conv; export with --precision fp32 or fp16"
                )
            raise ArtefactError(
                f"{self.path} cannot be loaded by ONNX Runtime ({_first_line(text)}): {remedy}"
            ) from error
        if session.get_providers()[0] != providers[0][0]:
            raise BackendUnavailableError(
                f"ONNX Runtime could not start {providers[0][0]} (it says on stderr which library "
                "is missing, or which option it does not know): mend the CUDA installation or "
                "use --device cpu"
            )
        return session


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"
