"""Value types shared by all stages; NumPy only, so that a deployment target can import them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine, brief
from carafe_deploy.errors import ArtefactError
from carafe_deploy.schema import OneOf, SchemaError, Within, parse, structure

#: Architectures -> for people.
ARCHITECTURES = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN"}

#: Namespace of the operators in ONNX, torch and TensorRT.
DOMAIN = "carafe"
DOMAIN_VERSION = 1

#: What a detector may be exported in.
PRECISIONS = ("fp32", "fp16", "bf16")

#: What a runner may compute in, from fine to coarse -> NumPy's and torch's name of the data type.
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}

#: What its convolutions and linear layers may be quantized to, coarser than all those.
QUANTIZED = ("fp8", "int8")

#: How ranges of what is quantized may be chosen: all that was seen; most of it; the nearest in
#: information, or in squares.
CALIBRATION_METHODS = ("minmax", "percentile", "entropy", "mse")

#: Where ONNX and TorchScript files carry a :class:`ModelInfo`.
METADATA_KEY = "carafe_deploy"

#: Raised whenever the meaning of a field below changes.
METADATA_SCHEMA = 1

#: Pixels of an edge, and images of a batch.
_Size = Annotated[int, Within(1, 1 << 16)]
_Bounds = tuple[_Size, _Size]
_Level = Annotated[float, Within(-1e6, 1e6)]
_Spread = Annotated[float, Within(1e-6, 1e6)]
_Share = Annotated[float, Within(0, 1)]
#: Elements of a tensor that an operator is called with.
_MOST_ELEMENTS = 1 << 31


@dataclass(frozen=True, repr=False)
class TensorSpec(OneLine):
    """Name, shape and dtype of one input or output of an artefact.

    A dimension is an int where fixed and its symbol (``"batch"``, ``"64*height"``) where dynamic.
    ``dtype`` is the NumPy name (``"float32"``, ``"uint8"``; ``"bfloat16"`` has no NumPy type).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, repr=False)
class Preprocessing(OneLine):
    """mmdetection's test pipeline: resize, normalise, pad.

    Attributes:
        scale: (long, short) edge limits in pixels of the keep-ratio resize, e.g. ``(1333, 800)``.
        mean: per-channel mean in 0..255, in the channel order of the network.
        std: per-channel standard deviation in 0..255, same order.
        bgr_to_rgb: images are read as BGR and turned into RGB.
        pad_size_divisor: height and width are zero-padded, right and bottom, to a multiple of it.
    """

    always_whole: ClassVar[bool] = True

    scale: tuple[_Size, _Size] = (1333, 800)
    mean: tuple[_Level, _Level, _Level] = (123.675, 116.28, 103.53)
    std: tuple[_Spread, _Spread, _Spread] = (58.395, 57.12, 57.375)
    bgr_to_rgb: bool = True
    pad_size_divisor: Annotated[int, Within(1, 1 << 12)] = 64


@dataclass(frozen=True)
class InputFormat:
    """What the ``images`` input of an artefact accepts.

    Attributes:
        layout: ``"nchw_float32"`` (normalised, RGB, float32) or ``"nhwc_uint8"`` (BGR as read;
            normalisation happens inside the graph).
        batch: (smallest, largest) batch size; equal when static.
        height: (smallest, largest) padded height in pixels; equal when static.
        width: (smallest, largest) padded width in pixels; equal when static.
    """

    always_whole: ClassVar[bool] = True

    layout: Annotated[str, OneOf(("nchw_float32", "nhwc_uint8"))] = "nchw_float32"
    batch: _Bounds = (1, 1 << 16)
    height: _Bounds = (64, 1 << 16)
    width: _Bounds = (64, 1 << 16)

    @property
    def is_static(self) -> bool:
        """Batch, height and width each take one value only."""
        return all(low == high for low, high in (self.batch, self.height, self.width))

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        for name in ("batch", "height", "width"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is {low} to {high}, expected the smaller one first")


@dataclass(frozen=True, repr=False)
class OperatorCall(OneLine):
    """One call of a ``carafe`` operator as a detector makes it.

    Attributes:
        name: torch name without namespace, one of :data:`carafe_deploy.operators.OPERATORS`.
        shapes: shape of every tensor argument, in order; a list of tensors is flattened.
        attributes: the remaining arguments by name.
    """

    name: str
    shapes: tuple[tuple[Annotated[int, Within(0, _MOST_ELEMENTS)], ...], ...]
    attributes: Mapping[str, Any]

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        for shape in self.shapes:
            if math.prod(shape) > _MOST_ELEMENTS:
                raise ValueError(
                    f"shape {list(shape)} has more than {_MOST_ELEMENTS} elements, as no call has"
                )


@dataclass(frozen=True, repr=False)
class Quantization(OneLine):
    """What of a detector computes in 8 bits, and where its ranges come from.

    Attributes:
        target: what the file is for: ``"cpu"`` (ONNX Runtime) or ``"tensorrt"``.
        method: of choosing ranges, one of :data:`CALIBRATION_METHODS`.
        images: how many were used for it.
        images_sha256: of all their bytes, in order.
        ranges_sha256: of the ranges chosen.
        layers: that are quantized, by the names of their weights.
        kept_float: that could be and are not.
        base: ``"fp32"`` or ``"fp16"``, of everything else.
        percentile: of the values kept, by the method of that name.
    """

    always_whole: ClassVar[bool] = True

    target: Annotated[str, OneOf(("cpu", "tensorrt"))]
    method: Annotated[str, OneOf(CALIBRATION_METHODS)]
    images: Annotated[int, Within(1, 1 << 31)]
    images_sha256: str
    ranges_sha256: str
    layers: tuple[str, ...]
    kept_float: tuple[str, ...] = ()
    base: Annotated[str, OneOf(PRECISIONS)] = "fp32"
    percentile: float | None = None


@dataclass(frozen=True, repr=False)
class ModelInfo(OneLine):
    """Everything a runner and a pipeline need besides weights; travels inside every artefact.

    Attributes:
        name: for people, e.g. the stem of the checkpoint's file name.
        architecture: ``"faster_rcnn"`` or ``"mask_rcnn"``.
        classes: class names by label.
        preprocessing: how an image becomes the ``images`` input.
        input: accepted layout and sizes.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` of convolutions and matrix products; of a
            runner that lets float32 round to TF32 there, ``"tf32"``; ``"int8"`` or ``"fp8"`` where
            they are quantized.
        score_threshold: detections with a higher score are kept.
        nms_iou_threshold: of the box head.
        max_detections: rows of the outputs.
        mask_threshold: pixels with at least this probability belong to an instance.
        mask_size: side of ``det_masks`` in pixels; 0 without masks.
        source: file name and SHA-256 of the checkpoint.
        versions: package versions at export.
        operators: the custom operator calls made by the graph at its reference size, in order.
        stages: names of the intermediate tensors that an artefact can be asked for.
        quantization: None where nothing is quantized.
    """

    always_whole: ClassVar[bool] = True
    #: Not in every file.
    may_lack: ClassVar[tuple[str, ...]] = ("quantization",)

    name: str
    architecture: Annotated[str, OneOf(tuple(ARCHITECTURES))]
    classes: Annotated[tuple[str, ...], Within(1, 1 << 16)]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    input: InputFormat = field(default_factory=InputFormat)
    precision: Annotated[str, OneOf((*DTYPES, *QUANTIZED))] = "fp32"
    score_threshold: _Share = 0.05
    nms_iou_threshold: _Share = 0.5
    max_detections: Annotated[int, Within(1, 1 << 20)] = 100
    mask_threshold: _Share = 0.5
    mask_size: Annotated[int, Within(0, 1 << 10)] = 0
    source: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    operators: tuple[OperatorCall, ...] = ()
    stages: tuple[str, ...] = ()
    quantization: Quantization | None = None

    @property
    def float_precision(self) -> str:
        """Of what is not quantized; ``precision`` where nothing is."""
        return self.precision if self.quantization is None else self.quantization.base

    @property
    def has_masks(self) -> bool:
        """The artefact has a ``det_masks`` output."""
        return self.architecture == "mask_rcnn"

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The two inputs of every artefact of this model."""

        def size(name: str, bounds: tuple[int, int]) -> int | str:
            return bounds[0] if bounds[0] == bounds[1] else name

        divisor = self.preprocessing.pad_size_divisor
        batch = size("batch", self.input.batch)
        height = size(f"{divisor}*height", self.input.height)
        width = size(f"{divisor}*width", self.input.width)
        if self.input.layout == "nhwc_uint8":
            images = TensorSpec("images", (batch, height, width, 3), "uint8")
        else:
            images = TensorSpec("images", (batch, 3, height, width), "float32")
        return (images, TensorSpec("image_sizes", (batch, 2), "float32"))

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The outputs of every artefact of this model, in order."""
        batch, rows = self.input_specs[0].shape[0], self.max_detections
        specs = [
            TensorSpec("num_dets", (batch, 1), "int32"),
            TensorSpec("det_boxes", (batch, rows, 4), "float32"),
            TensorSpec("det_scores", (batch, rows), "float32"),
            TensorSpec("det_classes", (batch, rows), "int32"),
        ]
        if self.has_masks:
            side = self.mask_size
            specs.append(TensorSpec("det_masks", (batch, rows, side, side), "float32"))
        return tuple(specs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(spec.name for spec in self.output_specs)

    def to_json(self) -> str:
        """Serialise for ``metadata_props``, TorchScript extra files and sidecars."""
        data = {"schema": METADATA_SCHEMA, **dataclasses.asdict(self)}
        if self.quantization is None:  # so that versions without the field read it, too
            del data["quantization"]
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, source: object = "the artefact") -> ModelInfo:
        """Inverse of :meth:`to_json`; ``source`` names the artefact in messages.

        Raises:
            ArtefactError: the text is no JSON, of another schema version, or a field is missing,
                unknown or out of range.
        """
        try:
            data = parse(text)
            schema = data.pop("schema", None) if isinstance(data, dict) else METADATA_SCHEMA
            if schema != METADATA_SCHEMA:
                raise ArtefactError(
                    f"metadata of {source} has schema {brief(schema)}, this version reads "
                    f"{METADATA_SCHEMA}: export the model again"
                )
            return structure(cls, data)
        except SchemaError as error:
            raise ArtefactError(
                f"metadata of {source} is damaged ({error}): export the model again"
            ) from error

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        if self.has_masks and not self.mask_size:
            raise ValueError("mask_size is 0, expected at least 1 of a mask_rcnn")
        if (self.precision in QUANTIZED) != (self.quantization is not None):
            given = "is missing" if self.quantization is None else "is there"
            raise ValueError(f"precision is {self.precision}, and quantization {given}")


@dataclass(frozen=True, repr=False)
class Detections(OneLine):
    """Detections of one image, best first.

    Attributes:
        boxes: [N, 4] float32, x1, y1, x2, y2 in pixels of the original image.
        scores: [N] float32.
        labels: [N] int64, index into the class names.
        image_size: (height, width) of the original image in pixels.
        masks: None for a detector without masks, else N COCO run-length encodings
            (``{"size": [h, w], "counts": bytes}``) of the original image's size.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    image_size: tuple[int, int]
    masks: tuple[dict[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)
