"""Small ONNX files with the metadata of a detector, which build in a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from carafe_deploy.graph.functions import attach_function_bodies
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing

PLUGIN = {"plugin_version": "1", "plugin_namespace": "carafe"}
DYNAMIC = InputFormat("nchw_float32", (1, 4), (64, 192), (64, 256))


def tiny_info(bounds: InputFormat = DYNAMIC, **changes: object) -> ModelInfo:
    """Metadata with one stage, ``features``."""
    settings: dict = {
        "name": "tiny",
        "architecture": "faster_rcnn",
        "classes": ("cat", "dog"),
        "preprocessing": Preprocessing(scale=(200, 100)),
        "input": bounds,
        "max_detections": 5,
        "stages": ("features",),
        **changes,
    }
    return ModelInfo(**settings)


def tiny_model(
    path: Path,
    *,
    custom: bool = True,
    plugin: bool = True,
    info: ModelInfo | None = None,
    metadata: bool = True,
) -> Path:
    """Convolution, then one CarafeEncoded, then a ReLU.

    Args:
        path: of the file to write.
        custom: with the CarafeEncoded node.
        plugin: which names TensorRT's plugin; its function body is there in either case.
        info: for the metadata.
        metadata: write it.
    """
    nodes = [helper.make_node("Conv", ["images", "weight"], ["features"], pads=[1, 1, 1, 1])]
    if custom:
        attributes = {"kernel_size": 5, "group_size": 1, "scale_factor": 2}
        nodes.append(
            helper.make_node(
                "CarafeEncoded",
                ["images", "features"],
                ["upsampled"],
                name="upsample",
                domain="carafe",
                **attributes,
                **(PLUGIN if plugin else {}),
            )
        )
    nodes.append(helper.make_node("Relu", ["upsampled" if custom else "features"], ["det_boxes"]))
    weight = np.random.default_rng(0).normal(size=(100, 3, 3, 3)).astype(np.float32)
    sizes = helper.make_tensor_value_info("image_sizes", 1, ["batch", 2])
    nodes.append(helper.make_node("Identity", ["image_sizes"], ["det_scores"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", 1, ["batch", 3, "height", "width"]), sizes],
        [
            helper.make_tensor_value_info("det_boxes", 1, [None] * 4),
            helper.make_tensor_value_info("det_scores", 1, ["batch", 2]),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    if custom:
        attach_function_bodies(model)
    if metadata:
        helper.set_model_props(model, {"carafe_deploy": (info or tiny_info()).to_json()})
    onnx.save(model, path)
    return path
