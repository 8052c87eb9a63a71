"""What all runners do alike. A new one joins by a line in :data:`RUNNERS`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.backends import BACKENDS
from carafe_deploy.errors import CarafeDeployError, InputShapeError, UnsupportedLevelError
from carafe_deploy.runners.base import Array, Runner
from carafe_deploy.types import DTYPES, OperatorCall
from tests.engine import fake_tensorrt
from tests.runners.conftest import STATIC


@dataclass(frozen=True)
class Place:
    """What an opener may use.

    Attributes:
        files: the small Faster R-CNN by backend; see :func:`tests.runners.conftest.shapes_files`.
        folder: for files of its own.
        monkeypatch: for a runtime that is made up.
    """

    files: dict[str, Path]
    folder: Path
    monkeypatch: pytest.MonkeyPatch


def _engine(place: Place) -> Runner:
    """Its TensorRT and GPU are made up."""
    trt = fake_tensorrt.install(place.monkeypatch)
    return open_runner(fake_tensorrt.write_engine(place.folder / "toy.engine", trt))


#: Backend -> what opens a runner of it.
RUNNERS: dict[str, Callable[[Place], Runner]] = {
    "pytorch": lambda place: open_runner(place.files["pytorch"], options=STATIC),
    "torchscript": lambda place: open_runner(place.files["torchscript"]),
    "onnxruntime": lambda place: open_runner(place.files["onnxruntime"]),
    "tensorrt": _engine,
}

#: Those that have stages and operators.
LOOKED_INTO = ("pytorch", "torchscript", "onnxruntime")

Open = Callable[[], Any]


@pytest.fixture(scope="module", params=RUNNERS)
def opened(
    request: pytest.FixtureRequest,
    shapes_files: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Open]:
    """Opens a runner of one backend."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = Place(shapes_files, tmp_path_factory.mktemp(request.param), monkeypatch)
        yield lambda: RUNNERS[request.param](place)


@pytest.fixture(scope="module")
def runner(opened: Open) -> Iterator[Any]:
    """One that all tests share which leave it as it is."""
    with opened() as runner:
        yield runner


def _inputs(runner: Runner) -> dict[str, Array]:
    """Of the smallest size that it accepts."""
    accepted = runner.info.input
    batch, height, width = accepted.batch[0], accepted.height[0], accepted.width[0]
    images = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
    return {"images": images, "image_sizes": np.array([[height, width]] * batch, np.float32)}


def _call(runner: Runner) -> OperatorCall:
    """The first operator, or one that it does not have."""
    return next(iter(runner.info.operators), OperatorCall("carafe", (), {}))


def _assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_it_has_what_the_protocol_names(runner: Any) -> None:
    assert isinstance(runner, Runner)
    assert runner.backend in BACKENDS
    assert re.fullmatch(r"cpu|cuda:\d+", runner.device)
    assert isinstance(runner.preprocesses, bool)
    assert runner.inputs == runner.info.input_specs
    assert runner.outputs == runner.info.output_specs
    assert runner.info.precision in DTYPES


def test_outputs_are_those_that_it_names(runner: Any) -> None:
    inputs = _inputs(runner)
    found = runner.run(inputs)
    assert list(found) == [spec.name for spec in runner.outputs]
    batch = len(inputs["images"])
    for spec in runner.outputs:
        assert found[spec.name].shape == (batch, *spec.shape[1:])
        assert str(found[spec.name].dtype) == spec.dtype
    assert 0 <= found["num_dets"].min() <= found["num_dets"].max() <= runner.info.max_detections


def test_results_stay_what_they_were(runner: Any) -> None:
    inputs = _inputs(runner)
    first = runner.run(inputs)
    kept = {name: array.copy() for name, array in first.items()}
    runner.run({**inputs, "images": inputs["images"] + 1})
    _assert_same(first, kept)
    _assert_same(runner.run(inputs), kept)


def test_a_timed_run_finds_the_same(runner: Any) -> None:
    inputs = _inputs(runner)
    found, times = runner.run_timed(inputs)
    _assert_same(found, runner.run(inputs))
    assert times.compute > 0
    assert min(times.upload, times.download) >= 0
    assert (times.enqueue is None) == (runner.device == "cpu")  # where the host computes


def test_arrays_that_may_only_be_read_or_lie_scattered(runner: Any, tmp_path: Path) -> None:
    inputs = _inputs(runner)
    expected = runner.run(inputs)
    # A page that must not be written: who did would end the process.
    np.save(tmp_path / "images.npy", inputs["images"])
    readonly = np.load(tmp_path / "images.npy", mmap_mode="r")
    scattered = np.repeat(inputs["images"], 2, axis=3)[..., ::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images in (readonly, scattered):
            _assert_same(runner.run({**inputs, "images": images}), expected)


def _wide(array: Array, axis: int, size: int) -> Array:
    """Zeros that take no memory."""
    shape = list(array.shape)
    shape[axis] = size
    return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, _: {"images": None}, r"input 'images' is missing, got \['image_sizes'\]"),
        (lambda i, _: {"images": i.astype(float)}, "dtype float64, expected float32"),
        (lambda i, _: {"images": np.moveaxis(i, 1, 3)}, r"expected \[B, 3, H, W\]"),
        (lambda i, _: {"images": i[..., :-1]}, "width .*, expected a multiple of 64"),
        (lambda i, a: {"images": _wide(i, 0, a.batch[1] + 1)}, "images has batch .*this artefact"),
        (lambda i, a: {"images": _wide(i, 2, a.height[1] + 64)}, "has height .*this artefact"),
        (lambda i, _: {"image_sizes": np.zeros((len(i), 3), np.float32)}, "expected float32"),
        (lambda i, _: {"image_sizes": np.ones((len(i), 2))}, r"image_sizes is float64 \[\d+, 2\]"),
        (lambda i, _: {"image_sizes": np.float32([[0, 9]] * len(i))}, r"is \[0.0, 9.0\], expected"),
        (lambda i, _: {"image_sizes": np.float32([[1e4, 9]] * len(i))}, r"1 to \d+ and 1 to \d+"),
        (lambda i, _: {"image_sizes": np.float32([[9, np.nan]] * len(i))}, r"is \[9.0, nan\], exp"),
    ],
)
@pytest.mark.parametrize("method", ["run", "run_timed"])
def test_arrays_that_do_not_fit_are_refused(
    runner: Any, method: str, change: Callable[[Array, Any], dict[str, Any]], message: str
) -> None:
    inputs = _inputs(runner)
    inputs |= change(inputs["images"], runner.info.input)
    inputs = {name: array for name, array in inputs.items() if array is not None}
    with pytest.raises(InputShapeError, match=message):
        getattr(runner, method)(inputs)


def test_stages_are_those_that_it_names_or_unsupported(runner: Any) -> None:
    inputs = _inputs(runner)
    try:
        found = runner.run_stages(inputs)
    except UnsupportedLevelError:
        assert runner.backend not in LOOKED_INTO
        return
    assert list(found) == [*runner.info.output_names, *runner.info.stages]
    assert all(found[name].dtype == np.float32 for name in runner.info.stages)
    _assert_same({name: found[name] for name in runner.info.output_names}, runner.run(inputs))
    with pytest.raises(InputShapeError):
        runner.run_stages({**inputs, "images": inputs["images"][..., :-1]})


def test_operators_compute_what_they_are_or_are_unsupported(runner: Any) -> None:
    import torch

    call = _call(runner)
    generator = np.random.default_rng(3)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in call.shapes]
    try:
        (found,) = runner.run_operator(call, arrays)
    except UnsupportedLevelError:
        assert runner.backend not in LOOKED_INTO
        return
    assert call.name == "carafe_encoded"
    tensors = map(torch.from_numpy, arrays)
    expected = torch.ops.carafe.carafe_encoded(*tensors, **call.attributes).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_inside_a_with_statement(opened: Open) -> None:
    with opened() as entered:
        assert isinstance(entered, Runner)
        text = repr(entered)
        assert text.startswith(f"<{type(entered).__name__} ")
        assert text.endswith(">")
        assert "\n" not in text
    assert repr(entered).endswith(", closed>")
    with pytest.raises(CarafeDeployError, match="is closed: open it again"), entered:
        pass


#: Whatever there is to call.
CALLS: dict[str, Callable[[Any], object]] = {
    "run": lambda runner: runner.run(_inputs(runner)),
    "run_timed": lambda runner: runner.run_timed(_inputs(runner)),
    "run_stages": lambda runner: runner.run_stages(_inputs(runner)),
    "run_operator": lambda runner: runner.run_operator(_call(runner), []),
    "__enter__": lambda runner: runner.__enter__(),
    # Of some.
    "profile": lambda runner: runner.profile(_inputs(runner), 1),
    "custom_nodes": lambda runner: runner.custom_nodes(),
    "prepared": lambda runner: runner.prepared(_inputs(runner)),
    "module": lambda runner: runner.module,
}


def _assert_refused(runner: Any, message: str) -> None:
    for name, call in CALLS.items():
        if hasattr(type(runner), name):
            with pytest.raises(CarafeDeployError, match=message):
                call(runner)


def test_every_method_of_a_closed_runner_says_so(opened: Open) -> None:
    runner = opened()
    prepared = runner.prepared(_inputs(runner)) if hasattr(runner, "prepared") else None
    runner.close()
    runner.close()
    message = rf"^{re.escape(runner._label)} is closed: open it again"
    _assert_refused(runner, message)
    if prepared is not None:
        with pytest.raises(CarafeDeployError, match=message):
            prepared()


def test_a_runner_in_another_process_says_how_to_do_without(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened()
    freed = []
    monkeypatch.setattr(runner, "_free", lambda: freed.append(runner))
    here = os.getpid()
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: here + 1)
        _assert_refused(runner, f"opened in process {here} and is used in its fork {here + 1}.*spa")
        runner.close()
        assert freed == []  # what is not there cannot be freed


def test_no_device_of_that_name(runner: Any) -> None:
    with pytest.raises(CarafeDeployError, match="'tpu'"):
        open_runner(runner._label, device="tpu")
