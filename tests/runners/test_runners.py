"""Runners: what they refuse, and that opening goes by suffix."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    InputShapeError,
)
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.runners import Runner
from carafe_deploy.runners import onnxruntime as onnxruntime_module
from carafe_deploy.runners import pytorch as pytorch_module
from carafe_deploy.runners.pytorch import PyTorchRunner

STATIC = ExportOptions((1, 1), (64, 64), (128, 128))


@pytest.fixture
def files(shapes_files: dict[str, Path]) -> dict[str, Path]:
    return shapes_files


def _inputs(batch: int = 1, height: int = 64, width: int = 128) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
    return {"images": images, "image_sizes": np.array([[height, width]] * batch, np.float32)}


@pytest.mark.parametrize("backend", ["pytorch", "torchscript", "onnxruntime"])
def test_all_backends_are_runners_and_agree(files: dict[str, Path], backend: str) -> None:
    with open_runner(files["pytorch"], options=STATIC) as reference:
        expected = reference.run(_inputs())
    with open_runner(files[backend], options=STATIC if backend == "pytorch" else None) as runner:
        assert isinstance(runner, Runner)
        assert runner.backend == backend
        found = runner.run(_inputs())
        assert {spec.name: found[spec.name].shape for spec in runner.outputs} == {
            spec.name: spec.shape for spec in runner.outputs
        }
        assert {spec.name: str(found[spec.name].dtype) for spec in runner.outputs} == {
            spec.name: spec.dtype for spec in runner.outputs
        }
    assert found["num_dets"] == expected["num_dets"]
    np.testing.assert_allclose(found["det_scores"], expected["det_scores"], atol=1e-4)


@pytest.mark.parametrize("backend", ["pytorch", "torchscript", "onnxruntime"])
def test_every_backend_runs_its_own_operators(files: dict[str, Path], backend: str) -> None:
    with open_runner(files[backend], options=STATIC if backend == "pytorch" else None) as runner:
        call = runner.info.operators[0]
        generator = np.random.default_rng(3)
        arrays = [generator.normal(size=shape).astype(np.float32) for shape in call.shapes]
        (found,) = runner.run_operator(call, arrays)
    expected = torch.ops.carafe.carafe_encoded(
        *map(torch.from_numpy, arrays), **call.attributes
    ).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, r"input 'images' is missing, got \['image_sizes'\]"),
        ({"images": np.zeros((1, 3, 64, 128))}, "images has dtype float64, expected float32"),
        ({"images": np.zeros((1, 64, 128, 3), np.float32)}, r"expected \[B, 3, H, W\]"),
        ({"images": np.zeros((1, 3, 64, 100), np.float32)}, "width 100, expected a multiple of 64"),
        ({"images": np.zeros((1, 3, 128, 128), np.float32)}, "height 128, this .* exactly 64"),
        ({"images": np.zeros((2, 3, 64, 128), np.float32)}, "batch 2, this .* exactly 1"),
        ({"image_sizes": np.zeros((1, 3), np.float32)}, r"expected float32 \[1, 2\]"),
        ({"image_sizes": np.zeros((1, 2))}, r"image_sizes is float64 \[1, 2\]"),
        ({"image_sizes": np.array([[0, 9]], np.float32)}, r"image_sizes\[0\] is \[0.0, 9.0\], exp"),
        ({"image_sizes": np.array([[9999, 9]], np.float32)}, r"1 to \d+ and 1 to \d+"),
        ({"image_sizes": np.array([[9, np.nan]], np.float32)}, r"is \[9.0, nan\], expected height"),
    ],
)
@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime"])
def test_arrays_that_do_not_fit_are_refused(
    files: dict[str, Path], backend: str, change: dict, message: str
) -> None:
    inputs = {**_inputs(), **change}
    inputs = {name: array for name, array in inputs.items() if array is not None}
    with open_runner(files[backend]) as runner, pytest.raises(InputShapeError, match=message):
        runner.run(inputs)


@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime"])
@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_files_are_refused(
    files: dict[str, Path], tmp_path: Path, backend: str, keep: float
) -> None:
    content = files[backend].read_bytes()
    short = tmp_path / files[backend].name
    short.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ArtefactError, match=r"cannot be loaded .* export it again"):
        open_runner(short)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = helper.make_graph([relu], "g", values[:1], values[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "foreign.onnx")
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "foreign.ts"))
    for name in ("foreign.onnx", "foreign.ts"):
        with pytest.raises(ArtefactError, match="holds no carafe_deploy metadata"):
            open_runner(tmp_path / name)


def test_unknown_suffix_missing_file_and_missing_device_are_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=r"suffix '.tflite': give one of .pth"):
        open_runner(tmp_path / "x.tflite")
    with pytest.raises(ArtefactError, match="does not exist"):
        open_runner(tmp_path / "x.onnx")
    for path in files.values():
        with pytest.raises(BackendUnavailableError, match="'tpu': give cpu"):
            open_runner(path, device="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_absent_cuda_is_an_error_and_no_fallback(files: dict[str, Path]) -> None:
    with pytest.raises(BackendUnavailableError, match="sees 0 CUDA devices"):
        open_runner(files["torchscript"], device="cuda")
    with pytest.raises(BackendUnavailableError, match="install onnxruntime-gpu"):
        open_runner(files["onnxruntime"], device="cuda")


@pytest.mark.parametrize("backend", ["pytorch", "torchscript", "onnxruntime"])
def test_a_timed_run_finds_the_same(files: dict[str, Path], backend: str) -> None:
    with open_runner(files[backend], options=STATIC if backend == "pytorch" else None) as runner:
        expected = runner.run(_inputs())
        found, times = runner.run_timed(_inputs())
        with pytest.raises(InputShapeError, match="batch 2"):
            runner.run_timed(_inputs(batch=2))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    assert times.compute > 0
    assert min(times.upload, times.download) >= 0
    assert times.enqueue is None  # the host computes


def test_copies_to_a_device_are_timed_apart(files: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(str(files["onnxruntime"]))
    names = [value.name for value in session.get_outputs()]
    found, times = onnxruntime_module._run_bound(session, _inputs(), names, "cpu")
    expected = dict(zip(names, session.run(names, _inputs()), strict=True))
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])
    assert times.compute > 0
    assert min(times.upload, times.download) > 0


@pytest.mark.parametrize(("device", "provider"), [("cpu", "cuda"), ("cpu", "x"), ("cuda", "cpu")])
def test_providers_that_do_not_fit_are_refused(
    files: dict[str, Path], device: str, provider: str
) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"provider is '{provider}': with device"):
        open_runner(files["onnxruntime"], device=device, provider=provider)


@pytest.mark.parametrize("settings", [{"mode": "compile"}, {"channels_last": False}])
def test_other_ways_to_run_pytorch_find_the_same(
    files: dict[str, Path], settings: dict[str, Any]
) -> None:
    with open_runner(files["pytorch"], options=STATIC) as runner:
        expected = runner.run(_inputs())
    with open_runner(files["pytorch"], options=STATIC, **settings) as runner:
        found = runner.run(_inputs())
        assert runner.run_stages(_inputs()).keys() > found.keys()
    np.testing.assert_array_equal(found["num_dets"], expected["num_dets"])
    np.testing.assert_allclose(found["det_scores"], expected["det_scores"], atol=1e-4)


def test_ways_to_run_pytorch_that_there_are_not(files: dict[str, Path]) -> None:
    with pytest.raises(CarafeDeployError, match="mode is 'fast': choose from eager, compile, cuda"):
        open_runner(files["pytorch"], mode="fast")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError, match="cuda-graph needs a GPU, device is cpu"):
            open_runner(files["pytorch"], mode="cuda-graph")


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (None, "there is none"),
        (SimpleNamespace(has_cuda=False, path="lib/x.so"), "lib/x.so is for CPUs only"),
    ],
)
def test_a_cuda_graph_needs_kernels(
    monkeypatch: pytest.MonkeyPatch, library: Any, reason: str
) -> None:
    monkeypatch.setattr(pytorch_module, "kernel_library", lambda: library)
    nothing: Any = None
    with pytest.raises(BackendUnavailableError, match=f"needs libcarafe_kernels.so.*{reason}"):
        PyTorchRunner(nothing, torch.device("cuda"), nothing, nothing, mode="cuda-graph")


@pytest.mark.parametrize("backend", ["pytorch", "torchscript"])
def test_a_closed_runner_says_so(files: dict[str, Path], backend: str) -> None:
    runner = open_runner(files[backend], options=STATIC if backend == "pytorch" else None)
    runner.close()
    runner.close()
    with pytest.raises(CarafeDeployError, match="is closed: open it again"):
        runner.run(_inputs())


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"mode": "cuda-graph"}, {"channels_last": False}])
def test_pytorch_on_a_gpu_is_timed_by_events(
    files: dict[str, Path], settings: dict[str, Any]
) -> None:
    with open_runner(files["pytorch"], options=STATIC) as runner:
        expected = runner.run(_inputs())
    with open_runner(files["pytorch"], device="cuda", options=STATIC, **settings) as runner:
        for _ in range(3):
            found, times = runner.run_timed(_inputs())
    np.testing.assert_allclose(found["det_scores"], expected["det_scores"], atol=1e-3)
    assert min(times.upload, times.compute, times.download, times.enqueue) > 0
