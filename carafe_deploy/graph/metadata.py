"""Describe an exported detector: what every runner and pipeline needs besides weights."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from carafe_deploy import __version__
from carafe_deploy.graph.options import ExportOptions, padded_limits
from carafe_deploy.models.config import DetectorConfig
from carafe_deploy.models.detector import build_detector, stage_names
from carafe_deploy.types import DOMAIN, InputFormat, ModelInfo, OperatorCall

__all__ = ["model_info", "record_operators", "reference_shape"]


def model_info(
    config: DetectorConfig,
    options: ExportOptions,
    *,
    name: str,
    source: Mapping[str, str],
    packages: tuple[str, ...] = ("torch", "torchvision", "numpy"),
) -> ModelInfo:
    """Collect a detector's metadata.

    Args:
        config: of the detector as trained; the options are applied here.
        options: as for the export.
        name: of the model, for people.
        source: file name and SHA-256 of the checkpoint.
        packages: distributions whose versions matter.
    """
    config = options.apply(config)
    input_format = options.input_format(config)
    return ModelInfo(
        name=name,
        architecture=config.architecture,
        classes=config.classes,
        preprocessing=config.preprocessing,
        input=input_format,
        precision=options.precision,
        score_threshold=config.box.score_threshold,
        nms_iou_threshold=config.box.nms_iou_threshold,
        max_detections=config.box.max_detections,
        mask_threshold=0.5 if config.mask is None else config.mask.mask_threshold,
        mask_size=(
            0 if config.mask is None else config.mask.roi_size * config.mask.upsample.scale_factor
        ),
        source=dict(source),
        versions={
            "carafe_deploy": __version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        operators=record_operators(config, *reference_shape(config, input_format)),
        stages=stage_names(config),
    )


def reference_shape(config: DetectorConfig, bounds: InputFormat) -> tuple[int, int, int]:
    """Batch 1 (or the least), height and width of a usual landscape image, within bounds."""
    height, width = padded_limits(config)
    return (
        bounds.batch[0],
        min(max(height, bounds.height[0]), bounds.height[1]),
        min(max(width, bounds.width[0]), bounds.width[1]),
    )


def record_operators(
    config: DetectorConfig, batch: int, height: int, width: int
) -> tuple[OperatorCall, ...]:
    """All calls of ``carafe`` operators of one forward pass; computed on shapes alone."""
    with torch.device("meta"):
        detector = build_detector(config)
        images = torch.empty(batch, 3, height, width)
        sizes = torch.empty(batch, 2)
    recorder = _OperatorRecorder()
    with torch.no_grad(), recorder:
        detector(images, sizes)
    return tuple(recorder.calls)


class _OperatorRecorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OperatorCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == DOMAIN:
            shapes: list[tuple[int, ...]] = []
            attributes: dict[str, Any] = {}
            for argument, value in zip(func._schema.arguments, args, strict=False):
                values = value if isinstance(value, (list, tuple)) else [value]
                if isinstance(values[0], torch.Tensor):
                    shapes.extend(tuple(tensor.shape) for tensor in values)
                else:
                    attributes[argument.name] = value
            self.calls.append(
                OperatorCall(func._schema.name.split("::")[1], tuple(shapes), attributes)
            )
        return func(*args, **(kwargs or {}))
