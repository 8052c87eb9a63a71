"""What a checkpoint, or whatever can be opened, is, as plain data for JSON."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from carafe_deploy.artefacts import open_runner
from carafe_deploy.engine.contents import described, tensor_spec
from carafe_deploy.errors import ArtefactError

__all__ = ["describe_checkpoint", "describe_opened"]


def describe_checkpoint(
    path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Architecture, classes, settings and weights of a checkpoint, each weight accounted for.

    Args:
        path: the ``.pth`` file.
        config: mmdetection config of a checkpoint that has none inside.

    Raises:
        CheckpointError: see :func:`carafe_deploy.models.checkpoint.load_detector`.
        ConfigError: likewise.
    """
    from carafe_deploy.models.checkpoint import load_detector

    detector, checkpoint = load_detector(path, config)
    settings = checkpoint.config
    return {
        "file": str(path),
        "kind": "checkpoint",
        "bytes": Path(path).stat().st_size,
        "sha256": checkpoint.sha256,
        "name": checkpoint.name,
        "architecture": settings.architecture,
        "classes": list(settings.classes),
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "config": dataclasses.asdict(settings),
        "notes": list(checkpoint.notes),
    }


def describe_opened(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Inputs, outputs, custom operators and metadata of what tells them once it is open.

    Raises:
        ArtefactError: the file is missing, or see :func:`carafe_deploy.artefacts.open_runner`.
    """
    if not Path(path).is_file():
        raise ArtefactError(f"{path} does not exist: export it first")
    with open_runner(path) as runner:
        info = runner.info
    return {
        "file": str(path),
        "kind": runner.backend,
        "bytes": Path(path).stat().st_size,
        "inputs": [tensor_spec(spec) for spec in info.input_specs],
        "outputs": [tensor_spec(spec) for spec in info.output_specs],
        "operators": [dataclasses.asdict(call) for call in info.operators],
        "model": described(info),
    }
