"""Engines of the small trained detectors: built by TensorRT-RTX here, run where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from carafe_deploy.artefacts import open_runner
from carafe_deploy.engine.build import BuildOptions, _Build, build_engine
from carafe_deploy.engine.contents import inspect_engine
from carafe_deploy.engine.device import choose_backend
from carafe_deploy.engine.onnx_model import read_model
from carafe_deploy.engine.sidecar import Sidecar, sidecar_path
from carafe_deploy.errors import ArtefactError, BackendUnavailableError, EngineError
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import load_image
from carafe_deploy.parity import run_parity, walk_stages
from carafe_deploy.runners.tensorrt import MODES, TensorRTRunner

CHECKPOINTS = {
    "faster": "shapes_faster_rcnn_carafe-2a9d7f44.pth",
    "mask": "shapes_mask_rcnn_carafe-fbec7e06.pth",
}
STATIC = ((2, 2), (128, 128), (192, 192))

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(export: Make, request: pytest.FixtureRequest) -> Make:
    """(model, precision, dynamic) -> ONNX file; only one is dynamic."""

    def make(model: str = "mask", precision: str = "fp32", dynamic: bool = False) -> Path:
        if dynamic:
            return request.getfixturevalue("onnx_file")
        options = ExportOptions(*STATIC, precision=precision)
        return export(model, ".onnx", options, exporter="torchscript")

    return make


@pytest.fixture(scope="module")
def engine(
    exported: Make, plugin_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Sidecar]]:
    """Build once: (model, precision, dynamic, stages) -> engine and sidecar."""
    folder = tmp_path_factory.mktemp("engine")
    built: dict[str, tuple[Path, Sidecar]] = {}

    def make(
        model: str = "mask", precision: str = "fp32", dynamic: bool = False, stages: bool = False
    ) -> tuple[Path, Sidecar]:
        source = exported(model, precision, dynamic)
        path = folder / f"{source.stem}{'_stages' if stages else ''}.engine"
        if path.name not in built:
            options = BuildOptions("tensorrt_rtx", stages=stages)
            built[path.name] = path, build_engine(source, path, options)
        return built[path.name]

    return make


def _check(path: Path, sidecar: Sidecar, source: Path) -> None:
    nodes = read_model(source).nodes
    assert len(nodes) == len(sidecar.model.operators)
    assert sidecar.layers["PLUGIN_V3"] == len(nodes)
    plan = path.read_bytes()
    for node in nodes:
        assert node.operator.encode() in plan
        for name in node.attributes:
            if name not in ("plugin_version", "plugin_namespace"):
                assert name.encode() in plan


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("mask", "fp32"),
        ("faster", "fp16"),
        pytest.param("mask", "fp16", marks=pytest.mark.slow),
        pytest.param("faster", "fp32", marks=pytest.mark.slow),
    ],
)
def test_every_custom_node_becomes_a_plugin(
    exported: Make, engine: Callable, model: str, precision: str
) -> None:
    path, sidecar = engine(model, precision)
    _check(path, sidecar, exported(model, precision))
    assert sidecar.model.input.batch == (2, 2)
    assert sidecar.model.precision == precision
    assert sidecar.model.classes == ("circle", "square", "triangle")


@pytest.mark.parametrize(
    ("model", "precision"),
    [("mask", "fp32"), pytest.param("faster", "fp16", marks=pytest.mark.slow)],
)
def test_every_stage_becomes_an_output(
    exported: Make,
    plugin_library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    precision: str,
) -> None:
    outputs: list[str] = []
    mark = _Build._mark_stages

    def spy(self: _Build, network: Any, layers: Any) -> None:
        mark(self, network, layers)
        outputs.extend(network.get_output(index).name for index in range(network.num_outputs))

    monkeypatch.setattr(_Build, "_mark_stages", spy)
    options = BuildOptions("tensorrt_rtx", stages=True)
    sidecar = build_engine(exported(model, precision), tmp_path / "x.engine", options)
    with open_runner(exported(model, precision)) as runner:
        assert outputs == [*runner.info.output_names, *runner.info.stages]
        assert sidecar.model.stages == runner.info.stages
    assert sidecar.stages
    assert len(sidecar.model.stages) == (56 if model == "mask" else 49)


@pytest.mark.slow
def test_a_dynamic_engine(exported: Make, engine: Callable) -> None:
    path, sidecar = engine(dynamic=True)
    _check(path, sidecar, exported(dynamic=True))
    (profile,) = sidecar.profiles
    assert (profile.min, profile.opt, profile.max) == ((1, 64, 64), (1, 128, 192), (8, 192, 192))
    with open_runner(exported(dynamic=True)) as runner:  # the same file, without plugins
        assert runner.info == sidecar.model


def test_a_model_exported_without_plugin_attributes_is_refused(
    exported: Make, tmp_path: Path, plugin_library: Path
) -> None:
    model = onnx.load(exported())
    for node in model.graph.node:
        kept = [entry for entry in node.attribute if not entry.name.startswith("plugin_")]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.save(model, tmp_path / "bodies.onnx")
    expected = r"11 custom nodes, but TensorRT-RTX .* lack the attribute plugin_namespace"
    with pytest.raises(EngineError, match=expected):
        build_engine(tmp_path / "bodies.onnx", tmp_path / "x.engine", BuildOptions("tensorrt_rtx"))
    assert not (tmp_path / "x.engine").exists()


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


@no_gpu
def test_without_a_gpu_everything_else_is_checked_first(engine: Callable, tmp_path: Path) -> None:
    path, _ = engine()
    with pytest.raises(BackendUnavailableError, match="needs an NVIDIA GPU and its driver"):
        open_runner(path)
    copy = tmp_path / "copy.engine"
    copy.write_bytes(path.read_bytes()[:-1])
    sidecar_path(copy).write_bytes(sidecar_path(path).read_bytes())
    with pytest.raises(ArtefactError, match="truncated or of another build"):
        open_runner(copy)


@no_gpu
def test_inspecting_without_a_gpu_says_why_there_is_no_more(engine: Callable) -> None:
    path, sidecar = engine()
    found = inspect_engine(path)
    assert found["layers"] == dict(sidecar.layers)
    assert [plugin["operator"] for plugin in found["plugins"]].count("BatchedNms") == 2
    assert found["details"] is None
    assert "cudaError" in found["why_no_details"]


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(shapes_dir: Path) -> list[np.ndarray]:
    return [load_image(path) for path in sorted((shapes_dir / "val").glob("*.png"))[:4]]


def _open(path: Path, **settings: object) -> TensorRTRunner:
    """Skip where TensorRT-RTX supports no such GPU, with its own words."""
    try:
        return TensorRTRunner(path, **settings)
    except ArtefactError as error:
        if "does not open" in str(error) or "compute capability" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.gpu
@pytest.mark.parametrize("model", list(CHECKPOINTS))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_detections_are_those_of_pytorch(
    engine: Callable,
    shapes_dir: Path,
    images: list[np.ndarray],
    model: str,
    precision: str,
    mode: str,
) -> None:
    path, sidecar = engine(model, precision)
    info = sidecar.model
    options = ExportOptions(
        info.input.batch, info.input.height, info.input.width, precision=precision
    )
    with (
        open_runner(shapes_dir / CHECKPOINTS[model], device="cuda", options=options) as reference,
        _open(path, mode=mode) as candidate,
    ):
        for _ in range(3 if mode == "cuda-graph" else 1):  # plain, captured, replayed
            report = run_parity(reference, candidate, images=images, batch_size=2)
            assert report.failures == ()
            assert set(report.skipped) == {"operators", "stages"}


@pytest.mark.gpu
def test_stages_are_those_of_pytorch(
    engine: Callable, shapes_dir: Path, images: list[np.ndarray]
) -> None:
    path, sidecar = engine(stages=True)
    bounds = sidecar.model.input
    options = ExportOptions(bounds.batch, bounds.height, bounds.width)
    with (
        open_runner(shapes_dir / CHECKPOINTS["mask"], device="cuda", options=options) as reference,
        _open(path) as candidate,
    ):
        report = run_parity(
            reference, candidate, images=images, batch_size=2, levels=["stages", "detections"]
        )
        assert report.failures == ()


@pytest.mark.gpu
def test_a_walk_finds_an_error_planted_before_an_engine(
    exported: Make, engine: Callable, shapes_dir: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    path, sidecar = engine(stages=True)
    with open_runner(exported()) as reference, _open(path) as candidate:
        walk = walk_stages(reference, candidate, images, batch_size=2)
        assert walk.passed, walk.verdict()
    content = torch.load(shapes_dir / CHECKPOINTS["mask"], weights_only=True)
    content["state_dict"]["neck.upsample_modules.1.content_encoder.weight"][0] *= 2
    torch.save(content, tmp_path / "planted.pth")
    bounds = sidecar.model.input
    options = ExportOptions(bounds.batch, bounds.height, bounds.width)
    with (
        open_runner(tmp_path / "planted.pth", options=options) as reference,
        _open(path) as candidate,
    ):
        walk = walk_stages(reference, candidate, images, batch_size=2)
    assert walk.first_outside is not None
    assert walk.first_outside.name == "encoder1"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_dynamic_shapes_in_turn(engine: Callable, shapes_dir: Path, mode: str) -> None:
    path, _ = engine(dynamic=True)
    generator = np.random.default_rng(0)
    with (
        open_runner(shapes_dir / CHECKPOINTS["mask"], device="cuda") as reference,
        _open(path, mode=mode, shapes=2) as candidate,
    ):
        for batch, height, width in [(1, 64, 64), (4, 192, 128), (2, 128, 192), (1, 64, 64)] * 3:
            inputs = {
                "images": generator.normal(size=(batch, 3, height, width)).astype(np.float32),
                "image_sizes": np.array([[height, width]] * batch, np.float32),
            }
            ours, theirs = reference.run(inputs), candidate.run(inputs)
            assert {name: array.shape for name, array in ours.items()} == {
                name: array.shape for name, array in theirs.items()
            }
            np.testing.assert_allclose(theirs["det_scores"], ours["det_scores"], atol=5e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "pycuda", "cuda-python"])
def test_every_way_to_gpu_memory_gives_the_same(engine: Callable, backend: str) -> None:
    try:
        choose_backend(backend)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    path, _ = engine()
    inputs = {
        "images": np.random.default_rng(1).normal(size=(2, 3, 128, 192)).astype(np.float32),
        "image_sizes": np.array([[128, 192]] * 2, np.float32),
    }
    with _open(path, backend="torch") as reference, _open(path, backend=backend) as candidate:
        ours, theirs = reference.run(inputs), candidate.run(inputs)
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array)


@pytest.mark.gpu
def test_inspecting_shows_the_fused_layers(engine: Callable) -> None:
    path, _ = engine()
    _open(path).close()
    found = inspect_engine(path)
    assert found["why_no_details"] is None
    assert {tensor["name"] for tensor in found["details"]["tensors"]} >= {"images", "num_dets"}
    assert found["details"]["layers"]
