"""What is inside an ONNX file or an engine, as plain data for JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from carafe_deploy.engine.load import check_engine, deserialise, read_engine
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.types import METADATA_KEY, ModelInfo, TensorSpec


def inspect_onnx(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Inputs, outputs, opsets, nodes by type, custom nodes and metadata. Needs the onnx package.

    Files of other exporters are welcome: they have no ``model``.

    Raises:
        ArtefactError: the file is missing, truncated or no ONNX, or its metadata is damaged.
    """
    from carafe_deploy.engine.onnx_model import read_onnx, text_of

    model = read_onnx(path)
    with text_of(path):
        return _onnx_contents(path, model)


def _onnx_contents(path: str | os.PathLike[str], model: Any) -> dict[str, Any]:
    from carafe_deploy.engine.onnx_model import custom_nodes

    graph = model.graph
    initialised = {tensor.name for tensor in graph.initializer}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    text = properties.pop(METADATA_KEY, None)
    return {
        "file": str(path),
        "kind": "onnx",
        "bytes": Path(path).stat().st_size,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value(value) for value in graph.input if value.name not in initialised],
        "outputs": [_value(value) for value in graph.output],
        "layers": _counted(
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.node
        ),
        "functions": len(model.functions),
        "plugins": [dataclasses.asdict(node) for node in custom_nodes(model)],
        "metadata": properties,
        "model": None if text is None else described(ModelInfo.from_json(text, path)),
    }


def inspect_engine(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the sidecar tells and, where TensorRT and a GPU allow, what the engine itself does.

    ``details`` is None where they do not, and ``why_no_details`` says why.

    Raises:
        ArtefactError: the engine is missing, has no readable sidecar, or is not what that says.
    """
    sidecar, _ = read_engine(path)
    data = json.loads(sidecar.to_json())
    del data["model"], data["schema"]
    plugin = data["plugin"]
    layers = [] if plugin is None else plugin.pop("layers")
    details, reason = _details(path)
    return {
        "file": str(path),
        "kind": "engine",
        **data,
        "inputs": [tensor_spec(spec) for spec in sidecar.model.input_specs],
        "outputs": [tensor_spec(spec) for spec in sidecar.model.output_specs],
        "plugins": layers,
        "plugin_library": plugin,
        "model": described(sidecar.model),
        "details": details,
        "why_no_details": reason,
    }


def _details(path: str | os.PathLike[str]) -> tuple[dict[str, Any] | None, str | None]:
    try:
        checked = check_engine(path)
        runtime, engine = deserialise(checked)
    except CarafeDeployError as error:
        return None, str(error)
    trt = checked.flavour.load()
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    details = {
        "tensors": [
            {
                "name": name,
                "mode": engine.get_tensor_mode(name).name.lower(),
                "shape": list(engine.get_tensor_shape(name)),
                "dtype": engine.get_tensor_dtype(name).name,
            }
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
        ],
        "device_memory_bytes": engine.device_memory_size_v2,
        "layers": json.loads(text).get("Layers", []),
    }
    del inspector, engine, runtime  # in the order in which they depend on each other
    return details, None


def described(info: ModelInfo) -> dict[str, Any]:
    """The metadata without the operator calls, which the plugins repeat."""
    data: dict[str, Any] = json.loads(info.to_json())
    del data["operators"], data["schema"]
    return data


def tensor_spec(spec: TensorSpec) -> dict[str, Any]:
    """Name, shape and dtype."""
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _value(value: Any) -> dict[str, Any]:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    shape = [
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or "?"
        for dimension in tensor.shape.dim
    ]
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "shape": shape, "dtype": {"float": "float32"}.get(dtype, dtype)}


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
