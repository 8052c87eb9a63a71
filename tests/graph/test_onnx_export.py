"""ONNX files of the small trained detectors: structure, metadata, precision, and failure."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from carafe_deploy.errors import ExportError
from carafe_deploy.graph import onnx_export
from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import Detector, StagedDetector, stage_names
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
from carafe_deploy.stages import describe_stages
from carafe_deploy.tolerances import tolerance
from carafe_deploy.types import METADATA_KEY, ModelInfo

STATIC = ExportOptions((1, 1), (128, 128), (192, 192))


@pytest.fixture(scope="module")
def detector(shapes_dir: Path) -> Detector:
    loaded, _ = load_detector(shapes_dir / "shapes_mask_rcnn_carafe-fbec7e06.pth")
    return loaded


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_inputs_and_outputs_are_named_and_shaped(onnx_file: Path) -> None:
    graph = onnx.load(onnx_file).graph
    assert {value.name: _dimensions(value) for value in graph.input} == {
        "images": ["batch", 3, "64*height", "64*width"],
        "image_sizes": ["batch", 2],
    }
    assert {value.name: _dimensions(value) for value in graph.output} == {
        "num_dets": ["batch", 1],
        "det_boxes": ["batch", 100, 4],
        "det_scores": ["batch", 100],
        "det_classes": ["batch", 100],
        "det_masks": ["batch", 100, 28, 28],
    }


def test_custom_nodes_carry_plugin_attributes_and_bodies(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    nodes = [node for node in model.graph.node if node.domain == "carafe"]
    assert len(nodes) == 11
    bodies = {(function.name, function.overload) for function in model.functions}
    assert {(node.op_type, node.overload) for node in nodes} == bodies
    for node in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_version"] == b"1"
        assert attributes["plugin_namespace"] == b"carafe"
    wide, narrow = (
        {node.overload for node in nodes if node.op_type == "CarafeEncoded" and pick(node)}
        for pick in (lambda n: n is not nodes[-1], lambda n: n is nodes[-1])
    )
    assert wide.isdisjoint(narrow), "one channel and many need different decompositions"


def test_runtimes_that_know_no_overloads_find_the_right_body(onnx_file: Path) -> None:
    """ONNX Runtime before 1.27 takes any body of an operator's name."""
    model = onnx.load(onnx_file)
    names = [function.name for function in model.functions]
    assert names.count("MultilevelRoiAlign") == 1
    assert names.count("BatchedNms") == 1
    assert names.count("RpnCandidates") == names.count("BoxCandidates") == 1
    # Those of CARAFE compute the same, one faster for many channels, the other for few.
    overloads = {f.overload for f in model.functions if f.name == "CarafeEncoded"}
    assert {overload.rpartition("_")[0] for overload in overloads} == {"k5_g1_s2"}


def test_stages_are_named_inside_the_graph(detector: Detector, onnx_file: Path) -> None:
    graph = onnx.load(onnx_file).graph
    known = {value.name: value for value in graph.value_info}
    made = {name for node in graph.node for name in node.output}
    for name in stage_names(detector.config):
        assert name in made
        assert known[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert _dimensions(known["layer2.0"]) == ["batch", 32, "8*height", "8*width"]
    assert _dimensions(known["encoder0"]) == ["batch", 100, "8*height", "8*width"]
    assert _dimensions(known["shared_fc1"]) == ["batch", 1000, 96]


def test_file_speaks_of_no_machine(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_metadata_is_in_the_file(onnx_file: Path, checkpoints: dict[str, Path]) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props}
    info = ModelInfo.from_json(properties[METADATA_KEY], "it")
    assert info.classes == ("circle", "square", "triangle")
    assert info.preprocessing.scale == (160, 128)
    assert info.source == {
        "file": checkpoints["mask"].name,
        "sha256": hashlib.sha256(checkpoints["mask"].read_bytes()).hexdigest(),
    }
    assert info.versions["onnx"] == onnx.__version__
    assert info.input.batch == (1, 8)


def _inputs(batch: int, height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(batch, 3, height, width)).astype(np.float32)
    return {
        "images": images,
        "image_sizes": np.array([[height - 7, width - 11]] * batch, np.float32),
    }


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 128, 64), (3, 64, 192)])
def test_every_admissible_size_runs(
    detector: Detector, onnx_file: Path, size: tuple[int, int, int]
) -> None:
    inputs = _inputs(*size)
    staged = StagedDetector(deployable(detector, ExportOptions()))
    with torch.inference_mode():
        expected = staged(*map(torch.from_numpy, inputs.values()))
    with OnnxRuntimeRunner(onnx_file) as runner:
        found = runner.run_stages(inputs)
        names = (*runner.info.output_names, *runner.info.stages)
    assert [found[name].shape for name in names] == [tuple(t.shape) for t in expected]
    for stage in describe_stages(runner.info.stages):
        if not stage.rows:
            want = expected[names.index(stage.name)].numpy()
            limit = tolerance("stages", stage.kind).value * np.abs(want).max()
            assert np.abs(found[stage.name] - want).max() <= limit, stage.name


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_uint8_input_normalises_and_clears_padding_inside_the_graph(
    detector: Detector, tmp_path: Path, exporter: str
) -> None:
    """Of a detector as it is during training, and without a warning."""
    options = ExportOptions((1, 1), (64, 64), (128, 128), uint8_input=True)
    path = tmp_path / "uint8.onnx"
    detector.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_onnx(detector, path, options, name="toy", source={}, exporter=exporter)
    assert all(module.training for module in detector.modules())
    detector.eval()
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 128, 3), np.uint8)
    pixels[:, 50:] = pixels[:, :, 90:] = 0
    settings = detector.config.preprocessing
    normalised = (pixels[..., ::-1].astype(np.float32) - settings.mean) / settings.std
    normalised[:, 50:] = normalised[:, :, 90:] = 0
    sizes = np.array([[50, 90]], np.float32)
    deployed = StagedDetector(deployable(detector, ExportOptions()))
    with torch.inference_mode():
        images = torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype(np.float32))
        expected = deployed(images, torch.from_numpy(sizes))
    with OnnxRuntimeRunner(path) as runner:
        found = runner.run_stages({"images": pixels, "image_sizes": sizes})
        index = [*runner.info.output_names, *runner.info.stages].index("P2")
    np.testing.assert_allclose(found["P2"], expected[index].numpy(), rtol=0, atol=1e-3)


def test_bfloat16_file_is_valid_and_onnxruntime_says_why_it_cannot_run_it(
    export: Callable[..., Path],
) -> None:
    path = export("mask", ".onnx", ExportOptions((1, 1), (64, 64), (64, 64), precision="bf16"))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert weights == {onnx.TensorProto.BFLOAT16}
    with pytest.raises(Exception, match="no bfloat16 Conv"):
        OnnxRuntimeRunner(path)


def test_thresholds_are_in_the_graph(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "few.onnx"
    options = ExportOptions(
        (1, 1), (64, 64), (64, 64), score_threshold=0.25, nms_iou_threshold=0.3, max_detections=5
    )
    export_onnx(detector, path, options, name="toy", source={}, exporter="torchscript")
    model = onnx.load(path)
    second = [node for node in model.graph.node if node.op_type == "BatchedNms"][1]
    attributes = {a.name: helper.get_attribute_value(a) for a in second.attribute}
    assert attributes["score_threshold"] == pytest.approx(0.25)
    assert attributes["iou_threshold"] == pytest.approx(0.3)
    assert attributes["max_output"] == 5
    with OnnxRuntimeRunner(path) as runner:
        assert runner.run(_inputs(1, 64, 64))["det_boxes"].shape == (1, 5, 4)


def test_unknown_exporter_and_contradictions_are_refused(
    detector: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "no.onnx"
    for options, exporter, message in (
        (STATIC, "scripted", "exporter is 'scripted': choose from dynamo, torchscript"),
        (ExportOptions(), "torchscript", "for static shapes only"),
        (
            ExportOptions((1, 1), (64, 64), (64, 64), precision="bf16"),
            "torchscript",
            "knows no bfloat16 Conv",
        ),
    ):
        with pytest.raises(ExportError, match=message):
            export_onnx(detector, path, options, name="", source={}, exporter=exporter)
    assert list(tmp_path.iterdir()) == []


def test_failing_check_leaves_nothing_behind(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = onnx_export._finish

    def spoil(model: onnx.ModelProto, info: ModelInfo) -> None:
        finish(model, info)
        model.graph.node[0].input[0] = "nowhere"

    monkeypatch.setattr(onnx_export, "_finish", spoil)
    options = ExportOptions((1, 1), (64, 64), (64, 64))
    with pytest.raises(ExportError, match="fails ONNX's checker"):
        export_onnx(
            detector, tmp_path / "x.onnx", options, name="", source={}, exporter="torchscript"
        )
    assert list(tmp_path.iterdir()) == []
