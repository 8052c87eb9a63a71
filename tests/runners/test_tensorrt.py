"""The TensorRT runner: its own logic on a fake GPU, real engines up to the driver, all on a GPU."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.engine.sidecar import PluginRecord, sidecar_path
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    EngineError,
    InputShapeError,
    UnsupportedLevelError,
)
from carafe_deploy.kernels import Device as Kind
from carafe_deploy.kernels import KernelLibrary, PreprocessParams
from carafe_deploy.libraries import require_library
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners import tensorrt as tensorrt_runner
from carafe_deploy.runners._tensorrt_images import EngineImages
from carafe_deploy.runners.tensorrt import MODES, TensorRTRunner
from carafe_deploy.types import OperatorCall
from tests.engine import fake_tensorrt
from tests.engine.fake_tensorrt import PLAN, VERSION, FakeTensorRT, write_engine
from tests.engine.tiny import tiny_info


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def engine(trt: FakeTensorRT, tmp_path: Path) -> Path:
    return write_engine(tmp_path / "tiny.engine", trt)


def _inputs(batch: int = 1, height: int = 64, width: int = 64, value: float = 1.0) -> dict:
    images = np.full((batch, 3, height, width), value, np.float32)
    images += np.arange(batch, dtype=np.float32)[:, None, None, None]
    return {"images": images, "image_sizes": np.array([[height, width]] * batch, np.float32)}


def _means(found: dict) -> list[float]:
    return found["det_boxes"][:, 0, 0].tolist()


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_shapes_come_in_any_order(engine: Path, trt: FakeTensorRT, mode: str) -> None:
    calls = [(1, 64, 64), (2, 64, 128), (1, 64, 64), (4, 192, 256), (2, 64, 128), (1, 64, 64)]
    with TensorRTRunner(engine, mode=mode) as runner:
        for index, (batch, height, width) in enumerate(calls):
            found = runner.run(_inputs(batch, height, width, value=10.0 * index))
            assert _means(found) == [10.0 * index + image for image in range(batch)]
        # Graphs hold on to addresses and contexts; without them one set serves all.
        sets = 3 if mode == "cuda-graph" else 1
        assert len(trt.device.memory) == sets * 6
        assert trt.engine is not None
        assert trt.engine.contexts == sets


def test_memory_grows_and_stays(engine: Path, trt: FakeTensorRT) -> None:
    with TensorRTRunner(engine) as runner:
        sizes = []
        for width in (128, 64, 192, 128):
            runner.run(_inputs(width=width))
            sizes.append(sum(map(len, trt.device.memory.values())))
        assert sizes[0] == sizes[1] < sizes[2] == sizes[3]


@pytest.mark.parametrize("mode", MODES)
def test_a_timed_run_marks_where_its_parts_end(engine: Path, mode: str) -> None:
    with TensorRTRunner(engine, mode=mode) as runner:
        for value in (3.0, 4.0, 5.0):
            found, times = runner.run_timed(_inputs(value=value))
            assert _means(found) == [value]
            # The fake GPU's clock counts tasks: the mark before, then two uploads, one execution
            # or graph of one, four downloads.
            assert (times.upload, times.compute, times.download) == (3, 2, 5)
            assert times.enqueue is not None
            assert times.enqueue >= 0


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_bounded(engine: Path, trt: FakeTensorRT, mode: str) -> None:
    with TensorRTRunner(engine, mode=mode, shapes=2) as runner:
        for _ in range(2):
            for width in (64, 128, 192):
                runner.run(_inputs(width=width))
                runner.run(_inputs(width=width))
                assert len(trt.device.memory) <= 2 * 6
                assert len(trt.device.captured) <= 2


def test_graphs_are_captured_once_a_shape_has_run(engine: Path, trt: FakeTensorRT) -> None:
    with TensorRTRunner(engine, mode="cuda-graph") as runner:
        counts = []
        for value in (1.0, 2.0, 3.0):
            assert _means(runner.run(_inputs(value=value))) == [value]
            counts.append((len(trt.device.captured), trt.device.launches))
    assert counts == [(0, 0), (1, 1), (1, 2)]
    assert trt.device.captured == []


def test_graphs_wait_until_tensorrt_can_be_captured(
    engine: Path, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = []
    monkeypatch.setattr(
        fake_tensorrt._Context,
        "is_stream_capturable",
        lambda self, stream: bool(ready),
        raising=False,
    )
    with TensorRTRunner(engine, mode="cuda-graph") as runner:
        for _ in range(3):
            assert _means(runner.run(_inputs())) == [1.0]
        assert trt.device.launches == 0
        ready.append(True)
        assert _means(runner.run(_inputs())) == [1.0]
        assert trt.device.launches == 1


@pytest.mark.parametrize("mode", MODES)
def test_runs_are_started_before_those_before_have_ended(
    engine: Path, trt: FakeTensorRT, mode: str
) -> None:
    with TensorRTRunner(engine, mode=mode) as runner:
        for turn in range(3):
            started = [
                runner.start(_inputs(batch=2, width=width, value=10.0 * turn + width))
                for width in (64, 128, 64)
            ]
            for width, finish in ((64, started[2]), (64, started[0]), (128, started[1])):
                assert _means(finish()) == [10.0 * turn + width, 10.0 * turn + width + 1]
        # Two runs of one shape, one of the other, each with five outputs.
        assert trt.device.host_memories == 3 * len(runner.outputs)


def test_a_started_run_waits_for_itself_alone(engine: Path, trt: FakeTensorRT) -> None:
    with TensorRTRunner(engine) as runner:
        runner.run(_inputs())
        first, second = runner.start(_inputs(value=2.0)), runner.start(_inputs(value=3.0))
        assert len(trt.device.queue) > 0
        assert _means(first()) == [2.0]
        assert len(trt.device.queue) > 0
        assert _means(second()) == [3.0]
        assert trt.device.queue == []


def test_a_shape_that_was_refused_leaves_the_others_as_they_were(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        assert _means(runner.run(_inputs(batch=2))) == [1.0, 2.0]
        with pytest.raises(EngineError):
            runner.run(_inputs(batch=3))
        assert _means(runner.run(_inputs(batch=2))) == [1.0, 2.0]


class _Kernels:
    """The library's CPU kernel, in a stream of the fake GPU."""

    has_cuda = True

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self._library = KernelLibrary(require_library("carafe_kernels"))

    def preprocess(
        self,
        params: PreprocessParams,
        source: int,
        table: int,
        out: int,
        *,
        device: Kind,
        stream: int,
    ) -> None:
        gpu = self._trt.device
        assert (device, stream, gpu.depth) == (Kind.CUDA, gpu.stream, 1)

        def work() -> None:
            batch = max(pointer for pointer in gpu.memory if pointer <= out)
            places = [
                np.frombuffer(gpu.memory[pointer], np.uint8) for pointer in (source, table, batch)
            ]
            image, numbers, target = (place.ctypes.data for place in places)
            self._library.preprocess(params, image, numbers, target + out - batch)

        gpu.queue.append(work)


@pytest.mark.parametrize("mode", MODES)
def test_raw_images_become_batches_on_the_gpu(
    engine: Path, trt: FakeTensorRT, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_runner, "preprocessing_kernels", lambda: _Kernels(trt))
    rng = np.random.default_rng(0)
    with TensorRTRunner(engine, mode=mode) as runner:
        assert runner.preprocesses
        raw, whole = Preprocessor(runner.info, raw=True), Preprocessor(runner.info)
        for turn in range(4):
            images = [
                rng.integers(0, 256, (40 + 20 * turn, 50 + side, 3), np.uint8) for side in (0, 1)
            ]
            finish = runner.start(raw(images).inputs)
            for given in (images, images[:1]):
                expected = runner.run(whole(given).inputs)
                found = [runner.run(raw(given).inputs), runner.run_timed(raw(given).inputs)[0]]
                if given is images:
                    found.append(finish())
                for one in found:
                    for name, array in expected.items():
                        np.testing.assert_array_equal(one[name], array)
    assert trt.device.memory == {}


def test_memory_for_an_image_stays_when_more_is_refused(trt: FakeTensorRT) -> None:
    device = fake_tensorrt.FakeDevice()
    images = EngineImages(_Kernels(trt), device)
    small, large = (
        Preprocessor(tiny_info(), raw=True)([np.zeros((size, size, 3), np.uint8)]).images
        for size in (20, 40)
    )
    host, target = np.empty(40 * 40 * 3, np.uint8), device.allocate(1 << 20)
    with device.current():
        images.enqueue(small, target, host)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device, "allocate", _refuse)
            with pytest.raises(EngineError, match="memory"):
                images.enqueue(large, target, host)
        for batch in (small, large, small):
            images.enqueue(batch, target, host)
            device.synchronize()


def _refuse(size: int) -> int:
    raise EngineError("out of memory")


@pytest.mark.parametrize("mode", MODES)
def test_threads_take_turns(
    engine: Path, trt: FakeTensorRT, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = trt.device.__class__.upload

    def slow(self: Any, pointer: int, array: np.ndarray) -> None:
        upload(self, pointer, array)
        time.sleep(0.002)  # others come in between, if they may

    monkeypatch.setattr(fake_tensorrt.FakeDevice, "upload", slow)
    with TensorRTRunner(engine, mode=mode) as runner, ThreadPoolExecutor(2) as pool:
        values = [float(value) for value in range(20)]
        found = pool.map(lambda value: _means(runner.run(_inputs(value=value))), values)
        assert list(found) == [[value] for value in values]


def test_outputs_are_there_for_whoever_asks_again(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        finish = runner.start(_inputs(value=2.0))
        assert finish() is finish()
        later = [runner.start(_inputs(value=value)) for value in (3.0, 4.0)]
        assert [_means(one()) for one in later] == [[3.0], [4.0]]


def test_without_kernels_for_a_gpu_raw_images_are_refused(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_runner, "preprocessing_kernels", lambda: None)
    with TensorRTRunner(engine) as runner:
        assert not runner.preprocesses
        batch = Preprocessor(runner.info, raw=True)([np.zeros((64, 64, 3), np.uint8)])
        with pytest.raises(InputShapeError, match="images is raw"):
            runner.run(batch.inputs)


def test_stages_come_as_float32(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.stages = ("features",)
    with TensorRTRunner(write_engine(tmp_path / "x.engine", trt)) as runner:
        found = runner.run_stages(_inputs(batch=2))
        assert list(runner.run(_inputs())) == list(runner.info.output_names)
    np.testing.assert_array_equal(found["features"], np.array([[1, 2.5]] * 2, np.float32))
    assert _means(found) == [1.0, 2.0]


def test_closing_frees_everything_and_may_happen_twice(engine: Path, trt: FakeTensorRT) -> None:
    runner = TensorRTRunner(engine, mode="cuda-graph")
    runner.run(_inputs())
    runner.run(_inputs())
    runner.close()
    runner.close()
    device = trt.device
    assert (device.memory, device.captured, device.closed, device.depth) == ({}, [], 1, 0)
    with pytest.raises(EngineError, match=r"tiny\.engine is closed: open it again"):
        runner.run(_inputs())


# --- inputs and executions that fail -------------------------------------------------------------


def test_a_shape_that_tensorrt_refuses_leaves_no_memory(engine: Path, trt: FakeTensorRT) -> None:
    with TensorRTRunner(engine) as runner:
        with pytest.raises(EngineError, match=r"failed to take images of shape \[3, .*Invalid sha"):
            runner.run(_inputs(batch=3))
        assert trt.device.memory == {}
        assert _means(runner.run(_inputs())) == [1.0]


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_execution_says_why(engine: Path, trt: FakeTensorRT, mode: str) -> None:
    with TensorRTRunner(engine, mode=mode) as runner:
        runner.run(_inputs())
        trt.fails = True
        with pytest.raises(EngineError, match=r"tiny\.engine failed to run: .*out of memory"):
            runner.run(_inputs())
        assert trt.device.depth == 0


def test_levels_that_an_engine_does_not_have(engine: Path) -> None:
    with TensorRTRunner(engine) as runner:
        with pytest.raises(UnsupportedLevelError, match=r"no intermediate tensors: .* --stages"):
            runner.run_stages(_inputs())
        with pytest.raises(UnsupportedLevelError, match="carafe cannot be run alone"):
            runner.run_operator(OperatorCall("carafe", (), {}), [])


# --- engines that cannot be opened ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.13.0"}, rf"built by TensorRT 10\.13\.0, here is {VERSION}: .*build it ag"),
        ({"bytes": 99}, "has 30 bytes, its sidecar says 99: it is truncated or of another build"),
        ({"sha256": "00"}, "another SHA-256 than its sidecar says: it is damaged"),
        ({"flavour": "openvino"}, "sidecar .* is damaged: flavour is 'openvino'"),
        ({"compute_capabilities": ("8.6",)}, r"for compute capability 8\.6, this GPU has 8\.9: b"),
        ({"stages": True}, r"its sidecar says \[.*'features'.*\]: build it again"),
    ],
)
def test_sidecars_that_do_not_fit(
    trt: FakeTensorRT, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        TensorRTRunner(write_engine(tmp_path / "x.engine", trt, **changes))


def test_a_failed_opening_frees_the_device(trt: FakeTensorRT, tmp_path: Path) -> None:
    path = write_engine(tmp_path / "x.engine", trt, compute_capabilities=("8.6",))
    with pytest.raises(ArtefactError):
        TensorRTRunner(path)
    assert (trt.device.closed, trt.device.depth) == (1, 0)


def test_files_that_are_missing_or_cut(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"none\.engine does not exist: build it with"):
        TensorRTRunner(tmp_path / "none.engine")
    engine.write_bytes(PLAN[:10])
    with pytest.raises(ArtefactError, match="has 10 bytes"):
        TensorRTRunner(engine)
    engine.write_bytes(PLAN[:-1] + b"!")
    with pytest.raises(ArtefactError, match="damaged"):
        TensorRTRunner(engine)
    sidecar_path(engine).unlink()
    with pytest.raises(ArtefactError, match=r"tiny\.engine\.json is missing: copy it along"):
        TensorRTRunner(engine)


@pytest.mark.parametrize(
    ("message", "kind", "expected"),
    [
        ("magic tag does not match", ArtefactError, "does not open .*magic tag .* build it again"),
        (
            "(cudaError 35: CUDA driver version is insufficient)",
            BackendUnavailableError,
            r"needs an NVIDIA GPU .*\(cudaError 35: CUDA driver version is insufficient\): check",
        ),
    ],
)
def test_tensorrts_own_refusal(
    engine: Path, trt: FakeTensorRT, message: str, kind: type, expected: str
) -> None:
    trt.message = message
    with pytest.raises(kind, match=expected):
        TensorRTRunner(engine)


def test_a_plugin_library_of_another_build(
    trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = PluginRecord("libcarafe_tensorrt.so", "ab" * 32, "0.0.9", ())
    path = write_engine(tmp_path / "x.engine", trt, plugin=plugin)
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    monkeypatch.setattr("carafe_deploy.libraries.PACKAGE_FOLDER", tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"there is no libcarafe_tensorrt\.so in"):
        TensorRTRunner(path)
    (tmp_path / "libcarafe_tensorrt.so").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"built with .* 0\.0\.9, SHA-256 abababababab…, but"):
        TensorRTRunner(path)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"device": "cpu"}, BackendUnavailableError, "'cpu': engines run on cuda or cuda:N"),
        ({"device": "cuda:x"}, BackendUnavailableError, "'cuda:x'"),
        ({"backend": "cupy"}, BackendUnavailableError, "'cupy': choose from fake"),
        ({"shapes": 0}, EngineError, "shapes is 0"),
    ],
)
def test_settings_that_do_not_exist(engine: Path, settings: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        TensorRTRunner(engine, **settings)


def test_graphs_need_a_backend_that_captures(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tensorrt.FakeDevice, "captures_graphs", False)
    with pytest.raises(BackendUnavailableError, match="fake cannot capture CUDA graphs"):
        TensorRTRunner(engine, mode="cuda-graph")
    with TensorRTRunner(engine) as runner:
        assert _means(runner.run(_inputs())) == [1.0]


def test_the_device_is_chosen_by_number(engine: Path, trt: FakeTensorRT) -> None:
    with open_runner(engine, device="cuda:1"):
        assert trt.device.index == 1
