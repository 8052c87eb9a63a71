"""What computes an ONNX file: kernels or function bodies; and what ONNX Runtime is told."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import ArtefactError, BackendUnavailableError, OptionError
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.libraries import ENVIRONMENT_VARIABLE, PACKAGE_FOLDER
from carafe_deploy.runners import _onnxruntime_session as session_module
from carafe_deploy.runners._onnx_metadata import read_metadata
from carafe_deploy.runners._onnxruntime_buffers import Buffers
from carafe_deploy.runners.base import BODIES, KERNELS
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
from carafe_deploy.types import METADATA_KEY, InputFormat, ModelInfo, OperatorCall
from tests.runners.conftest import STATIC

TOY = ModelInfo("toy", "faster_rcnn", ("a",))
FIXED = InputFormat("nchw_float32", (1, 1), (64, 64), (128, 128))


def write(path: Path, info: ModelInfo, weights: int = 1) -> Path:
    """An ONNX file with this metadata, which a made-up ONNX Runtime takes."""
    tensor = helper.make_tensor("w", 1, [weights], np.zeros(weights, np.float32))
    graph = helper.make_graph([], "g", [], [], [tensor])
    model = helper.make_model(graph)
    helper.set_model_props(model, {"other": "x", METADATA_KEY: info.to_json()})
    onnx.save(model, path)
    return path


def _inputs() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 128)).astype(np.float32)
    return {"images": images, "image_sizes": np.float32([[64, 128]])}


# --- kernels or bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operators", "expected"), [(None, KERNELS), (True, KERNELS), (False, BODIES)]
)
def test_which_of_the_two_runs(
    shapes_files: dict[str, Path], operators: bool | None, expected: str
) -> None:
    with open_runner(shapes_files["onnxruntime"], operators=operators) as runner:
        assert runner.implementations[0] == expected
        assert repr(runner).endswith(f", {expected}>")
        found = runner.run(_inputs())
        events = runner.profile(_inputs(), 1)
    kernels = {event["args"]["op_name"] for event in events if event.get("cat") == "Node"}
    assert ("CarafeEncoded" in kernels) == (expected == KERNELS)
    with open_runner(shapes_files["pytorch"], options=STATIC) as reference:
        wanted = reference.run(_inputs())
    np.testing.assert_allclose(found["det_scores"], wanted["det_scores"], atol=1e-4)


def test_operators_alone_run_by_either(shapes_files: dict[str, Path]) -> None:
    with open_runner(shapes_files["onnxruntime"]) as runner:
        assert runner.implementations == (KERNELS, BODIES)
        call = runner.info.operators[0]
        generator = np.random.default_rng(0)
        arrays = [generator.normal(size=shape).astype(np.float32) for shape in call.shapes]
        (usual,), (kernels,), (bodies,) = (
            runner.run_operator(call, arrays, by) for by in ("", KERNELS, BODIES)
        )
    np.testing.assert_array_equal(usual, kernels)
    np.testing.assert_allclose(bodies, kernels, atol=1e-5)
    assert not np.array_equal(bodies, kernels)  # summed in another order


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the other libraries, in place of the package's."""
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(PACKAGE_FOLDER / "libcarafe_kernels.so", folder)
    monkeypatch.setattr("carafe_deploy.libraries.PACKAGE_FOLDER", folder)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return folder


def _is_elf(folder: Path) -> None:
    (folder / "libcarafe_onnxruntime.so").write_bytes(b"\x7fELF\x02\x01" + bytes(100))


def _is_another(folder: Path) -> None:
    shutil.copy(folder / "libcarafe_kernels.so", folder / "libcarafe_onnxruntime.so")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: None, "there is no libcarafe_onnxruntime.so in"),
        (_is_elf, "ONNX Runtime .* does not take .*libcarafe_onnxruntime.so: "),
        (_is_another, "ONNX Runtime .* does not take .*RegisterCustomOps"),
    ],
    ids=["missing", "broken", "another"],
)
def test_bodies_where_the_library_cannot_be_loaded(
    shapes_files: dict[str, Path],
    without_library: Path,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    spoil(without_library)
    path = shapes_files["onnxruntime"]
    message = rf"(?s)computes our operators by function bodies, which is slower: .*{reason}"
    with pytest.warns(UserWarning, match=message):
        opened = open_runner(path)
    with opened as runner:
        assert runner.implementations == (BODIES,)
        assert runner.run(_inputs())["num_dets"].shape == (1, 1)
    with pytest.raises(BackendUnavailableError, match=rf"(?s){reason}"):
        open_runner(path, operators=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_runner(path, operators=False).close()


# --- what ONNX Runtime is told -------------------------------------------------------------------


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """ONNX Runtime with all providers, which writes down what it is asked for."""
    asked: list[Any] = []
    known = [provider for names in session_module.PROVIDERS.values() for provider in names]

    class Session:
        def __init__(self, model: Any, options: Any, providers: Any) -> None:
            asked.append(providers)
            self.get_providers = lambda: [name for name, _ in providers]
            self.get_outputs = lambda: [
                SimpleNamespace(name=spec.name, shape=["batch"], type="tensor(float)")
                for spec in TOY.output_specs
            ]
            self.io_binding = SimpleNamespace

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return asked


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({}, {"device": "cuda"}, {"device_id": "0", "use_tf32": "0"}),
        ({}, {"device": "cuda", "tf32": False}, {"device_id": "0", "use_tf32": "0"}),
        ({}, {"device": "cuda:1", "tf32": True}, {"device_id": "1", "use_tf32": "1"}),
        (
            {"precision": "fp16"},
            {"device": "cuda"},
            {"device_id": "0", "use_tf32": "0", "prefer_nhwc": "1"},
        ),
        (
            {"input": FIXED},
            {"device": "cuda"},
            {"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
        ),
        (
            {"precision": "fp16"},
            {"device": "cuda", "provider_options": {"prefer_nhwc": "0", "fuse_conv_bias": "1"}},
            {"device_id": "0", "use_tf32": "0", "prefer_nhwc": "0", "fuse_conv_bias": "1"},
        ),
        (
            {"input": FIXED},
            {"device": "cuda", "mode": "cuda-graph"},
            {
                "device_id": "0",
                "use_tf32": "0",
                "arena_extend_strategy": "kSameAsRequested",
                "enable_cuda_graph": "1",
            },
        ),
    ],
)
def test_the_cuda_provider_is_told(
    sessions: list[Any],
    tmp_path: Path,
    changes: dict[str, Any],
    options: dict[str, Any],
    expected: dict[str, str],
) -> None:
    path = write(tmp_path / "x.onnx", ModelInfo("toy", "faster_rcnn", ("a",), **changes))
    runner = open_runner(path, **options)
    assert sessions == [[("CUDAExecutionProvider", expected), ("CPUExecutionProvider", {})]]
    usual = changes.get("precision", "fp32")
    assert runner.info.precision == ("tf32" if options.get("tf32") else usual)
    assert runner.device == f"cuda:{expected['device_id']}"


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_providers_of_tensorrt(
    sessions: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    path = write(tmp_path / "x.onnx", TOY)
    with pytest.raises(
        BackendUnavailableError, match=f"provider {provider} rounds float32.*--tf32"
    ):
        OnnxRuntimeRunner(path, "cuda", provider=provider)
    assert OnnxRuntimeRunner(path, "cuda", provider=provider, tf32=True).info.precision == "tf32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    runner = OnnxRuntimeRunner(path, "cuda", provider=provider)
    assert runner.info.precision == "fp32"
    assert runner.implementations == (BODIES,)  # it takes whole graphs
    with pytest.raises(BackendUnavailableError, match=f"{provider} runs function bodies"):
        OnnxRuntimeRunner(path, "cuda", provider=provider, operators=True)


def test_a_missing_file_is_still_a_missing_file(sessions: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        OnnxRuntimeRunner(tmp_path / "y.onnx", "cuda")


def test_kernels_for_cpus_alone_do_not_run_beside_a_gpu(
    sessions: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_has_cuda", lambda: False)
    path = write(tmp_path / "x.onnx", TOY)
    with pytest.warns(UserWarning, match="for CPUs only: build them with CUDA"):
        assert OnnxRuntimeRunner(path, "cuda").implementations == (BODIES,)
    assert OnnxRuntimeRunner(path).implementations == (KERNELS, BODIES)


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"input": FIXED}, {"device": "cpu"}, "the provider is cpu"),
        ({"input": FIXED}, {"provider": "tensorrt", "tf32": True}, "the provider is tensorrt"),
        ({"input": FIXED}, {"operators": False}, "its operators run as function bodies"),
        ({}, {}, "it takes several input sizes: export it with one"),
    ],
)
def test_what_is_captured_in_no_graph(
    sessions: list[Any],
    tmp_path: Path,
    changes: dict[str, Any],
    options: dict[str, Any],
    reason: str,
) -> None:
    path = write(tmp_path / "x.onnx", ModelInfo("toy", "faster_rcnn", ("a",), **changes))
    message = f"captures .*x.onnx in no CUDA graph, {reason}"
    with pytest.raises(BackendUnavailableError, match=message):
        OnnxRuntimeRunner(path, **{"device": "cuda", **options}, mode="cuda-graph")


def test_what_onnx_runtime_does_not_capture(
    sessions: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("This session cannot use the graph capture feature as requested")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    path = write(tmp_path / "x.onnx", ModelInfo("toy", "faster_rcnn", ("a",), input=FIXED))
    with pytest.raises(BackendUnavailableError, match=r"This session cannot use .* mode eager"):
        OnnxRuntimeRunner(path, "cuda", mode="cuda-graph")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": "1"}, "ONNX Runtime's CPU provider takes none"),
        (["x"], "give names and values, all of them text"),
        ({"x": 1}, "give names and values, all of them text"),
    ],
)
def test_options_that_the_provider_does_not_take(
    shapes_files: dict[str, Path], options: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        open_runner(shapes_files["onnxruntime"], provider_options=options)


def test_no_such_mode(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="choose from eager, cuda-graph"):
        OnnxRuntimeRunner(tmp_path / "x.onnx", mode="compile")


# --- versions ------------------------------------------------------------------------------------


def _carafe(kernel_size: int) -> OperatorCall:
    attributes = {"kernel_size": kernel_size, "group_size": 1, "scale_factor": 2}
    return OperatorCall("carafe", ((1, 4, 8, 8), (1, kernel_size**2, 16, 16)), attributes)


def test_old_versions_take_several_settings_by_kernels_alone(
    sessions: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = ModelInfo("toy", "faster_rcnn", ("a",), operators=(_carafe(3), _carafe(5), _carafe(3)))
    path = write(tmp_path / "x.onnx", info)
    one = write(tmp_path / "one.onnx", TOY)
    for version, refused in (("1.26.0", True), ("1.27.0", False), ("1.32.1", False)):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        assert OnnxRuntimeRunner(path).implementations[0] == KERNELS
        assert OnnxRuntimeRunner(one, operators=False).implementations == (BODIES,)
        if refused:
            with pytest.raises(
                BackendUnavailableError, match=r"calls Carafe in several settings.*1\.26\.0.*1\.27"
            ):
                OnnxRuntimeRunner(path, operators=False)
        else:
            assert OnnxRuntimeRunner(path, operators=False).implementations == (BODIES,)


# --- memory on the device ------------------------------------------------------------------------


@pytest.mark.parametrize("static", [True, False])
def test_bound_memory_is_kept_and_never_handed_out(
    shapes_files: dict[str, Path], export: Callable[..., Path], static: bool
) -> None:
    dynamic = ExportOptions((1, 2), (64, 128), (128, 192))
    path = shapes_files["onnxruntime"] if static else export("faster", ".onnx", dynamic)
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_outputs()]
    buffers = Buffers(session, names, "cpu")
    assert bool(buffers._outputs) == static
    first, second = _inputs(), _inputs()
    second["images"] = second["images"] * 2 + 1
    sizes = [first, second]
    if not static:
        wider = np.zeros((2, 3, 128, 192), np.float32)
        sizes += [{"images": wider, "image_sizes": np.float32([[128, 192]] * 2)}, first]
    results = [buffers.run(inputs)[0] for inputs in sizes]
    for inputs, found in zip(sizes, results, strict=True):
        for array, expected in zip(found, session.run(names, inputs), strict=True):
            np.testing.assert_array_equal(array, expected)


# --- metadata ------------------------------------------------------------------------------------


def test_metadata_is_read_without_the_weights(tmp_path: Path) -> None:
    for weights in (1, 300, 10**6):
        path = write(tmp_path / "x.onnx", TOY, weights)
        assert read_metadata(path) == TOY.to_json().encode()


def test_metadata_of_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", TOY)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    noise = (generator.integers(0, 256, 200, np.uint8).tobytes() for _ in range(200))
    for content in (b"", *(whole[:end] for end in range(0, len(whole), 7)), *noise):
        path.write_bytes(content)
        read_metadata(path)


def test_metadata_behind_millions_of_fields_is_not_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", TOY)
    path.write_bytes(b"\x08\x01" * 4_000_000 + path.read_bytes())  # ir_version, again and again
    begun = time.monotonic()
    assert read_metadata(path) is None
    assert time.monotonic() - begun < 2


def test_metadata_that_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", TOY)
    path.write_bytes(path.read_bytes().replace(b'"toy"', b'"\xff\xfe\xfd"'))
    with pytest.raises(ArtefactError, match=r"metadata of .*x\.onnx is damaged .*utf-8.*: export"):
        OnnxRuntimeRunner(path)
