"""Open anything that detects: a checkpoint, a TorchScript file, an ONNX file, an engine.

This stands outside `runners` because a checkpoint needs the model code, which runners never see.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from carafe_deploy.errors import ArtefactError, BackendUnavailableError
from carafe_deploy.runners.base import Runner
from carafe_deploy.suffixes import SUFFIXES

if TYPE_CHECKING:
    from carafe_deploy.graph.options import ExportOptions

__all__ = ["SUFFIXES", "open_runner"]


def open_runner(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    config: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    mode: str = "eager",
    channels_last: bool = True,
    provider: str | None = None,
    graphs: bool = False,
    threads: int | None = None,
) -> Runner:
    """Open an artefact by its suffix.

    Args:
        path: ``.pth`` (eager PyTorch), ``.ts`` (TorchScript), ``.onnx`` (ONNX Runtime) or
            ``.engine`` (TensorRT).
        device: ``"cpu"`` or ``"cuda"``; an engine runs on the first GPU in either case, and
            ``"cuda:N"`` chooses another.
        config: for a checkpoint, the mmdetection config beside it.
        options: for a checkpoint, precision and test settings; the others have theirs inside.
        mode: for a checkpoint, ``"eager"``, ``"compile"`` or ``"cuda-graph"``.
        channels_last: for a checkpoint, keep weights and feature maps in that memory format, which
            convolutions compute in; False for NCHW.
        provider: for an ONNX file, one of :data:`carafe_deploy.runners.onnxruntime.PROVIDERS`.
        graphs: for an engine, capture CUDA graphs.
        threads: of one operator of an ONNX file on the CPU; None lets ONNX Runtime choose.

    Raises:
        ArtefactError: the file is missing, or of a kind that nothing here opens.
        BackendUnavailableError: the package that would open it is not installed.
        CheckpointError: see :func:`carafe_deploy.models.checkpoint.load_detector`.
    """
    path = Path(path)
    backend = SUFFIXES.get(path.suffix.lower())
    if backend is None:
        raise ArtefactError(
            f"{path} has the suffix {path.suffix!r}: give one of {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist")
    try:
        if backend == "onnxruntime":
            from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner

            return OnnxRuntimeRunner(path, device, threads, provider)
        if backend == "torchscript":
            from carafe_deploy.runners.torchscript import TorchScriptRunner

            return TorchScriptRunner(path, device)
        if backend == "tensorrt":
            from carafe_deploy.runners.tensorrt import TensorRTRunner

            return TensorRTRunner(path, "cuda" if device == "cpu" else device, graphs=graphs)
        return _open_checkpoint(path, device, config, options, mode, channels_last)
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"{path.name} needs {backend}, but {error.name} is not installed: "
            f"pip install {error.name}"
        ) from error


def _open_checkpoint(
    path: Path,
    device: str,
    config: str | os.PathLike[str] | None,
    options: ExportOptions | None,
    mode: str,
    channels_last: bool,
) -> Runner:
    import torch

    from carafe_deploy.graph.metadata import model_info
    from carafe_deploy.graph.options import ExportOptions, deployable
    from carafe_deploy.models.checkpoint import load_detector
    from carafe_deploy.models.detector import ImageNormalization, StagedDetector
    from carafe_deploy.runners._torch import resolve_device
    from carafe_deploy.runners.pytorch import PyTorchRunner
    from carafe_deploy.types import InputFormat

    target = resolve_device(device)
    anything = InputFormat()
    options = options or ExportOptions(anything.batch, anything.height, anything.width)
    detector, checkpoint = load_detector(path, config)
    info = model_info(detector.config, options, name=checkpoint.name, source=checkpoint.source)
    deployed = deployable(detector, options, channels_last=channels_last).to(target)
    forward: torch.nn.Module = deployed
    stages: torch.nn.Module = StagedDetector(deployed)
    if options.uint8_input:
        forward, stages = (
            ImageNormalization(module, info.preprocessing, channels_last)
            for module in (forward, stages)
        )
    return PyTorchRunner(info, target, forward, stages, mode=mode, channels_last=channels_last)
