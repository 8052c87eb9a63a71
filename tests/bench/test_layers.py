"""Profiles by layer: what belongs to which row, that the rows add up, what cannot be profiled."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from carafe_deploy import operators
from carafe_deploy.artefacts import open_runner
from carafe_deploy.bench.layers import profile_layers
from carafe_deploy.bench.layers.onnxruntime import aggregate
from carafe_deploy.bench.layers.tensorrt import joined
from carafe_deploy.bench.record import Layer, Layers
from carafe_deploy.errors import (
    CarafeDeployError,
    EngineError,
    InputShapeError,
    RunError,
    UnsupportedLevelError,
)
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.operators import BY_ONNX_NAME
from carafe_deploy.runners._onnxruntime_session import Device
from carafe_deploy.runners._tensorrt_profile import EngineProfile
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.runners.tensorrt import MODES, TensorRTRunner
from tests.bench.fakes import FakeRunner
from tests.engine import fake_tensorrt
from tests.engine.fake_tensorrt import FakeTensorRT, write_engine
from tests.engine.tiny import tiny_info

MASK = "shapes_mask_rcnn_carafe-fbec7e06.pth"
OPERATORS = tuple(BY_ONNX_NAME)


def _options(precision: str = "fp32") -> ExportOptions:
    return ExportOptions((1, 1), (64, 64), (128, 128), precision)


@pytest.fixture(scope="module")
def files(shapes_dir: Path, export: Callable[..., Path]) -> dict[str, Path]:
    return {
        "pytorch": shapes_dir / MASK,
        "torchscript": export("mask", ".ts", _options()),
        "onnxruntime": export("mask", ".onnx", _options(), exporter="torchscript"),
        "onnxruntime_fp16": export("mask", ".onnx", _options("fp16"), exporter="torchscript"),
    }


def _inputs(batch: int = 1, height: int = 64, width: int = 128) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
    return {"images": images, "image_sizes": np.array([[height, width]] * batch, np.float32)}


def _open(files: dict[str, Path], kind: str, precision: str = "fp32"):
    options = _options(precision) if kind == "pytorch" else None
    return open_runner(files[kind], options=options)


def _calls(runner) -> Counter[str]:
    return Counter(operators.OPERATORS[call.name].onnx_name for call in runner.info.operators)


def _check(layers: Layers, calls: Counter[str]) -> None:
    """What holds for every profile of a detector."""
    assert layers.reason == ""
    times = [row.milliseconds for row in layers.rows]
    assert times == sorted(times, reverse=True)
    assert min(times) >= 0
    assert layers.total_ms > 0
    names = [row.name for row in layers.rows]
    assert len(set(names)) == len(names)
    assert all(names)
    assert Counter(row.operator for row in layers.rows if row.operator) == calls
    assert all(row.kind == row.operator for row in layers.rows if row.operator)
    assert 0 < layers.share("Carafe", "CarafeEncoded") < layers.share(*OPERATORS) < 1


# --- detectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("pytorch", "PyTorch's profiler, by module"),
        ("torchscript", "PyTorch's profiler, by operator"),
        ("onnxruntime", "ONNX Runtime's profiler, by node"),
        ("onnxruntime_fp16", "ONNX Runtime's profiler, by node"),
    ],
)
def test_every_call_of_an_operator_is_a_row(files: dict[str, Path], kind: str, source: str) -> None:
    with _open(files, kind) as runner:
        layers = profile_layers(runner, _inputs(), runs=2)
        _check(layers, _calls(runner))
    assert (layers.source, layers.runs) == (source, 2)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_in_pytorch(files: dict[str, Path], precision: str) -> None:
    with _open(files, "pytorch", precision) as runner:
        _check(profile_layers(runner, _inputs(), runs=1), _calls(runner))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["pytorch", "torchscript"])
def test_kernels_on_a_gpu(files: dict[str, Path], kind: str) -> None:
    options = _options() if kind == "pytorch" else None
    with open_runner(files[kind], device="cuda", options=options) as runner:
        _check(profile_layers(runner, _inputs(), runs=2), _calls(runner))


def test_names_say_where_a_call_is(files: dict[str, Path]) -> None:
    found = {}
    for kind in ("pytorch", "torchscript", "onnxruntime"):
        with _open(files, kind) as runner:
            rows = profile_layers(runner, _inputs(), runs=1).rows
        found[kind] = {row.name for row in rows if row.operator}
    neck = range(4)
    assert found["pytorch"] == {
        *(f"neck.upsample_modules.{level}.carafe_encoded" for level in neck),
        "roi_head.mask_head.carafe_encoded",
        "roi_head.multilevel_roi_align",
        "roi_head.multilevel_roi_align_1",
        "proposal_selector.rpn_candidates",
        "proposal_selector.batched_nms",
        "roi_head.detection_selector.box_candidates",
        "roi_head.detection_selector.batched_nms",
    }
    assert found["torchscript"] == {
        "carafe_encoded",
        *(f"carafe_encoded_{number}" for number in range(1, 5)),
        "multilevel_roi_align",
        "multilevel_roi_align_1",
        "rpn_candidates",
        "box_candidates",
        "batched_nms",
        "batched_nms_1",
    }
    assert found["onnxruntime"] == {
        *(f"/detector/neck/upsample_modules.{level}/CarafeEncoded" for level in neck),
        "/detector/roi_head/mask_head/CarafeEncoded",
        "/detector/roi_head/MultilevelRoiAlign",
        "/detector/roi_head/MultilevelRoiAlign_1",
        "/detector/proposal_selector/RpnCandidates",
        "/detector/proposal_selector/BatchedNms",
        "/detector/roi_head/detection_selector/BoxCandidates",
        "/detector/roi_head/detection_selector/BatchedNms",
    }


@pytest.mark.parametrize("kind", ["pytorch", "onnxruntime"])
def test_a_large_call_costs_more_than_a_small_one(files: dict[str, Path], kind: str) -> None:
    with _open(files, kind) as runner:
        rows = profile_layers(runner, _inputs(), runs=3).rows
    calls = [row for row in rows if row.operator == "CarafeEncoded"]
    [small] = [row for row in calls if "upsample_modules.3" in row.name]  # one map of 1x2 pixels
    [large] = [row for row in calls if "mask_head" in row.name]  # 100 maps of 14x14
    assert small.milliseconds < large.milliseconds


@pytest.mark.parametrize("kind", ["pytorch", "torchscript", "onnxruntime"])
def test_inputs_that_do_not_fit(files: dict[str, Path], kind: str) -> None:
    with (
        _open(files, kind) as runner,
        pytest.raises(InputShapeError, match="batch 2, this artefact accepts exactly 1"),
    ):
        profile_layers(runner, _inputs(batch=2), runs=1)


def test_number_of_runs(files: dict[str, Path]) -> None:
    with (
        _open(files, "pytorch") as runner,
        pytest.raises(CarafeDeployError, match="runs is 0: give at least 1"),
    ):
        profile_layers(runner, _inputs(), runs=0)


def test_a_backend_without_profiler() -> None:
    layers = profile_layers(FakeRunner("tflite"), {})
    assert layers == Layers("", 0, reason="nothing profiles tflite")


# --- PyTorch -------------------------------------------------------------------------------------

LONG, SHORT = 0.2, 0.01


class _Inner(nn.Module):
    def forward(self, x):
        time.sleep(LONG / 2)
        return x


class _Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = _Inner()

    def forward(self, x):
        time.sleep(SHORT)
        return self.inner(self.inner(x))


class _Network(nn.Module):
    """Two modules within each other, an operator, and time that is spent in neither."""

    def __init__(self):
        super().__init__()
        self.outer = _Outer()
        self.nothing = nn.Identity()
        self.fails = False

    def forward(self, images, image_sizes):
        time.sleep(SHORT)
        x = self.nothing(self.outer(images))
        for _ in range(2):
            torch.ops.carafe.carafe(x, x[:, :1].repeat(1, 9, 2, 2), 3, 1, 2)
        if self.fails:
            raise RuntimeError("out of memory")
        return (x,)


def _runner(network: nn.Module, **settings: str) -> PyTorchRunner:
    return PyTorchRunner(tiny_info(), torch.device("cpu"), network, network, **settings)


def test_modules_without_what_is_inside() -> None:
    begun = time.perf_counter()
    layers = profile_layers(_runner(_Network()), _inputs(), runs=2)
    elapsed = (time.perf_counter() - begun) * 1e3
    rows = {row.name: row for row in layers.rows}
    assert {name: (row.kind, row.operator) for name, row in rows.items()} == {
        "outer.inner": ("_Inner", ""),
        "outer": ("_Outer", ""),
        "(between modules)": ("_Network", ""),
        "carafe": ("Carafe", "Carafe"),
        "carafe_1": ("Carafe", "Carafe"),
    }
    assert layers.rows[0].name == "outer.inner"
    assert rows["outer.inner"].milliseconds >= LONG * 1e3
    for name in ("outer", "(between modules)"):
        assert SHORT * 1e3 <= rows[name].milliseconds < LONG * 1e3
    assert (LONG + 2 * SHORT) * 1e3 <= layers.total_ms < elapsed / 2


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_taken_off(fails: bool) -> None:
    network = _Network()
    network.fails = fails
    runner = _runner(network)
    if fails:
        with pytest.raises(RunError, match="out of memory"):
            profile_layers(runner, _inputs(), runs=1)
    else:
        profile_layers(runner, _inputs(), runs=1)
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_modes_without_modules() -> None:
    layers = profile_layers(_runner(_Network(), mode="compile"), _inputs())
    assert layers == Layers(
        "PyTorch's profiler, by module",
        0,
        reason="mode compile leaves no modules to tell apart: profile with --mode eager",
    )


# --- ONNX Runtime --------------------------------------------------------------------------------


def _node(name: str, kind: str, microseconds: int) -> dict:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": microseconds,
        "args": {"op_name": kind},
    }


def test_bodies_are_told_apart() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 9000, "args": {}},
        _node("conv1", "Conv", 1000),
        _node("_inlfunc_CarafeEncoded_token_10_matmul_3", "MatMul", 400),
        _node("_inlfunc_CarafeEncoded_matmul_3", "MatMul", 200),
        _node("_inlfunc_Carafe_pad_1", "Pad", 100),
        _node("_inlfunc_CarafeEncoded_token_9_matmul_3", "MatMul", 300),
        _node("InsertedCast__inlfunc_CarafeEncoded_token_9_x", "Cast", 30),
        _node("conv1", "Conv", 3000),
    ]
    nodes = [(name, "CarafeEncoded") for name in ("up1", "up2", "up3")]
    rows = aggregate(events, [*nodes, ("own", "Carafe")], runs=2)
    assert sorted(rows, key=lambda row: row.name) == [
        Layer("conv1", "Conv", 2.0),
        Layer("own", "Carafe", 0.05, "Carafe"),
        Layer("up1", "CarafeEncoded", 0.1, "CarafeEncoded"),
        Layer("up2", "CarafeEncoded", 0.165, "CarafeEncoded"),
        Layer("up3", "CarafeEncoded", 0.2, "CarafeEncoded"),
    ]


def test_bodies_that_cannot_be_told_apart() -> None:
    events = [_node("matmul", "MatMul", 400)]
    with pytest.raises(UnsupportedLevelError, match=r"of 1 Carafe nodes .* tells 0 apart: prof"):
        aggregate(events, [("up", "Carafe")], runs=1)


def test_no_file_is_left(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with _open(files, "onnxruntime") as runner:
        assert profile_layers(runner, _inputs(), runs=1).rows
    assert list(tmp_path.iterdir()) == []


def test_without_the_onnx_package(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with _open(files, "onnxruntime") as runner:
        monkeypatch.setitem(sys.modules, "onnx", None)
        layers = profile_layers(runner, _inputs(), runs=1)
    assert layers.rows == ()
    assert layers.reason.endswith("needs the onnx package: pip install onnx")


def test_launches_on_a_gpu_are_no_profile(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(files, "onnxruntime") as runner:
        monkeypatch.setattr(runner, "_place", Device("cuda", 0))
        assert "times launches" in profile_layers(runner, _inputs(), runs=1).reason


# --- TensorRT ------------------------------------------------------------------------------------


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def engine(trt: FakeTensorRT, tmp_path: Path) -> Path:
    return write_engine(tmp_path / "tiny.engine", trt)


@pytest.mark.parametrize("mode", MODES)
def test_layers_of_an_engine(engine: Path, trt: FakeTensorRT, mode: str) -> None:
    trt.layers = [
        {"Name": "conv1 + relu", "LayerType": "CaskConvolution"},
        {"Name": "upsample", "LayerType": "PluginV3", "PluginType": "CarafeEncoded"},
        {"Name": "other", "LayerType": "PluginV3", "PluginType": "EfficientNMS_TRT"},
    ]
    with TensorRTRunner(engine, mode=mode) as runner:
        before = [runner.run(_inputs()) for _ in range(3)][-1]
        layers = profile_layers(runner, _inputs(), runs=4)
        memory = len(trt.device.memory)
        after = runner.run(_inputs())
        assert trt.device.launches == (3 if mode == "cuda-graph" else 0)
    assert layers == Layers(
        "TensorRT's profiler, by layer",
        4,
        (
            Layer("other", "PluginV3", 3.0),
            Layer("upsample", "PluginV3", 2.0, "CarafeEncoded"),
            Layer("conv1 + relu", "CaskConvolution", 1.0),
        ),
    )
    assert memory == 6
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_engines_that_keep_names_only(engine: Path, trt: FakeTensorRT) -> None:
    trt.layers = ["conv1", "upsample"]
    with TensorRTRunner(engine) as runner:
        assert profile_layers(runner, _inputs(), runs=1).rows == (
            Layer("upsample", "", 2.0),
            Layer("conv1", "", 1.0),
        )


def test_layers_named_after_custom_nodes() -> None:
    nodes = {"up": "CarafeEncoded", "up_1": "Carafe"}
    assert joined(EngineProfile({"up_1": 1.0, "up": 2.0, "up_10": 3.0}, {}, nodes)) == [
        Layer("up_1", "", 1.0, "Carafe"),
        Layer("up", "", 2.0, "CarafeEncoded"),
        Layer("up_10", "", 3.0),
    ]


def test_an_engine_that_reports_nothing(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        layers = profile_layers(runner, _inputs(), runs=1)
    assert layers.reason == "TensorRT reported no layer to its profiler: profile the ONNX file"


def test_engines_refuse_inputs_and_fail_as_ever(engine: Path, trt: FakeTensorRT) -> None:
    with TensorRTRunner(engine) as runner:
        with pytest.raises(InputShapeError, match="height 256, this artefact accepts 64 to 192"):
            profile_layers(runner, _inputs(height=256))
        trt.fails = True
        with pytest.raises(EngineError, match=r"tiny\.engine failed to run: .*out of memory"):
            profile_layers(runner, _inputs())
        assert trt.device.depth == 0
