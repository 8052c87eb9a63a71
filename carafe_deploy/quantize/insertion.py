"""QuantizeLinear and DequantizeLinear around chosen layers, by ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.quantize.layers import Layer

__all__ = ["TARGETS", "Target", "insert", "target_of"]

#: First operator set whose QuantizeLinear makes float8, and takes float16.
_OPSET = 19
#: Largest float8 E4M3, and largest int8.
_FLOAT8_MAX, _INT8_MAX = 448.0, 127.0


@dataclass(frozen=True, repr=False)
class Target(OneLine):
    """What runs the file, and so what it is to look like.

    Attributes:
        title: for people.
        symmetric: activations are int8 about zero, not uint8 with a zero point.
        bias: is quantized too; TensorRT takes it in float.
        shared: what reads a quantized activation reads it rounded, be it a layer or not. ONNX
            Runtime's CPU computes a convolution in 8 bits only where all that read it do.
        bases: precisions of a file that can be quantized for it.
        values: what it can be quantized to.
    """

    title: str
    symmetric: bool
    bias: bool
    shared: bool
    bases: tuple[str, ...]
    values: tuple[str, ...]


#: By name.
TARGETS: Mapping[str, Target] = {
    "cpu": Target("ONNX Runtime on a CPU", False, True, True, ("fp32",), ("int8",)),
    "tensorrt": Target("TensorRT", True, False, False, ("fp32", "fp16"), ("int8", "fp8")),
}


def target_of(name: str, values: str) -> Target:
    """By its name; raises CarafeDeployError where there is none, or it does not take the values."""
    if name not in TARGETS:
        raise CarafeDeployError(f"target is {name!r}: choose from {', '.join(TARGETS)}")
    if values not in TARGETS[name].values:
        raise CarafeDeployError(
            f"{values!r} for {TARGETS[name].title}: it takes {', '.join(TARGETS[name].values)}"
        )
    return TARGETS[name]


def insert(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    bounds: Mapping[str, tuple[float, float]],
    target: Target,
    values: str = "int8",
) -> onnx.ModelProto:
    """A copy of a model whose layers read 8 bits.

    Inputs of layers are quantized and their weights, by output channel; outputs only where another
    layer reads them. What only box decoding reads keeps its precision, and for TensorRT also what
    CARAFE and RoIAlign read.

    Args:
        model: unchanged.
        layers: to quantize.
        bounds: lowest and highest value of their activations.
        target: what runs it.
        values: ``"int8"`` or ``"fp8"``.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if target.bias:
        _fill_empty_channels(copy, {name for layer in layers for name in layer.nodes})
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in copy.graph.initializer)
    if half or values == "fp8":
        _raise_opset(copy)
    kind = np.float16 if half else np.float32
    chosen = {name for layer in layers for name in layer.nodes}
    types = sorted({node.op_type for node in copy.graph.node if node.name in chosen})
    ranges = {name: tuple(np.array(each, kind) for each in pair) for name, pair in bounds.items()}
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if target.symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=sorted(chosen),
        nodes_to_exclude=[],
        op_types_to_quantize=types,
        extra_options={
            "ActivationSymmetric": target.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": target.bias,
            "OpTypesToExcludeOutputQuantization": types,
            # Float8 has no stored form that every TensorRT reads: its weights stay as they are.
            "AddQDQPairToWeight": values == "fp8",
        },
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    if not target.shared:
        _read_unrounded(quantized, chosen)
    if values == "fp8":
        _to_float8(quantized)
    _name_types(quantized)
    quantizer.model.topological_sort()
    return quantized


def _fill_empty_channels(model: onnx.ModelProto, chosen: set[str]) -> None:
    """One weight of each output channel without any becomes tiny.

    ONNX Runtime's quantizer takes 1 as the step of a channel of zeros, and so a step of the bias
    that is as large as that of the input.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in chosen or node.op_type == "Add" or node.input[1] not in tensors:
            continue
        tensor = tensors[node.input[1]]
        weights = numpy_helper.to_array(tensor)
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        by_rows = node.op_type == "Conv" or transposed
        channels = weights.reshape(len(weights), -1) if by_rows else weights.T
        empty = ~channels.any(axis=1)
        if empty.any() and not empty.all():
            filled = weights.copy()
            view = filled.reshape(len(filled), -1) if by_rows else filled.T
            view[empty, 0] = np.abs(weights).max() * 2.0**-20
            tensor.CopyFrom(numpy_helper.from_array(filled, tensor.name))


def _name_types(model: onnx.ModelProto) -> None:
    """What is read after rounding has the type and shape that it had before."""
    graph = model.graph
    known = {value.name: value for value in (*graph.value_info, *graph.input)}
    made = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        before = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is None or before.input[0] not in known or node.output[0] in known:
            continue
        value = graph.value_info.add()
        value.CopyFrom(known[before.input[0]])
        value.name = node.output[0]


def _read_unrounded(model: onnx.ModelProto, chosen: set[str]) -> None:
    """All but the chosen nodes read activations as they were."""
    made = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.name in chosen or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            after = made.get(name)
            if after is None or after.op_type != "DequantizeLinear":
                continue
            before = made.get(after.input[0])
            if before is not None:  # else a stored weight or bias
                node.input[index] = before.input[0]


def _raise_opset(model: onnx.ModelProto) -> None:
    """What is newer up to :data:`_OPSET` takes more types and means the same.

    Names of opset 18 that stay as they are: checked by running both (tests/quantize).
    """
    for entry in (
        *model.opset_import,
        *(entry for function in model.functions for entry in function.opset_import),
    ):
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, _OPSET)


def _to_float8(model: onnx.ModelProto) -> None:
    """Every pair's zero point becomes float8, and its scale what maps the range onto float8's."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [
        node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    for scale in {node.input[1] for node in pairs}:
        old = numpy_helper.to_array(tensors[scale])
        # TensorRT takes no scale of zero, which a channel without weights rounds to in float16.
        new = np.maximum(old * (_INT8_MAX / _FLOAT8_MAX), np.finfo(old.dtype).tiny)
        new = new.astype(old.dtype)
        tensors[scale].CopyFrom(numpy_helper.from_array(new, scale))
    for zero in {node.input[2] for node in pairs}:
        count = int(np.prod(tensors[zero].dims, dtype=np.int64))
        tensors[zero].CopyFrom(
            helper.make_tensor(
                zero, TensorProto.FLOAT8E4M3FN, list(tensors[zero].dims), bytes(count), raw=True
            )
        )
