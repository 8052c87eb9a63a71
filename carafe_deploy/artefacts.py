"""Open anything that detects: a checkpoint, a TorchScript file, an ONNX file, an engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carafe_deploy.backends import BACKENDS, MODES, Backend, backend_of, load, suffixes
from carafe_deploy.errors import ArtefactError, BackendUnavailableError, OptionError
from carafe_deploy.runners.base import Runner

if TYPE_CHECKING:
    from carafe_deploy.graph.options import ExportOptions

__all__ = ["BACKENDS", "MODES", "Backend", "known_backend", "open_runner"]


def open_runner(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    mode: str | None = None,
    graph_memory: int | None = None,
    fused: bool | None = None,
    tf32: bool | None = None,
    config: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    options: ExportOptions | None = None,
    channels_last: bool | None = None,
    provider: str | None = None,
    threads: int | None = None,
    operators: bool | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> Runner:
    """Open an artefact by its suffix.

    An option that is None was not given. Any other value must fit the artefact; nothing that was
    asked for is left out silently. :data:`BACKENDS` holds what fits which.

    Args:
        path: ``.pth`` (PyTorch), ``.ts`` (TorchScript), ``.onnx`` (ONNX Runtime) or ``.engine``
            (TensorRT).
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; by default the CPU, and the first GPU for an
            engine, which runs on no CPU.
        mode: ``"eager"``, the usual one; ``"compile"``, for a checkpoint; ``"cuda-graph"``, for a
            checkpoint, an engine or an ONNX file of one input size, on a GPU, which captures the
            whole detector for each input size; or ``"compile-graph"``, for a checkpoint, which
            compiles it and captures the result.
        graph_memory: for a checkpoint in mode ``"cuda-graph"`` or ``"compile-graph"``, bytes on the
            GPU that its graphs may take: beyond them those of the sizes not seen for longest are
            dropped, and captured again should these return. By default half of the GPU's memory.
        fused: for a checkpoint or a TorchScript file on a GPU, let convolutions and matrix products
            add biases and shortcuts and apply ReLUs themselves
            (:mod:`carafe_deploy.ops.convolutions`). By default they do, but in mode ``"compile"``,
            where the compiler fuses those itself.
        tf32: on a GPU, let what is computed in float32 round the factors of convolutions and matrix
            products to 10 bits of mantissa: faster, and off by as much as half types can be. By
            default float32 is float32. An engine has this inside.
        config: for a checkpoint, the mmdetection config beside it.
        precision: for a checkpoint, ``"fp32"``, ``"fp16"`` or ``"bf16"``; the others have theirs
            inside.
        options: for a checkpoint, its precision, bounds and test settings.
        channels_last: for a checkpoint, keep weights and feature maps in that memory format, which
            convolutions compute in, as is usual; False for NCHW.
        provider: for an ONNX file, one of :data:`carafe_deploy.runners.onnxruntime.PROVIDERS`; by
            default that of the device.
        threads: for an ONNX file, of one operator on the CPU; by default ONNX Runtime chooses.
        operators: for an ONNX file, compute our operators by our kernels (True) or by the function
            bodies in the file (False); by default the kernels where their library loads.
        provider_options: for an ONNX file, of ONNX Runtime's provider, by its own names.

    Raises:
        ArtefactError: the file is missing, or of a kind that nothing here opens.
        BackendUnavailableError: the package or device that would run it is not there.
        CheckpointError: see :func:`carafe_deploy.models.checkpoint.load_detector`.
        OptionError: an option does not fit the artefact, has a value that there is not, or
            contradicts another.
    """
    path = Path(path)
    name = known_backend(path)
    given: dict[str, Any] = {
        "mode": mode,
        "graph_memory": graph_memory,
        "fused": fused,
        "tf32": tf32,
        "config": config,
        "precision": precision,
        "options": options,
        "channels_last": channels_last,
        "provider": provider,
        "threads": threads,
        "operators": operators,
        "provider_options": provider_options,
    }
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist")
    backend = BACKENDS[name]
    given = {option: value for option, value in given.items() if value is not None}
    _check_options(path, backend, device, given)
    told = {option: value for option, value in given.items() if len(backend.options[option]) != 1}
    try:
        runner: Runner = load(backend.open)(path, device or backend.device, **told)
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"{path.name} needs {name}, but {error.name} is not installed: pip install {error.name}"
        ) from error
    return runner


def known_backend(path: Path) -> str:
    """Name of what opens a file of this suffix, which need not exist.

    Raises:
        ArtefactError: nothing does.
    """
    name = backend_of(path)
    if name is None:
        raise ArtefactError(
            f"{path} has the suffix {path.suffix!r}: give one of {', '.join(suffixes())}"
        )
    return name


# --- what fits -----------------------------------------------------------------------------------

#: What only a GPU does.
_ON_A_GPU = (("mode", "cuda-graph"), ("mode", "compile-graph"), ("fused", True), ("tf32", True))


def _check_options(
    path: Path, backend: Backend, device: str | None, given: Mapping[str, Any]
) -> None:
    """Refuse the first option that does not fit the artefact, the device or another option."""
    this = f"{path.name} is {backend.kind}"
    if device is not None and (not isinstance(device, str) or not device):
        raise OptionError("device", device, "give cpu, cuda or cuda:N")
    place = (device or backend.device).partition(":")[0]
    if place == "cpu" and backend.needs_gpu:
        raise OptionError("device", device, f"{this}, which runs on cuda or cuda:N")
    for option, value in given.items():
        if option == "mode" and value not in MODES:
            raise OptionError(option, value, f"choose from {', '.join(MODES)}")
        if option not in backend.options:
            raise OptionError(
                option, value, f"{this}, which takes {_listed(backend.options)}: leave it out"
            )
        fitting = backend.options[option]
        if fitting and value not in fitting:
            reason = backend.reasons.get(value, "") if isinstance(value, str) else ""
            raise OptionError(option, value, f"{this}, which takes {_listed(fitting)}{reason}")
        if place == "cpu" and (option, value) in _ON_A_GPU:
            named = option if value is True else f"{option} {value}"
            raise BackendUnavailableError(
                f'{named} needs a GPU, device is cpu: give --device cuda (device="cuda")'
            )
    threads = given.get("threads", 1)
    if not isinstance(threads, int) or threads < 1:
        raise OptionError("threads", given["threads"], "give at least 1")
    if "options" in given and not hasattr(given["options"], "precision"):
        raise OptionError("options", given["options"], "give ExportOptions")
    if "precision" in given and "options" in given:
        other = given["options"].precision
        if given["precision"] != other:
            raise OptionError(
                "precision", given["precision"], f"options.precision is {other!r}: give one of them"
            )


def _listed(values: Iterable[Any]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last
