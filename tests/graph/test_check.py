"""The check of an exported model, which leaves the weights' bytes out, misses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from carafe_deploy.errors import ExportError
from carafe_deploy.graph.onnx_export import _check, _without_weights
from carafe_deploy.graph.options import ExportOptions

SMALL = ExportOptions((1, 1), (128, 128), (128, 128))


@pytest.fixture(scope="module")
def exported(export: Callable[..., Path]) -> onnx.ModelProto:
    return onnx.load(export("mask", ".onnx", SMALL, exporter="dynamo"))


def types(model: onnx.ModelProto) -> dict[str, bytes]:
    return {value.name: value.type.SerializeToString() for value in model.graph.value_info}


def test_shapes_are_those_that_the_whole_model_gives(exported: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported, full_check=True)
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    del model.graph.value_info[:]
    whole = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    _check(model)
    assert len(model.graph.value_info) > 150
    assert types(model) == types(whole)


def test_only_the_weights_are_left_out(exported: onnx.ModelProto) -> None:
    light = _without_weights(exported)
    before = sum(len(tensor.raw_data) for tensor in exported.graph.initializer)
    assert light.ByteSize() < exported.ByteSize() - 0.9 * before
    weights = {value.name for value in light.graph.input} - {"images", "image_sizes"}
    kept = {tensor.name for tensor in light.graph.initializer}
    assert weights | kept == {tensor.name for tensor in exported.graph.initializer}
    assert weights.isdisjoint(kept)
    for field in ("ir_version", "opset_import", "functions", "metadata_props"):
        assert getattr(light, field) == getattr(exported, field)
    for field in ("node", "output", "value_info", "name"):
        assert getattr(light.graph, field) == getattr(exported.graph, field)


def shorten(model: onnx.ModelProto) -> None:
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = largest.raw_data[:-4]


def reshape(model: onnx.ModelProto) -> None:
    """More channels than the map has that it is applied to."""
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(t for t in model.graph.initializer if t.name == convolution.input[1])
    weight.dims[0], weight.dims[1] = weight.dims[1], weight.dims[0]


def retype(model: onnx.ModelProto) -> None:
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(t for t in model.graph.initializer if t.name == convolution.input[1])
    values = numpy_helper.to_array(weight).astype(np.float16)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def misspell(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Rellu"


def disconnect(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").input[0] = "nowhere"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, r"initializer .* of shape .* has \d+ bytes, expected \d+"),
        (reshape, "Conv|shape|dimension"),
        (retype, "type"),
        (misspell, "Rellu"),
        (disconnect, "nowhere"),
    ],
)
def test_damage_is_found(
    exported: onnx.ModelProto, damage: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    _check(model)
    damage(model)
    with pytest.raises(ExportError, match=rf"fails ONNX's checker: (.|\n)*({message})"):
        _check(model)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_of_all_precisions(dtype: int) -> None:
    size = 4 if dtype == TensorProto.FLOAT else 2
    weight = helper.make_tensor("w", dtype, (40, 60), bytes(40 * 60 * size), raw=True)
    value = helper.make_tensor_value_info("y", dtype, (40, 60))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    _check(model)
    assert len(model.graph.initializer) == 1
    assert [value.name for value in model.graph.input] == []
