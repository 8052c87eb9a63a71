"""Quantized detectors: what is in the files, what they find, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pycocotools import mask as coco_mask

from carafe_deploy.artefacts import open_runner
from carafe_deploy.engine.onnx_model import info_of
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    ImageError,
    UnsupportedLevelError,
)
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import find_images, load_image
from carafe_deploy.masks import decode_mask
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.parity import run_parity
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.quantize.calibration import Calibration
from carafe_deploy.quantize.job import Quantizer
from carafe_deploy.quantize.layers import SHORTCUTS, layers_of
from carafe_deploy.quantize.sensitivity import Sensitivity, detections_change
from carafe_deploy.types import METADATA_KEY, Detections, ModelInfo

COUNT = 12


@pytest.fixture(scope="module")
def images(shapes_dir: Path) -> list[Path]:
    return find_images(shapes_dir / "val")[:COUNT]


@pytest.fixture(scope="module")
def source(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, beside which ranges may be kept."""
    return Path(shutil.copy(onnx_file, tmp_path_factory.mktemp("quantize") / "mask.onnx"))


@pytest.fixture(scope="module")
def cpu(source: Path, images: list[Path]) -> Quantizer:
    return Quantizer(source, Calibration(images))


@pytest.fixture(scope="module")
def tensorrt(source: Path, images: list[Path]) -> Quantizer:
    return Quantizer(source, Calibration(images), target="tensorrt")


@pytest.fixture(scope="module")
def quantized(cpu: Quantizer, source: Path) -> Path:
    cpu.write(path := source.with_name("int8.onnx"))
    return path


def pairs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear"]


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def test_layers_are_called_as_the_checkpoint_calls_them(
    cpu: Quantizer, checkpoints: dict[str, Path]
) -> None:
    detector, _ = load_detector(checkpoints["mask"])
    known = {name.removesuffix(".weight") for name in detector.state_dict()}
    names = [layer.name for layer in cpu.layers]
    assert names[-1] == SHORTCUTS
    assert set(names[:-1]) <= known
    assert "roi_head.bbox_head.fc_cls" in names
    [shared] = [layer for layer in cpu.layers if layer.name == "rpn_head.rpn_conv"]
    assert len(shared.nodes) == 5


def test_a_file_that_takes_bytes_has_the_same_layers(
    cpu: Quantizer, export: Callable[..., Path]
) -> None:
    whole = export("mask", ".onnx", ExportOptions(uint8_input=True))
    names = [layer.name for layer in layers_of(onnx.load(whole))]
    assert names == [layer.name for layer in cpu.layers]


def test_a_channel_without_weights_keeps_its_bias(
    source: Path, images: list[Path], tmp_path: Path
) -> None:
    """Else its step would be that of the input."""
    model = onnx.load(source)
    weight, bias = (
        next(each for each in model.graph.initializer if each.name == f"detector.{name}")
        for name in ("rpn_head.rpn_conv.weight", "rpn_head.rpn_conv.bias")
    )
    values = numpy_helper.to_array(weight).copy()
    values[3] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    expected = numpy_helper.to_array(bias)
    onnx.save(model, tmp_path / "empty.onnx")
    quantizer = Quantizer(tmp_path / "empty.onnx", Calibration(images[:8]))
    quantizer.write(tmp_path / "q.onnx")
    written = onnx.load(tmp_path / "q.onnx")
    stored = initializers(written)
    node, *_ = [  # one for each level, of the same numbers
        node
        for node in written.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].startswith(bias.name)
    ]
    found = stored[node.input[0]] * stored[node.input[1]]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_the_file_is_a_third_and_finds_nearly_the_same(
    source: Path, quantized: Path, images: list[Path]
) -> None:
    assert quantized.stat().st_size < 0.35 * source.stat().st_size
    found = []
    for path in (source, quantized):
        with open_runner(path) as runner:
            found.append(Pipeline(runner).detect(images))
    assert 0 < detections_change(*found) < 0.25


def test_its_metadata(source: Path, quantized: Path, images: list[Path]) -> None:
    with open_runner(source) as runner:
        float_info = runner.info
    with open_runner(quantized) as runner:
        info = runner.info
    assert (info.precision, info.float_precision) == ("int8", "fp32")
    assert info.quantization is not None
    assert info.quantization.images == len(images)
    assert info.quantization.target == "cpu"
    assert info.quantization.layers[0] == "backbone.conv1"
    assert float_info.quantization is None
    assert ModelInfo.from_json(info.to_json()) == info
    assert "quantization" not in json.loads(float_info.to_json())
    assert info.quantization.percentile is None
    for changed, words in ((float_info, "which holds some of"), (info, "which holds none of")):
        model = onnx.load(quantized if changed is float_info else source)
        helper.set_model_props(model, {METADATA_KEY: changed.to_json()})
        with pytest.raises(ArtefactError, match=words):
            info_of("x.onnx", model)
    lacking = json.loads(info.to_json())
    del lacking["quantization"]
    with pytest.raises(ArtefactError, match="quantization is missing"):
        ModelInfo.from_json(json.dumps(lacking))


def test_for_tensorrt_activations_are_symmetric_and_biases_float(
    tensorrt: Quantizer, tmp_path: Path
) -> None:
    tensorrt.write(tmp_path / "trt.onnx")
    model = onnx.load(tmp_path / "trt.onnx")
    stored = initializers(model)
    for node in pairs(model):
        assert stored[node.input[2]].dtype == np.int8
        assert not stored[node.input[2]].any()
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        rounded = [made[name].op_type for name in node.input if name in made]
        if node.domain == "carafe" or node.op_type in ("MaxPool", "Reshape", "Sigmoid"):
            assert "DequantizeLinear" not in rounded, node.name
        if node.op_type == "Conv":
            assert set(rounded) == {"DequantizeLinear"}, node.name
            assert stored[node.input[2]].dtype == np.float32
    sums = next(layer for layer in layers_of(onnx.load(tensorrt.path)) if layer.name == SHORTCUTS)
    for node in model.graph.node:
        if node.name in sums.nodes:
            assert [made[name].op_type for name in node.input] == ["DequantizeLinear"] * 2


def test_layers_kept_in_float(cpu: Quantizer, tmp_path: Path) -> None:
    kept = ("backbone.conv1", "rpn_head.rpn_cls")
    info = cpu.write(tmp_path / "some.onnx", (name for name in kept))
    assert info.quantization is not None
    assert info.quantization.kept_float == kept
    assert len(info.quantization.layers) == len(cpu.layers) - 2
    stored = initializers(onnx.load(tmp_path / "some.onnx"))
    for name in kept:
        assert stored[f"detector.{name}.weight"].dtype == np.float32
    names = [layer.name for layer in cpu.layers]
    for only in (names[-1], names[3]):
        cpu.write(tmp_path / "one.onnx", [name for name in names if name != only])
    with pytest.raises(ArtefactError, match="no layer 'conv9'"):
        cpu.write(tmp_path / "other.onnx", ["conv9"])
    with pytest.raises(ArtefactError, match="no layer is left"):
        cpu.write(tmp_path / "other.onnx", [layer.name for layer in cpu.layers])
    assert not (tmp_path / "other.onnx").exists()


def test_parity_compares_operators_and_detections(
    source: Path, quantized: Path, images: list[Path]
) -> None:
    pictures = [load_image(path) for path in images[:4]]
    with open_runner(source) as reference, open_runner(quantized) as candidate:
        report = run_parity(reference, candidate, images=pictures)
        assert report.passed
        assert {row.level for row in report.rows} == {"operators", "detections"}
        assert "8 bits" in report.skipped["stages"]
        with pytest.raises(UnsupportedLevelError, match="8 bits"):
            run_parity(reference, candidate, images=pictures, levels=["stages"])


def test_a_checkpoint_runs_beside_it_in_float(quantized: Path) -> None:
    with open_runner(quantized) as runner:
        assert ExportOptions.like(runner.info).precision == "fp32"


def test_of_a_half_precision_file(
    export: Callable[..., Path],
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = export("faster", ".onnx", ExportOptions(precision="fp16"))
    path = Path(shutil.copy(half, tmp_path / "half.onnx"))
    with pytest.raises(ArtefactError, match="--precision fp32"):
        Quantizer(path, Calibration(images))
    info = Quantizer(path, Calibration(images), target="tensorrt").write(tmp_path / "q.onnx")
    assert info.float_precision == "fp16"
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.28.3")
        with pytest.raises(BackendUnavailableError, match=r"1\.28\.3 quantizes float16 wrongly"):
            open_runner(tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(model)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {19}
    found = []
    for each in (path, tmp_path / "q.onnx"):
        with open_runner(each) as runner:
            found.append(Pipeline(runner).detect(images[:4]))
    assert detections_change(*found) < 0.35


def test_float8(source: Path, images: list[Path], tmp_path: Path) -> None:
    quantizer = Quantizer(source, Calibration(images), target="tensorrt", values="fp8")
    assert quantizer.write(tmp_path / "q.onnx").precision == "fp8"
    model = onnx.load(tmp_path / "q.onnx")
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    assert {kinds[node.input[2]] for node in pairs(model)} == {TensorProto.FLOAT8E4M3FN}
    found = []
    for each in (source, tmp_path / "q.onnx"):
        with open_runner(each) as runner:
            found.append(Pipeline(runner).detect(images[:4]))
    assert detections_change(*found) < 0.35
    with pytest.raises(CarafeDeployError, match="it takes int8"):
        Quantizer(source, Calibration(images), values="fp8")


# --- sensitivity ---------------------------------------------------------------------------------


def test_errors_of_layers_are_those_of_rounding(cpu: Quantizer) -> None:
    order = cpu.sensitivity(images=2)
    assert {row.layer for row in order} == {layer.name for layer in cpu.layers}
    harms = [row.harm for row in order]
    assert harms == sorted(harms, reverse=True)
    assert harms[-1] > 1e-4
    assert harms[0] < 0.1


def test_keeping_float_until_it_is_good_enough(cpu: Quantizer) -> None:
    order = [Sensitivity(layer.name, 0.0) for layer in cpu.layers]
    losses = {count: 1.0 / (1 + count) for count in range(len(order))}
    asked: list[int] = []

    def loss(kept: object) -> float:
        asked.append(len(tuple(kept)))  # type: ignore[call-overload]
        return losses[asked[-1]]

    trial = cpu.keep_float(order, loss, wanted=1 / 6)
    assert len(trial.kept_float) == 5
    assert asked == [0, 1, 2, 4, 8, 6, 5]
    assert cpu.keep_float(order, lambda kept: 0.0, 0.0).kept_float == ()
    with pytest.raises(CarafeDeployError, match=r"the loss is 1\.0000 with 49 of 50"):
        cpu.keep_float(order, lambda kept: 1.0, 0.5)


def test_change_of_detections(source: Path, images: list[Path]) -> None:
    with open_runner(source) as runner:
        found = Pipeline(runner).detect(images[:2])
    assert detections_change(found, found) == pytest.approx(0, abs=1e-6)
    nothing = [
        dataclasses.replace(one, boxes=one.boxes[:0], scores=one.scores[:0], labels=one.labels[:0])
        for one in found
    ]
    assert detections_change(found, nothing) == 1
    assert detections_change(nothing, found) == 1
    with pytest.raises(CarafeDeployError, match="finds nothing in 2 images"):
        detections_change(nothing, nothing)
    # Of masks cut in half, half is left; without masks being asked for, everything.
    cut = [dataclasses.replace(one, masks=tuple(map(_left_half, one.masks or ()))) for one in found]
    assert detections_change(found, cut) == pytest.approx(0, abs=1e-6)
    assert 0.2 < detections_change(found, cut, masks=True) < 0.8
    assert detections_change(found, found, masks=True) == pytest.approx(0, abs=1e-6)


def _left_half(encoding: dict[str, Any]) -> dict[str, Any]:
    """Of its own columns."""
    pixels = decode_mask(encoding)
    columns = np.flatnonzero(pixels.any(axis=0))
    pixels[:, columns[len(columns) // 2] :] = 0
    return coco_mask.encode(np.asfortranarray(pixels))


def test_nothing_to_compare_is_no_success(cpu: Quantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), (9, 9)
    )
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "_detect", lambda path, files: [empty] * len(files))
        with pytest.raises(CarafeDeployError, match="finds nothing in 8 images"):
            cpu.change()
    for count in (0, -1):
        with pytest.raises(CarafeDeployError, match=f"images is {count}: give at least 1"):
            cpu.change(count)
    with pytest.raises(CarafeDeployError, match="order holds no layer"):
        cpu.keep_float((), lambda names: 1.0, 0.1)


# --- ranges and what is refused ------------------------------------------------------------------


def test_ranges_are_kept_and_read_again(source: Path, images: list[Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(source, tmp_path / "mask.onnx"))
    notes: list[str] = []
    first = Quantizer(path, Calibration(images, "mse"), note=notes.append).ranges
    [kept] = tmp_path.glob("*.ranges.json")
    steps: list[int] = []
    again = Quantizer(
        path,
        Calibration(images, "mse"),
        note=notes.append,
        progress=lambda done, total: steps.append(done),
    )
    assert again.ranges == first
    assert not steps
    assert notes == [f"ranges kept in {kept}", f"ranges of {kept}"]


@pytest.fixture
def kept(cpu: Quantizer, tmp_path: Path) -> Path:
    path = tmp_path / "ranges.json"
    path.write_text(cpu.ranges.to_json())
    return path


def test_ranges_of_something_else(
    kept: Path, source: Path, images: list[Path], export: Callable[..., Path]
) -> None:
    other = export("faster", ".onnx", ExportOptions(precision="fp32"))
    for path, calibration, settings, words in (
        (other, Calibration(images, cache=kept), {}, "of another ONNX file"),
        (source, Calibration(images[1:], cache=kept), {}, "from other images"),
        (source, Calibration(images, "mse", cache=kept), {}, "by the method minmax"),
        (source, Calibration(images, cache=kept), {"target": "tensorrt"}, "for another target"),
    ):
        with pytest.raises(ArtefactError, match=f"{words}: name another file of ranges, or none"):
            _ = Quantizer(path, calibration, **settings).ranges


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"images": 12', '"images": 0', "images is 0"),
        ('"images": 12', '"images": 5', "of another number of images: 5"),
        ('"schema": 2', '"schema": 9', "its schema is not 2"),
        ('"sha256": "', '"sha256": "0', "they are not those that were written"),
        ('"bounds": {', '"bounds": {"x": [1, 2],', "without zero"),
        ('"images_DequantizeLinear', "", ""),
        ("{", "[", "no JSON"),
    ],
)
def test_damaged_ranges(
    kept: Path, source: Path, images: list[Path], old: str, new: str, words: str
) -> None:
    text = kept.read_text()
    if not words:
        data = json.loads(text)
        del data["bounds"]["images"]
        ranges = json.dumps(data["bounds"], sort_keys=True)
        data["sha256"] = hashlib.sha256(ranges.encode()).hexdigest()
        text, words = json.dumps(data), "lacks ranges of images and 0 others"
    kept.write_text(text.replace(old, new, 1))
    with pytest.raises(ArtefactError, match=words):
        _ = Quantizer(source, Calibration(images, cache=kept)).ranges


def test_damaged_ranges_that_nobody_named_may_be_deleted(
    source: Path, images: list[Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(source, tmp_path / "mask.onnx"))
    first = Quantizer(path, Calibration(images[:8])).ranges
    [kept] = tmp_path.glob("*.ranges.json")
    kept.write_text("{}")
    with pytest.raises(
        ArtefactError, match=r"ranges\.json holds no ranges .*: delete it, and they"
    ):
        _ = Quantizer(path, Calibration(images[:8])).ranges
    kept.unlink()
    assert Quantizer(path, Calibration(images[:8])).ranges == first


@pytest.mark.parametrize("given", ["/dev/full", ".", "source", "image"])
def test_what_is_no_file_of_ranges_is_left_alone(
    source: Path, images: list[Path], given: str
) -> None:
    cache = {"source": source, "image": images[0]}.get(given, Path(given))
    with pytest.raises(ArtefactError, match=r"holds no ranges .*: name another file") as raised:
        _ = Quantizer(source, Calibration(images, cache=cache)).ranges
    assert "delete" not in str(raised.value)


def test_the_same_image_again_is_none_more(source: Path, images: list[Path]) -> None:
    with pytest.raises(ImageError, match="calibration has 2 different images, from which"):
        _ = Quantizer(source, Calibration(images[:2] * 6)).ranges


def test_a_folder_that_takes_no_ranges(source: Path, images: list[Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(source, tmp_path / f"{'x' * 240}.onnx"))  # theirs is too long a name
    notes: list[str] = []
    _ = Quantizer(path, Calibration(images), note=notes.append).ranges
    assert "ranges are not kept, name another file for them (--ranges)" in notes[0]


def test_ranges_that_cannot_be_kept(source: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CarafeDeployError, match="cannot write"):
        _ = Quantizer(source, Calibration(images, cache=tmp_path / "file" / "ranges.json")).ranges


def test_a_truncated_image_among_them(source: Path, images: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:200])
    with pytest.raises(ImageError, match=r"broken\.png"):
        _ = Quantizer(source, Calibration([*images, broken])).ranges


def test_too_few_images(source: Path, images: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"calibration has 1 image, .* at least 8"):
        Quantizer(source, Calibration(images[:1]))


def test_what_is_quantized_already(quantized: Path, images: list[Path]) -> None:
    with pytest.raises(ArtefactError, match="is quantized already"):
        Quantizer(quantized, Calibration(images))


def test_other_refusals(cpu: Quantizer, source: Path, images: list[Path], tmp_path: Path) -> None:
    for settings, calibration, words in (
        ({"target": "gpu"}, {}, "target is 'gpu': choose from cpu, tensorrt"),
        ({"values": "int4"}, {}, "it takes int8"),
        ({}, {"method": "best"}, "method is 'best': choose from minmax"),
        ({}, {"percentile": 5.0}, r"percentile is 5\.0"),
        ({}, {"percentile": "99"}, "percentile is '99'"),
        ({}, {"threads": 0}, "threads is 0: give at least 1"),
    ):
        with pytest.raises(CarafeDeployError, match=words):
            Quantizer(source, Calibration(images, **calibration), **settings)
    for wrong in ("/folder", 7, [np.zeros(3)]):
        with pytest.raises(ImageError, match=r"give paths"):
            Calibration(wrong)
    with pytest.raises(CarafeDeployError, match="is the file to quantize"):
        cpu.write(source)
    with pytest.raises(ArtefactError, match="float_layers is 'shortcuts': give a list"):
        cpu.write(tmp_path / "x.onnx", "shortcuts")
    count = len(cpu.layers)
    with pytest.raises(ArtefactError, match=f"keep at most {count - 1} of {count} in float"):
        cpu.write(tmp_path / "x.onnx", [layer.name for layer in cpu.layers])
    ranges = tmp_path / "r.json"
    with pytest.raises(CarafeDeployError, match="is the file of ranges"):
        Quantizer(source, Calibration(images, cache=ranges)).check(ranges)
    with pytest.raises(CarafeDeployError, match="measure is 'guess'"):
        cpu.sensitivity("guess")
    with pytest.raises(ArtefactError, match="does not exist"):
        Quantizer(tmp_path / "none.onnx", Calibration(images))
    stranger = onnx.load(source)
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "stranger.onnx")
    with pytest.raises(ArtefactError, match="no carafe_deploy metadata"):
        Quantizer(tmp_path / "stranger.onnx", Calibration(images))
