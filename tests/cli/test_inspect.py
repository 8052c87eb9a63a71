"""`carafe-deploy inspect` on ONNX files and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from carafe_deploy.engine.sidecar import sidecar_path
from tests.engine import fake_tensorrt
from tests.engine.tiny import PLUGIN, tiny_model

Run = Callable[..., Any]
ONES = np.ones(2, np.float32)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trt = fake_tensorrt.install(monkeypatch)
    trt.message = "(cudaError 35: CUDA driver version is insufficient)"
    return fake_tensorrt.write_engine(tmp_path / "tiny.engine", trt)


def test_an_onnx_file_as_json(run: Run, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.onnx")
    result = run("inspect", path, "--json").json
    assert (result["kind"], result["bytes"]) == ("onnx", path.stat().st_size)
    assert result["opsets"] == {"ai.onnx": 18, "carafe": 1}
    assert result["inputs"][0] == {
        "name": "images", "shape": ["batch", 3, "height", "width"], "dtype": "float32"
    }  # fmt: skip
    assert [output["name"] for output in result["outputs"]] == ["det_boxes", "det_scores"]
    assert result["layers"] == {"Conv": 1, "Identity": 1, "Relu": 1, "carafe.CarafeEncoded": 1}
    assert result["functions"] == 1
    assert result["plugins"] == [
        {
            "name": "upsample",
            "operator": "CarafeEncoded",
            "attributes": {"kernel_size": 5, "group_size": 1, "scale_factor": 2, **PLUGIN},
            "outputs": ["upsampled"],
        }
    ]
    assert result["model"]["classes"] == ["cat", "dog"]


def test_attributes_that_json_has_no_words_for(run: Run, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.onnx")
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.domain)
    odd = {"texts": [b"a", b"\xff"], "level": float("nan"), "table": numpy_helper.from_array(ONES)}
    node.attribute.extend(helper.make_attribute(*item) for item in odd.items())
    onnx.save(model, path)
    found = run("inspect", path, "--json").json["plugins"][0]["attributes"]
    shown = {name: found[name] for name in odd}
    assert shown == {"texts": ["a", "\\xff"], "level": "nan", "table": "TensorProto"}


def test_an_onnx_file_as_text(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", tiny_model(tmp_path / "tiny.onnx"))
    assert outcome.status == 0, outcome.err
    for text in (
        "ONNX, IR 10, opset ai.onnx 18, carafe 1, 1 function",
        "images float32 [batch, 3, height, width]",
        "2: cat, dog",
        "batch 1–4, height 64–192, width 64–256",
        "4 layers by type",
        "1 custom node\n",
        "group_size=1 kernel_size=5 scale_factor=2",
    ):
        assert text in outcome.out
    assert "no plugin is named" not in outcome.out


def test_nodes_that_name_no_plugin_are_pointed_out(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", tiny_model(tmp_path / "tiny.onnx", plugin=False))
    assert "upsample: no plugin is named, TensorRT takes the function body" in outcome.out


def test_a_file_of_another_exporter(run: Run, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.onnx", custom=False, metadata=False)
    assert run("inspect", path, "--json").json["model"] is None
    assert "no carafe_deploy metadata: exported by something else" in run("inspect", path).out


def test_an_engine_as_json(run: Run, engine: Path) -> None:
    result = run("inspect", engine, "--json").json
    assert (result["kind"], result["flavour"]) == ("engine", "tensorrt")
    assert result["compute_capabilities"] == ["8.9"]
    assert result["inputs"][0]["shape"] == ["batch", 3, "64*height", "64*width"]
    assert result["model"]["name"] == "tiny"
    assert result["details"] is None
    assert "needs an NVIDIA GPU and its driver" in result["why_no_details"]


def test_an_engine_as_text(run: Run, engine: Path) -> None:
    outcome = run("inspect", engine)
    assert outcome.status == 0, outcome.err
    for text in (
        f"tensorrt {fake_tensorrt.VERSION}",
        "tiny.onnx, SHA-256 00…",
        "min 1×64×64, opt 1×64×64, max 4×192×256",
        "The engine itself was not opened:",
        "cudaError 35",
    ):
        assert text in outcome.out


def test_a_checkpoint(run: Run, checkpoint: Path) -> None:
    result = run("inspect", checkpoint, "--json").json
    assert (result["kind"], result["bytes"]) == ("checkpoint", checkpoint.stat().st_size)
    assert (result["name"], result["architecture"]) == ("shapes_mask_rcnn_carafe", "mask_rcnn")
    assert result["classes"] == ["circle", "square", "triangle"]
    assert result["config"]["backbone"] == {"depth": 18, "base_channels": 16}
    counted = torch.load(checkpoint, weights_only=True)["state_dict"].items()
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert result["parameters"] == sum(t.numel() for k, t in counted if not k.endswith(buffers))
    outcome = run("inspect", checkpoint)
    assert outcome.status == 0, outcome.err
    for text in (
        "checkpoint of mmdetection, SHA-256 fbec7e06",
        "shapes_mask_rcnn_carafe: mask_rcnn",
        "ResNet-18, FPN_CARAFE with 32 channels",
        "3: circle, square, triangle",
        "resized to within 160×128, padded to multiples of 64",
        "score > 0.05, NMS IoU 0.5, at most 100, masks at 0.5",
        f"carafe-deploy export {checkpoint}",
    ):
        assert text in outcome.out


def test_a_checkpoint_with_a_config_beside_it(
    run: Run, checkpoint: Path, shapes_configs: dict[str, str]
) -> None:
    text = shapes_configs["shapes_mask_rcnn_carafe"]
    assert text.count("score_thr=0.05") > 0
    Path("config.py").write_text(text.replace("score_thr=0.05", "score_thr=0.2"))
    result = run("inspect", checkpoint, "--config", "config.py", "--json").json
    assert result["config"]["box"]["score_threshold"] == 0.2
    run("inspect", "x.onnx", "--config", "config.py").assert_refused(
        "--config config.py belongs to a .pth checkpoint, not to x.onnx"
    )


def test_a_torchscript_file(run: Run, ts_file: Path) -> None:
    result = run("inspect", ts_file, "--json").json
    assert (result["kind"], result["bytes"]) == ("torchscript", ts_file.stat().st_size)
    assert result["model"]["classes"] == ["circle", "square", "triangle"]
    assert result["outputs"][-1]["name"] == "det_masks"
    calls = [call["name"] for call in result["operators"]]
    outcome = run("inspect", ts_file)
    assert outcome.status == 0, outcome.err
    for text in (
        "TorchScript",
        "images float32 [batch, 3, 64*height, 64*width]",
        "shapes_mask_rcnn_carafe: mask_rcnn, fp32",
        f"{len(calls)} custom operators",
        f"{calls.count('batched_nms')}  batched_nms",
    ):
        assert text in outcome.out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plan: plan[:-1], "it is truncated or of another build"),
        (lambda plan: b"", "has 0 bytes, its sidecar says"),
        (lambda plan: bytes([plan[0] ^ 1]) + plan[1:], "has another SHA-256 than its sidecar says"),
    ],
)
def test_a_damaged_engine_is_not_described(
    run: Run, engine: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    copy = tmp_path / "copy.engine"
    copy.write_bytes(damage(engine.read_bytes()))
    sidecar_path(copy).write_bytes(sidecar_path(engine).read_bytes())
    run("inspect", copy).assert_refused(message)


def test_an_engine_without_its_sidecar(run: Run, engine: Path) -> None:
    sidecar_path(engine).unlink()
    run("inspect", engine).assert_refused(
        "tiny.engine.json is missing: copy it along with the engine"
    )
