"""Opening by suffix, what is refused then, and the ways to run that only some have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    RunError,
)
from carafe_deploy.runners import pytorch as pytorch_module
from carafe_deploy.runners._onnxruntime_buffers import Buffers
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import METADATA_KEY
from tests.fuzz import _corpus as toy
from tests.runners.conftest import STATIC


@pytest.fixture
def files(shapes_files: dict[str, Path]) -> dict[str, Path]:
    return shapes_files


def _inputs() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 128)).astype(np.float32)
    return {"images": images, "image_sizes": np.float32([[64, 128]])}


@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime"])
def test_all_backends_agree(files: dict[str, Path], backend: str) -> None:
    with open_runner(files["pytorch"], options=STATIC) as reference:
        expected = reference.run(_inputs())
    with open_runner(files[backend]) as runner:
        found = runner.run(_inputs())
    assert found["num_dets"] == expected["num_dets"]
    np.testing.assert_allclose(found["det_scores"], expected["det_scores"], atol=1e-4)


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


def test_copies_to_a_device_are_timed_apart(files: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(str(files["onnxruntime"]))
    names = [value.name for value in session.get_outputs()]
    buffers = Buffers(session, names, "cpu")
    found, times = buffers.run(_inputs())
    for array, expected in zip(found, session.run(names, _inputs()), strict=True):
        np.testing.assert_array_equal(array, expected)
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


def test_what_fails_in_a_run_is_named(tmp_path: Path) -> None:
    """Both files load: their sizes contradict each other only once there are images."""
    model = toy.onnx_model(masks=False)
    [node] = [node for node in model.graph.node if node.output[0] == "det_scores"]
    node.op_type, node.input[0] = "Reshape", "images"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7]), "seven"))
    node.input[1] = "seven"
    onnx.save(model, tmp_path / "x.onnx")
    metadata = toy.info(masks=False).to_json().encode()
    toy.write_torchscript(tmp_path / "x.ts", metadata, broken=True)
    inputs = {
        "images": np.zeros((1, 3, 64, 64), np.float32),
        "image_sizes": np.full((1, 2), 64, np.float32),
    }
    for name, reason in (("x.onnx", "Reshape"), ("x.ts", r"RuntimeError: shape '\[7\]' is inv")):
        pattern = rf"{name} fails when it runs \(.*{reason}"
        with open_runner(tmp_path / name) as runner:
            for run in (runner.run, runner.run_timed):
                with pytest.raises(RunError, match=pattern) as caught:
                    run(inputs)
                assert "\n" not in str(caught.value)


def test_torchscript_without_stages_is_refused(tmp_path: Path) -> None:
    module = torch.jit.trace(torch.nn.Identity(), torch.ones(1))
    metadata = toy.info(masks=False).to_json()
    torch.jit.save(module, str(tmp_path / "x.ts"), _extra_files={METADATA_KEY: metadata})
    with pytest.raises(ArtefactError, match=r"x\.ts has no method `stages`: export it again"):
        open_runner(tmp_path / "x.ts")


def test_torchscript_whose_metadata_is_no_text(tmp_path: Path) -> None:
    toy.write_torchscript(tmp_path / "x.ts", b'{"name": "\xff\xfe"}')
    with pytest.raises(ArtefactError, match=r"x\.ts .*(utf-8|UTF-8).*: export"):
        open_runner(tmp_path / "x.ts")
