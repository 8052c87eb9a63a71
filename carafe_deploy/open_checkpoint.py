"""Open a checkpoint; this stands outside `runners`, which never see the model code."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from carafe_deploy.graph.metadata import model_info
from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import ImageNormalization, StagedDetector
from carafe_deploy.runners._fused import fuses
from carafe_deploy.runners._torch import resolve_device
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import InputFormat


def open_checkpoint(
    path: Path,
    device: str,
    *,
    mode: str = "eager",
    graph_memory: int | None = None,
    fused: bool | None = None,
    tf32: bool = False,
    config: str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    options: ExportOptions | None = None,
    channels_last: bool = True,
) -> PyTorchRunner:
    """See :func:`carafe_deploy.artefacts.open_runner`."""
    target = resolve_device(device)
    if options is None:
        anything = InputFormat()
        options = ExportOptions(anything.batch, anything.height, anything.width, precision)
    detector, checkpoint = load_detector(path, config)
    info = model_info(detector.config, options, name=checkpoint.name, source=checkpoint.source)
    if fused is None and mode == "compile":
        fused = False  # the compiler fuses these itself, and measured figures are of that
    fused = fuses(fused, target, options.precision, tf32)
    deployed = deployable(detector, options, channels_last=channels_last, fused=fused).to(target)
    forward: torch.nn.Module = deployed
    stages: torch.nn.Module = StagedDetector(deployed)
    if options.uint8_input:
        forward, stages = (
            ImageNormalization(module, info.preprocessing, channels_last)
            for module in (forward, stages)
        )
    return PyTorchRunner(
        info,
        target,
        forward,
        stages,
        mode=mode,
        graph_memory=graph_memory,
        channels_last=channels_last,
        tf32=tf32,
        label=str(path),
    )
