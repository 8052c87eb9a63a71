"""What a user can choose when a detector leaves PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ExportError
from carafe_deploy.models.config import DetectorConfig
from carafe_deploy.models.detector import (
    Detector,
    build_detector,
    lay_out_channels_last,
    prepare_for_inference,
)
from carafe_deploy.types import DTYPES, PRECISIONS, InputFormat, ModelInfo

__all__ = ["ExportOptions", "Range", "deployable", "evaluation_mode", "padded_limits"]


#: Smallest and largest value, both included.
Range = tuple[int, int]


@dataclass(frozen=True, repr=False)
class ExportOptions(OneLine):
    """Choices that are fixed inside an exported file.

    Attributes:
        batch: accepted batch sizes; equal ends make the dimension static.
        height: accepted padded heights in pixels, multiples of ``pad_size_divisor``; None takes
            everything from one multiple to the padded long edge of the config's resize.
        width: likewise.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``, of convolutions and matrix products; RoIs,
            box decoding, softmaxes and NMS stay float32.
        uint8_input: take uint8 [B, H, W, 3] BGR images and normalise inside the graph.
        score_threshold: None keeps the config's.
        nms_iou_threshold: of the box head; None keeps the config's.
        max_detections: None keeps the config's.
    """

    batch: Range = (1, 8)
    height: Range | None = None
    width: Range | None = None
    precision: str = "fp32"
    uint8_input: bool = False
    score_threshold: float | None = None
    nms_iou_threshold: float | None = None
    max_detections: int | None = None

    @classmethod
    def like(cls, info: ModelInfo) -> ExportOptions:
        """The options that an artefact was exported with, so that a checkpoint runs the same."""
        return cls(
            batch=info.input.batch,
            height=info.input.height,
            width=info.input.width,
            precision="fp32" if info.precision == "tf32" else info.float_precision,
            uint8_input=info.input.layout == "nhwc_uint8",
            score_threshold=info.score_threshold,
            nms_iou_threshold=info.nms_iou_threshold,
            max_detections=info.max_detections,
        )

    def input_format(self, config: DetectorConfig) -> InputFormat:
        """The bounds with defaults filled in.

        Raises:
            ExportError: a bound is empty, not positive, or not a multiple of the divisor.
        """
        divisor = config.preprocessing.pad_size_divisor
        default = (divisor, max(padded_limits(config)))
        height, width = self.height or default, self.width or default
        for name, (low, high), multiple in (
            ("batch", self.batch, 1),
            ("height", height, divisor),
            ("width", width, divisor),
        ):
            if not 1 <= low <= high:
                raise ExportError(
                    f"{name} bounds are {low} to {high}: give 1 <= smallest <= largest"
                )
            for value in (low, high):
                if value % multiple:
                    nearest = -(-value // multiple) * multiple
                    raise ExportError(
                        f"{name} {value} is not a multiple of {multiple}: use {nearest}"
                    )
        layout = "nhwc_uint8" if self.uint8_input else "nchw_float32"
        return InputFormat(layout, self.batch, height, width)

    def apply(self, config: DetectorConfig) -> DetectorConfig:
        """The detector's config with the chosen test settings.

        Raises:
            ExportError: a value is out of range, or the precision is unknown.
        """
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ExportError(f"precision is {self.precision!r}: choose from {known}")
        for name, value in (
            ("score threshold", self.score_threshold),
            ("NMS IoU threshold", self.nms_iou_threshold),
        ):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ExportError(f"{name} is {value}: give a number from 0 to 1")
        candidates = config.rpn.max_proposals * config.num_classes
        if self.max_detections is not None and not 1 <= self.max_detections <= candidates:
            raise ExportError(
                f"maximum number of detections is {self.max_detections}: give 1 to {candidates}"
            )
        chosen = {
            name: value
            for name in ("score_threshold", "nms_iou_threshold", "max_detections")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(config, box=dataclasses.replace(config.box, **chosen))


def padded_limits(config: DetectorConfig) -> tuple[int, int]:
    """Padded (height, width) in pixels of a landscape image that meets both resize limits."""
    divisor = config.preprocessing.pad_size_divisor
    long_edge, short_edge = config.preprocessing.scale
    return (-(-short_edge // divisor) * divisor, -(-long_edge // divisor) * divisor)


def deployable(
    detector: Detector,
    options: ExportOptions,
    *,
    channels_last: bool = False,
    fused: bool = False,
) -> Detector:
    """A copy ready to run or trace: options applied, batch norm folded, weights in their precision.

    Weights that stay as they are share their memory with the detector's.

    Args:
        detector: as trained; it stays as it is.
        options: see there.
        channels_last: lay the weights out for channels-last feature maps.
        fused: on a GPU, fewer kernels; see :func:`~carafe_deploy.models.detector
            .prepare_for_inference`. Not to be traced: files hold the usual operators.
    """
    with torch.device("meta"):  # no memory, and no random numbers that nobody needs
        copy = build_detector(options.apply(detector.config))
    copy.load_state_dict(detector.state_dict(), assign=True)
    for name, buffer in detector.named_buffers():  # constants are in no state_dict
        owner, _, leaf = name.rpartition(".")
        setattr(copy.get_submodule(owner), leaf, buffer)
    prepare_for_inference(copy, getattr(torch, DTYPES[options.precision]), fused=fused)
    return lay_out_channels_last(copy) if channels_last else copy


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, a network is in evaluation mode; afterwards each part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
