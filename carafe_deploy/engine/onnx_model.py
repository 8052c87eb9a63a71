"""An exported ONNX file as the engine builder sees it. Needs the onnx package."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from carafe_deploy.backends import backend_of, mistaken
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError
from carafe_deploy.files import sha256_of
from carafe_deploy.types import DOMAIN, METADATA_KEY, ModelInfo


@dataclass(frozen=True, repr=False)
class CustomNode(OneLine):
    """A node of domain ``carafe``: name, operator (``"Carafe"``, ...), attributes, outputs."""

    name: str
    operator: str
    attributes: Mapping[str, Any]
    outputs: list[str]

    @property
    def names_a_plugin(self) -> bool:
        """TensorRT's parser takes the plugin for it, and not the function body."""
        return self.attributes.get("plugin_namespace") == DOMAIN


@dataclass(frozen=True, repr=False)
class SourceModel(OneLine):
    """What is needed of the file besides TensorRT's own reading of it; ``nodes`` in order."""

    path: Path
    sha256: str
    info: ModelInfo
    nodes: tuple[CustomNode, ...]


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a file without external weights.

    Raises:
        ArtefactError: the file is missing, truncated or no ONNX, or its suffix says that it is
            something else.
    """
    path = Path(path)
    other = mistaken(path, "onnxruntime")
    if other is not None:
        raise ArtefactError(f"{other}: {_remedy(path)}")
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist: export it first")
    try:
        # Whatever the suffix: onnx would read .json and others as text.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ArtefactError(
            f"{path} is truncated, damaged or no ONNX file ({error}): export it again"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ArtefactError(f"{path} is truncated or no ONNX file: export it again")
    return model


@contextmanager
def text_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, texts of the file that are none are refused by its name; protobuf decodes late.

    Raises:
        ArtefactError: there is one.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArtefactError(
            f"{path} holds a text that is no UTF-8 ({error}): export it again"
        ) from error


def _remedy(path: Path) -> str:
    backend = backend_of(path)
    if backend == "pytorch":
        return f"`carafe-deploy export {path}` first makes an ONNX file of it"
    if backend == "tensorrt":
        return "engines are built from ONNX files, give the one that it was built from"
    return "engines are built from ONNX files, `carafe-deploy export CHECKPOINT.pth` makes one"


def read_model(path: str | os.PathLike[str]) -> SourceModel:
    """Read a detector written by ``export_onnx``.

    Raises:
        ArtefactError: see :func:`read_onnx`; or it was exported by something else.
    """
    model = read_onnx(path)
    info = info_of(path, model)
    with text_of(path):
        nodes = custom_nodes(model)
    return SourceModel(Path(path), sha256_of(path), info, nodes)


def info_of(path: str | os.PathLike[str], model: onnx.ModelProto) -> ModelInfo:
    """The metadata of a detector that :func:`read_onnx` read.

    Raises:
        ArtefactError: it was exported by something else, or the metadata is damaged.
    """
    with text_of(path):
        properties = {entry.key: entry.value for entry in model.metadata_props}
    text = properties.get(METADATA_KEY)
    if text is None:
        raise ArtefactError(
            f"{path} holds no carafe_deploy metadata: export the checkpoint with "
            "`carafe-deploy export`"
        )
    info = ModelInfo.from_json(text, path)
    if (info.quantization is not None) != is_quantized(model):
        holds = "none" if info.quantization is not None else "some"
        raise ArtefactError(
            f"the metadata of {path} does not fit its graph, which holds {holds} of the nodes that "
            "quantize: export or quantize it again"
        )
    return info


def is_quantized(model: onnx.ModelProto) -> bool:
    """It holds QuantizeLinear or DequantizeLinear."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def custom_nodes(model: onnx.ModelProto) -> tuple[CustomNode, ...]:
    """All nodes of domain ``carafe``, in order."""
    return tuple(
        CustomNode(
            node.name,
            node.op_type,
            {attribute.name: _value(attribute) for attribute in node.attribute},
            list(node.output),
        )
        for node in model.graph.node
        if node.domain == DOMAIN
    )


def _value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return [_plain(each) for each in value] if isinstance(value, list) else _plain(value)


def _plain(value: Any) -> Any:
    """For JSON, which has neither bytes nor infinity, nor tensors."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float)) else type(value).__name__
