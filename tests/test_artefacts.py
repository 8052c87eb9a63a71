"""Which options fit which artefact: everything else is refused on opening, nothing is ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.backends import (
    BACKENDS,
    MODES,
    backend_of,
    load,
    mistaken,
    suffixes,
    title_of,
)
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    ConfigError,
    OptionError,
)
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.types import PRECISIONS

FP16 = ExportOptions(precision="fp16")


def _refusal(folder: Path, name: str, options: dict[str, Any]) -> CarafeDeployError:
    """Files are empty: who opens one instead of refusing says that it cannot be loaded."""
    (folder / name).touch()
    with pytest.raises(CarafeDeployError) as caught:
        open_runner(folder / name, **options)
    return caught.value


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", {"mode": "banana"}, "mode is 'banana': choose from eager, compile, cuda-graph"),
        ("a.pth", {"mode": "banana"}, "mode is 'banana': choose from eager, compile, cuda-graph"),
        ("a.onnx", {"operators": "no"}, "operators is 'no': a.onnx is an ONNX file, which takes T"),
        ("a.ts", {"operators": False}, "operators is False: a.ts is a TorchScript file, which tak"),
        ("a.pth", {"provider_options": {}}, "provider_options is {}: a.pth is a checkpoint, whic"),
        ("a.onnx", {"mode": "compile"}, "mode is 'compile': a.onnx is an ONNX file, which takes e"),
        ("a.ts", {"mode": "cuda-graph"}, "the checkpoint itself takes cuda-graph"),
        ("a.engine", {"mode": "compile"}, "an engine, which takes eager or cuda-graph: it is comp"),
        ("a.onnx", {"config": "nowhere.py"}, "config is 'nowhere.py': a.onnx is an ONNX file, whi"),
        (
            "a.ts",
            {"config": "x.py"},
            "a TorchScript file, which takes mode, tf32 or fused: leave it out",
        ),
        ("a.onnx", {"channels_last": False}, "channels_last is False: a.onnx is an ONNX file"),
        ("a.engine", {"channels_last": True}, "channels_last is True: a.engine is an engine"),
        ("a.ts", {"channels_last": True}, "channels_last is True: a.ts is a TorchScript file"),
        ("a.pth", {"channels_last": "yes"}, "a.pth is a checkpoint, which takes True or False"),
        ("a.pth", {"provider": "cpu"}, "provider is 'cpu': a.pth is a checkpoint, which takes"),
        ("a.pth", {"threads": 2}, "threads is 2: a.pth is a checkpoint, which takes mode, tf32,"),
        ("a.engine", {"threads": 2}, "threads is 2: a.engine is an engine, which takes mode"),
        ("a.onnx", {"threads": 0}, "threads is 0: give at least 1"),
        ("a.onnx", {"threads": 2.5}, "threads is 2.5: give at least 1"),
        ("a.onnx", {"threads": "4"}, "threads is '4': give at least 1"),
        ("a.onnx", {"tf32": []}, r"tf32 is \[\]: a.onnx is an ONNX file, which takes True or Fa"),
        ("a.onnx", {"device": 0}, "device is 0: give cpu, cuda or cuda:N"),
        ("a.onnx", {"device": ""}, "device is '': give cpu, cuda or cuda:N"),
        ("a.pth", {"options": {}}, "options is {}: give ExportOptions"),
        ("a.ts", {"options": FP16}, "options is ExportOptions.*: a.ts is a TorchScript file"),
        ("a.onnx", {"precision": "fp16"}, "precision is 'fp16': a.onnx is an ONNX file"),
        ("a.pth", {"precision": "int8"}, "which takes fp32, fp16 or bf16"),
        (
            "a.pth",
            {"precision": "fp32", "options": FP16},
            "precision is 'fp32': options.precision is 'fp16': give one of them",
        ),
        ("a.engine", {"tf32": True}, "tf32 is True: a.engine is an engine, which takes mode"),
        (
            "a.engine",
            {"device": "cpu"},
            "device is 'cpu': a.engine is an engine, which runs on cud",
        ),
        ("a.onnx", {"tf32": "yes"}, "tf32 is 'yes': a.onnx is an ONNX file, which takes True or"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    error = _refusal(tmp_path, name, options)
    assert isinstance(error, OptionError)
    assert re.search(message, str(error)), error


@pytest.mark.parametrize("name", ["a.pth", "a.ts", "a.onnx"])
@pytest.mark.parametrize("device", [None, "cpu", "cpu:0"])
def test_what_only_a_gpu_does(tmp_path: Path, name: str, device: str | None) -> None:
    error = _refusal(tmp_path, name, {"tf32": True, "device": device})
    assert isinstance(error, BackendUnavailableError)
    assert str(error).startswith("tf32 needs a GPU, device is cpu: give --device cuda")


@pytest.mark.parametrize("suffix", suffixes())
def test_what_was_not_given_is_nobodys_business_and_the_usual_fits_all(
    tmp_path: Path, suffix: str
) -> None:
    """An empty file is refused for being empty, whatever the usual options."""
    for options in ({}, {"mode": "eager"}, {"mode": None, "provider": None, "threads": None}):
        error = _refusal(tmp_path, f"a{suffix}", options)
        assert not isinstance(error, OptionError), error


def test_a_config_that_is_not_there(shapes_dir: Path) -> None:
    checkpoint = next(shapes_dir.glob("*faster*.pth"))
    with pytest.raises(ConfigError, match=r"nowhere\.py"):
        open_runner(checkpoint, config="nowhere.py")


def test_precision_alone_is_enough(shapes_dir: Path) -> None:
    checkpoint = next(shapes_dir.glob("*faster*.pth"))
    with open_runner(checkpoint, precision="bf16") as runner:
        assert runner.info.precision == "bf16"
        assert runner.device == "cpu"
        assert not runner.preprocesses


@pytest.mark.parametrize("name", BACKENDS)
def test_entries_are_of_one_piece(name: str) -> None:
    backend = BACKENDS[name]
    assert set(backend.options["mode"]) <= set(MODES)
    assert set(backend.reasons).isdisjoint(backend.options["mode"])
    assert set(backend.providers) <= {"cpu", "cuda"}
    assert all(backend_of(f"a{suffix.upper()}") == name for suffix in backend.suffixes)
    for code in (backend.open, backend.describe, backend.known, backend.profile):
        assert not code or callable(load(code)), code
    assert bool(backend.profile) == bool(backend.profiler)
    assert title_of(name) == backend.title


def test_precisions_are_those_that_there_are() -> None:
    assert BACKENDS["pytorch"].options["precision"] == PRECISIONS


def test_no_two_backends_open_the_same_files() -> None:
    assert len(set(suffixes())) == len(suffixes())


def test_names_that_have_no_entry() -> None:
    assert (backend_of("a.tflite"), title_of("tflite")) == (None, "tflite")


@pytest.mark.parametrize(
    ("path", "wanted", "said"),
    [
        ("a.onnx", "tensorrt", "a.onnx is an ONNX file"),
        ("a.PTH", None, "a.PTH is a checkpoint"),
        ("a.plan", "tensorrt", None),
        ("a.json", "tensorrt", None),
    ],
)
def test_files_for_another_command(path: str, wanted: str | None, said: str | None) -> None:
    assert mistaken(path, wanted) == said


def test_files_come_before_options(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        open_runner(tmp_path / "a.onnx", mode="banana")
