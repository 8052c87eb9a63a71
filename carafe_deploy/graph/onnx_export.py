"""A detector as one ONNX file that stock ONNX Runtime runs and TensorRT takes plugins for."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from carafe_deploy.errors import ExportError
from carafe_deploy.files import atomic_path, temporary_folder
from carafe_deploy.graph.functions import attach_function_bodies
from carafe_deploy.graph.metadata import model_info, reference_shape
from carafe_deploy.graph.options import ExportOptions, Range, deployable, evaluation_mode
from carafe_deploy.known_warnings import without_known_warnings
from carafe_deploy.models.config import DetectorConfig
from carafe_deploy.models.detector import (
    Detector,
    ImageNormalization,
    StagedDetector,
)
from carafe_deploy.ops import dynamo_translations, torchscript_symbolics
from carafe_deploy.types import DOMAIN, DOMAIN_VERSION, METADATA_KEY, InputFormat, ModelInfo

__all__ = ["EXPORTERS", "export_onnx", "export_operator_network"]

EXPORTERS = ("dynamo", "torchscript")

#: The dynamo exporter's own; all operators used here are in it for float and float16 ...
OPSET = 18
#: ... and Conv takes bfloat16 from this one on.
OPSET_BFLOAT16 = 22
#: First to know function overloads.
IR_VERSION = 10

_DYNAMIC_NAMES = ("batch", "height", "width")


def export_onnx(
    detector: Detector,
    path: str | os.PathLike[str],
    options: ExportOptions,
    *,
    name: str,
    source: Mapping[str, str],
    exporter: str = "dynamo",
    progress: Callable[[str], None] = lambda step: None,
) -> ModelInfo:
    """Write a detector as ONNX.

    Inputs, outputs and metadata are described by the returned record, which is also stored in the
    file. Intermediate tensors keep the names of
    :class:`~carafe_deploy.models.detector.StagedDetector`.

    Args:
        detector: as trained; it is copied, not changed.
        path: of the file to write; it appears complete or not at all.
        options: precision, sizes and thresholds.
        name: of the model, stored in the metadata.
        source: file name and SHA-256 of the checkpoint, stored in the metadata.
        exporter: ``"dynamo"``, or ``"torchscript"`` for static shapes with torch's older exporter.
        progress: is told each step's name.

    Raises:
        ExportError: the options contradict each other, or the result fails ONNX's checker.
    """
    if exporter not in EXPORTERS:
        raise ExportError(f"exporter is {exporter!r}: choose from {', '.join(EXPORTERS)}")
    info = model_info(
        detector.config,
        options,
        name=name,
        source=source,
        packages=("torch", "torchvision", "numpy", "onnx", "onnxscript"),
    )
    if exporter == "torchscript" and not info.input.is_static:
        raise ExportError(
            "the TorchScript exporter is offered for static shapes only: give one batch size, "
            "height and width, or use the dynamo exporter"
        )
    opset = OPSET_BFLOAT16 if options.precision == "bf16" else OPSET
    if exporter == "torchscript" and opset > 20:
        raise ExportError(
            "the TorchScript exporter knows no bfloat16 Conv: use the dynamo exporter"
        )
    progress("prepare")
    deployed = deployable(detector, options)
    staged = StagedDetector(deployed)
    module: nn.Module = staged
    if options.uint8_input:
        module = ImageNormalization(staged, deployed.config.preprocessing)
    module.eval()
    names = (*info.output_names, *info.stages)
    progress("trace and translate")
    with atomic_path(path) as temporary:
        with without_known_warnings():
            model = _export(module, deployed.config, info.input, names, opset, exporter)
        progress("attach function bodies and metadata")
        _finish(model, info)
        progress("check")
        _check(model)
        progress("write")
        onnx.save(model, temporary)
    return info


def export_operator_network(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    exporter: str = "dynamo",
    opset: int = OPSET,
    **settings: Any,
) -> onnx.ModelProto:
    """Write any network that uses the ``carafe`` operators as ONNX, with function bodies.

    It is exported in evaluation mode, in whatever mode it is: without dropout, with the running
    statistics of batch normalisation. Every part is then in its own mode again. Warnings of the
    exporter reach the caller, except for those of :mod:`carafe_deploy.known_warnings`.

    Args:
        module: the network; weights and modes stay as they are.
        arguments: example inputs.
        path: of the file to write; it appears complete or not at all.
        exporter: ``"dynamo"`` or ``"torchscript"``.
        opset: of the standard operators, 18 or later.
        settings: passed to :func:`torch.onnx.export` (``input_names``, ``dynamic_shapes``, ...).

    Returns:
        The model written.

    Raises:
        ExportError: the exporter is unknown, or the result fails ONNX's checker.
    """
    if exporter not in EXPORTERS:
        raise ExportError(f"exporter is {exporter!r}: choose from {', '.join(EXPORTERS)}")
    with without_known_warnings(), evaluation_mode(module), torch.no_grad():
        model = _RUN[exporter](module, arguments, opset, **settings)
    _clean(model)
    random = sorted({node.op_type for node in model.graph.node} & _RANDOM)
    if random:
        warnings.warn(
            f"the exported network draws random numbers ({', '.join(random)}): no two of its runs "
            "are alike, and none is like PyTorch's",
            stacklevel=2,
        )
    attach_function_bodies(model)
    _check(model)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
    return model


#: Operators whose results differ from run to run.
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


# --- exporters -----------------------------------------------------------------------------------


def _run_dynamo(
    module: nn.Module, arguments: tuple[Tensor, ...], opset: int, **settings: Any
) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        opset_version=opset,
        custom_translation_table=dynamo_translations(),
        verbose=False,
        **settings,
    )
    assert program is not None
    return program.model_proto


def _run_torchscript(
    module: nn.Module, arguments: tuple[Tensor, ...], opset: int, **settings: Any
) -> onnx.ModelProto:
    from torch.onnx.utils import register_custom_op_symbolic

    for operator, symbolic in torchscript_symbolics().items():
        register_custom_op_symbolic(operator, symbolic, 16)
    with temporary_folder() as folder:
        path = str(folder / "model.onnx")
        torch.onnx.export(
            module,
            arguments,
            path,
            dynamo=False,
            opset_version=opset,
            custom_opsets={DOMAIN: DOMAIN_VERSION},
            **settings,
        )
        return onnx.load(path)


def _example(config: DetectorConfig, bounds: InputFormat) -> tuple[Tensor, Tensor]:
    """Inputs of an admissible size; a dynamic size must not be traced as 1 unit."""

    def size(limits: Range, unit: int, usual: int) -> int:
        low, high = limits
        return min(max(usual, low, 2 * unit if high > low else low), high)

    divisor = config.preprocessing.pad_size_divisor
    batch, height, width = reference_shape(config, bounds)
    batch = size(bounds.batch, 1, batch)
    height = size(bounds.height, divisor, height)
    width = size(bounds.width, divisor, width)
    if bounds.layout == "nhwc_uint8":
        images = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    else:
        images = torch.zeros(batch, 3, height, width)
    return images, torch.tensor([[height, width]] * batch, dtype=torch.float32)


def _export(
    module: nn.Module,
    config: DetectorConfig,
    bounds: InputFormat,
    names: tuple[str, ...],
    opset: int,
    exporter: str,
) -> onnx.ModelProto:
    """By one of the exporters; the older one is given static bounds only."""
    settings: dict[str, Any] = {}
    if exporter == "dynamo":
        settings["dynamic_shapes"] = _dynamic_shapes(config, bounds)
    with torch.no_grad():
        return _RUN[exporter](
            module,
            _example(config, bounds),
            opset,
            input_names=["images", "image_sizes"],
            output_names=list(names),
            **settings,
        )


_RUN = {"dynamo": _run_dynamo, "torchscript": _run_torchscript}


def _dynamic_shapes(config: DetectorConfig, bounds: InputFormat) -> tuple[dict[int, Any], ...]:
    def dimension(name: str, limits: Range, unit: int) -> Any:
        low, high = limits
        if low == high:
            return None
        symbol = torch.export.Dim(name, min=low // unit, max=high // unit)
        return symbol if unit == 1 else unit * symbol

    divisor = config.preprocessing.pad_size_divisor
    batch = dimension("batch", bounds.batch, 1)
    height = dimension("height", bounds.height, divisor)
    width = dimension("width", bounds.width, divisor)
    axes = (0, 1, 2) if bounds.layout == "nhwc_uint8" else (0, 2, 3)
    chosen = zip(axes, (batch, height, width), strict=True)
    images = {axis: symbol for axis, symbol in chosen if symbol is not None}
    return images, {} if batch is None else {0: batch}


# --- after the exporter --------------------------------------------------------------------------


def _finish(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Outputs, bodies and metadata, the same whichever exporter made the model."""
    _clean(model)
    graph = model.graph
    found = {value.name: value for value in graph.output}
    stages = [found[name] for name in info.stages]
    _name_dimensions(model, found["C2"])
    del graph.output[:]
    # The TorchScript exporter knows these shapes in part only.
    graph.output.extend(
        helper.make_tensor_value_info(
            spec.name, found[spec.name].type.tensor_type.elem_type, spec.shape
        )
        for spec in info.output_specs
    )
    graph.value_info.extend(stages)
    graph.name = info.name
    attach_function_bodies(model, info.operators)
    helper.set_model_props(model, {METADATA_KEY: info.to_json()})


def _clean(model: onnx.ModelProto) -> None:
    """Drop stack traces and other notes of the exporter, which name files of this machine."""
    model.ir_version = max(model.ir_version, IR_VERSION)
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    values = (graph.input, graph.output, graph.value_info, graph.initializer, graph.node)
    for entry in (entry for entries in values for entry in entries):
        entry.ClearField("metadata_props")
        entry.doc_string = ""


def _name_dimensions(model: onnx.ModelProto, finest: onnx.ValueInfoProto) -> None:
    """Call the exporter's anonymous symbols (``s89``) what they are: batch, height, width.

    Args:
        model: changed in place.
        finest: C2, [batch, C, 16*height, 16*width] with whatever symbols the exporter chose.
    """
    dimensions = finest.type.tensor_type.shape.dim
    renamed: dict[str, str] = {}
    for axis, name in zip((0, 2, 3), _DYNAMIC_NAMES, strict=True):
        for symbol in re.findall(r"[A-Za-z_]\w*", dimensions[axis].dim_param):
            renamed[symbol] = name
    if not renamed:
        return
    pattern = re.compile("|".join(rf"\b{symbol}\b" for symbol in renamed))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_param"):
                dimension.dim_param = pattern.sub(
                    lambda match: renamed[match.group()], dimension.dim_param
                )


def _check(model: onnx.ModelProto) -> None:
    """ONNX's full check; every intermediate's inferred type and shape is written into the model.

    Both go over a copy whose large weights are inputs: to serialise them for the checker and parse
    them again takes seconds and four times their memory. What the checker would say of them is
    checked here. Shapes are inferred once, strictly, which is all that ``full_check`` adds.
    """
    try:
        light = _without_weights(model)
        onnx.checker.check_model(light)
        inferred = onnx.shape_inference.infer_shapes(
            light, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported model fails ONNX's checker: {error}. Tested versions are onnx "
            f"1.18 and later; here is {importlib.metadata.version('onnx')}"
        ) from error
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)


#: Bytes of a weight that counts as large. Shapes are computed from smaller ones only.
_LARGE = 4096
#: Of an element, by the types that weights have here; others are left to the checker.
_SIZES = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.INT64: 8,
}


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large initializers, which are checked here, are inputs instead.

    Raises:
        onnx.checker.ValidationError: one has another number of bytes than its shape says.
    """
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(light.graph, field.name, value)
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        if size < _LARGE or tensor.data_type not in _SIZES:
            light.graph.initializer.append(tensor)
            continue
        expected = math.prod(tensor.dims) * _SIZES[tensor.data_type]
        if size != expected:
            raise onnx.checker.ValidationError(
                f"initializer {tensor.name!r} of shape {list(tensor.dims)} has {size} bytes, "
                f"expected {expected}"
            )
        light.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return light


def _copy_field(target: Any, name: str, value: Any) -> None:
    """One field of a message into another of its kind."""
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)
