"""Opening by suffix, what is refused then, and the ways to run that only some have."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
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
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import load_image
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners import _fused
from carafe_deploy.runners import pytorch as pytorch_module
from carafe_deploy.runners._onnxruntime_buffers import Buffers
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import METADATA_KEY, ModelInfo
from tests.fuzz import _corpus as toy
from tests.runners.conftest import STATIC

NOTHING: Any = None


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
        for named in ("mode cuda-graph", "mode compile-graph", "fused"):
            option, _, value = named.partition(" ")
            with pytest.raises(BackendUnavailableError, match=f"{named} needs a GPU, device is"):
                open_runner(files["pytorch"], **{option: value or True})


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
    for mode in ("cuda-graph", "compile-graph"):
        with pytest.raises(BackendUnavailableError, match=f"{mode} needs libcarafe_k.*{reason}"):
            PyTorchRunner(NOTHING, torch.device("cuda"), NOTHING, NOTHING, mode=mode)


def test_one_shape_too_many_is_named() -> None:
    def compiled(images: torch.Tensor, sizes: torch.Tensor) -> None:
        raise torch._dynamo.exc.FailOnRecompileLimitHit("hard failure")

    forward = pytorch_module._limited(compiled, "compile")
    with pytest.raises(RunError, match=r"compile compiles .* 64 .* \[1, 3, 8, 8\] is one more"):
        forward(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("compiler", "programs", "reason"),
    [
        ("", {"gcc", "triton"}, ""),
        ("", {"clang", "triton"}, ""),
        ("icc", {"icc", "triton"}, ""),
        ("", {"gcc"}, "needs Triton on a GPU, and it is not installed"),
        ("", {"triton"}, "needs a C compiler on a GPU, and there is no gcc or clang"),
        ("icc", {"gcc", "triton"}, "there is no icc"),
    ],
)
@pytest.mark.parametrize("mode", ["compile", "compile-graph"])
def test_compiling_for_a_gpu_needs_compilers(
    monkeypatch: pytest.MonkeyPatch, mode: str, compiler: str, programs: set[str], reason: str
) -> None:
    """The compiled function is what a graph is captured of."""
    made: list[str] = []

    def make(name: str) -> Any:
        return lambda forward, **settings: made.append(name) or name

    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: n if n in programs else None)
    monkeypatch.setattr(pytorch_module, "kernel_library", lambda: SimpleNamespace(has_cuda=True))
    monkeypatch.setattr(torch, "compile", make("compile"))
    monkeypatch.setattr(pytorch_module, "Graphed", lambda *given: made.append("graph") or "graph")
    info = ModelInfo("x", "faster_rcnn", ("a",))

    def build() -> PyTorchRunner:
        return PyTorchRunner(info, torch.device("cuda"), NOTHING, NOTHING, mode=mode)

    if reason:
        with pytest.raises(BackendUnavailableError, match=f"mode {mode} .*{reason}"):
            build()
        assert made == []
    else:
        assert build().mode == mode
        assert made == mode.split("-")


@pytest.mark.parametrize("wanted", [None, True, False])
def test_what_cudnn_refuses_is_not_fused(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None
) -> None:
    asked: list[Any] = []
    answers = ["no engine", ""]
    monkeypatch.setattr(_fused, "refusal", lambda *a: asked.append(a) or answers[len(asked) - 1])
    cuda = torch.device("cuda")
    if wanted is None:
        with pytest.warns(UserWarning, match=r"cuda computes no fp16 convolution.*\(no engine\)"):
            assert not _fused.fuses(None, cuda, "fp16", tf32=False)
    elif wanted:
        with pytest.raises(BackendUnavailableError, match=r"\(no engine\): leave out fused"):
            _fused.fuses(True, cuda, "fp16", tf32=False)
    assert _fused.fuses(wanted, cuda, "bf16", tf32=False) == (wanted is not False)
    dtypes = [] if wanted is False else [torch.float16, torch.bfloat16]
    assert asked == [(cuda, dtype) for dtype in dtypes]
    assert not _fused.fuses(None, torch.device("cpu"), "fp32", tf32=False)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("mode", "precision"),
    [
        *itertools.product(("eager", "cuda-graph"), ("fp32", "fp16", "bf16")),
        ("compile-graph", "fp16"),
    ],
)
def test_every_mode_finds_the_same_on_a_gpu(
    files: dict[str, Path], shapes_dir: Path, mode: str, precision: str
) -> None:
    """Fused or not: of what is sure, scores to what the precision leaves of them."""
    options = ExportOptions(precision=precision)
    limit = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}[precision]
    image = load_image(min((shapes_dir / "val").iterdir()))
    with open_runner(files["pytorch"], device="cuda", options=options, fused=False) as runner:
        batch = Preprocessor(runner.info)([image])
        inputs = {"images": batch.images, "image_sizes": batch.image_sizes}
        scores = runner.run(inputs)["det_scores"]
    sure = int((scores > 0.8).sum())
    assert sure
    for fused in (True, False):
        settings: dict[str, Any] = {"device": "cuda", "options": options, "mode": mode}
        with open_runner(files["pytorch"], fused=fused, **settings) as runner:
            for _ in range(2):
                found = runner.run(inputs)["det_scores"]
                np.testing.assert_allclose(found[:, :sure], scores[:, :sure], atol=limit)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cuda-graph"])
def test_runs_that_are_started_ahead_overwrite_nothing(
    files: dict[str, Path], shapes_dir: Path, mode: str
) -> None:
    """Of one shape, so by one graph, and waited for in another thread and order."""
    paths = sorted((shapes_dir / "val").iterdir())[:2]
    with open_runner(files["pytorch"], device="cuda", mode=mode) as runner:
        prepare = Preprocessor(runner.info)
        images = [np.ascontiguousarray(load_image(path)[:90, :90]) for path in paths]
        given = [prepare([image]).inputs for image in images]
        alone = [runner.run(inputs) for inputs in given]
        assert not np.array_equal(alone[0]["det_scores"], alone[1]["det_scores"])
        waiting = [runner.start(inputs) for inputs in given * 3]
        with ThreadPoolExecutor(1) as pool:
            for number in (5, 0, 3, 1, 4, 2):
                found = pool.submit(waiting[number]).result()
                for name, array in alone[number % 2].items():
                    np.testing.assert_allclose(found[name], array, atol=1e-4)


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
