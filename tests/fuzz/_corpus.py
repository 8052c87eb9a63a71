"""Small artefacts of every kind, made here, for the attack on what reads them."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from carafe_deploy.data import data_path
from carafe_deploy.engine.profiles import Profile
from carafe_deploy.engine.sidecar import PluginLayer, PluginRecord, Sidecar, sidecar_path
from carafe_deploy.types import METADATA_KEY, InputFormat, ModelInfo, OperatorCall, Preprocessing

ROWS, SIDE = 3, 4


def info(masks: bool = True) -> ModelInfo:
    """Of a detector that finds the same two things in every image."""
    return ModelInfo(
        name="toy",
        architecture="mask_rcnn" if masks else "faster_rcnn",
        classes=("circle", "square", "triangle"),
        preprocessing=Preprocessing(scale=(128, 64)),
        input=InputFormat(batch=(1, 4), height=(64, 128), width=(64, 128)),
        max_detections=ROWS,
        mask_size=SIDE if masks else 0,
        source={"file": "toy.pth", "sha256": "ab" * 32},
        versions={"carafe_deploy": "0"},
        operators=(
            OperatorCall(
                "carafe_encoded",
                ((1, 4, 3, 3), (1, 36, 3, 3)),
                {"kernel_size": 3, "group_size": 1, "scale_factor": 2},
            ),
        ),
        stages=("P2",),
    )


def _found(masks: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs for one image."""
    outputs = {
        "num_dets": np.array([[2]], np.int32),
        "det_boxes": np.array([[[1, 2, 30, 40], [5, 5, 60, 60], [0, 0, 0, 0]]], np.float32),
        "det_scores": np.array([[0.9, 0.6, 0]], np.float32),
        "det_classes": np.array([[2, 0, -1]], np.int32),
    }
    if masks:
        outputs["det_masks"] = np.full((1, ROWS, SIDE, SIDE), 0.7, np.float32)
    return outputs


def onnx_model(masks: bool) -> onnx.ModelProto:
    """Repeats those outputs for each image of the batch."""
    found = _found(masks)
    constants = {f"{name}_one": array for name, array in found.items()}
    constants |= {"zero": np.array([0], np.int64), "one": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Shape", ["image_sizes"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
    ]
    for name, array in found.items():
        constants[f"{name}_ones"] = np.ones(array.ndim - 1, np.int64)
        nodes += [
            helper.make_node("Concat", ["batch", f"{name}_ones"], [f"{name}_by"], axis=0),
            helper.make_node("Tile", [f"{name}_one", f"{name}_by"], [name]),
        ]
    kinds = {np.dtype("int32"): TensorProto.INT32, np.dtype("float32"): TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "h", "w"]),
            helper.make_tensor_value_info("image_sizes", TensorProto.FLOAT, ["batch", 2]),
        ],
        [
            helper.make_tensor_value_info(name, kinds[array.dtype], ["batch", *array.shape[1:]])
            for name, array in found.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: info(masks).to_json()})
    return model


class Toy(torch.nn.Module):
    """The same in TorchScript, without masks."""

    def forward(self, images: torch.Tensor, image_sizes: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
    ]:  # fmt: skip
        batch = image_sizes.shape[0]
        return (
            torch.tensor([[2]], dtype=torch.int32).repeat(batch, 1),
            torch.tensor([[[1, 2, 30, 40], [5, 5, 60, 60], [0, 0, 0, 0]]])
            .float()
            .repeat(batch, 1, 1),
            torch.tensor([[9, 6, 0]]).repeat(batch, 1) / 10,
            torch.tensor([[2, 0, -1]], dtype=torch.int32).repeat(batch, 1),
        )

    @torch.jit.export
    def stages(self, images: torch.Tensor, image_sizes: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
    ]:  # fmt: skip
        return self.forward(images, image_sizes)


class Broken(Toy):
    """Loads, and fails when it runs."""

    def forward(self, images: torch.Tensor, image_sizes: torch.Tensor) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
    ]:  # fmt: skip
        return images, image_sizes, images.reshape(7), images


def write_torchscript(path: Path, metadata: bytes, broken: bool = False) -> None:
    """With this text for its metadata."""
    module = Broken() if broken else Toy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, str(path), _extra_files={METADATA_KEY: metadata})


def sidecar_of(plan: bytes) -> dict[str, Any]:
    """Of an engine with these bytes."""
    size = (1, 64, 64)
    sidecar = Sidecar(
        bytes=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        flavour="tensorrt_rtx",
        version="1.7",
        compute_capabilities=("8.6", "12.0+"),
        plugin=PluginRecord(
            "libcarafe_tensorrt.so",
            "cd" * 32,
            "0.1.0",
            (PluginLayer("n", "Carafe", {"kernel_size": 3}),),
        ),
        source={"file": "toy.onnx", "sha256": "ef" * 32},
        profiles=(Profile(size, size, (4, 128, 128)),),
        stages=False,
        layers={"PLUGIN_V3": 1},
        build={"seconds": 1.5, "peak_memory_bytes": 10, "workspace_bytes": None, "tf32": False},
        model=info(),
    )
    data: dict[str, Any] = json.loads(sidecar.to_json())
    return data


def write_engine(path: Path, plan: bytes, sidecar: bytes) -> None:
    """Both files."""
    path.write_bytes(plan)
    sidecar_path(path).write_bytes(sidecar)


def checkpoint() -> bytes:
    """A small trained detector."""
    [path] = data_path("shapes").glob("shapes_faster_rcnn_carafe-*.pth")
    return path.read_bytes()


def annotations() -> dict[str, Any]:
    """COCO's of the first two validation images."""
    data: dict[str, Any] = json.loads(data_path("shapes", "val.json").read_text())
    images = data["images"][:2]
    chosen = {image["id"] for image in images}
    found = [each for each in data["annotations"] if each["image_id"] in chosen]
    return {**data, "images": images, "annotations": found}
