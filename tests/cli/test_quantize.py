"""`carafe-deploy quantize`, and exports in 8 bits."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.cli.eight_bits import TargetName, Values
from carafe_deploy.cli.quantize import Measure, Method
from carafe_deploy.quantize.calibration import Calibration
from carafe_deploy.quantize.insertion import TARGETS
from carafe_deploy.quantize.job import Quantizer
from carafe_deploy.quantize.sensitivity import MEASURES
from carafe_deploy.types import CALIBRATION_METHODS, QUANTIZED

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(onnx_file, tmp_path_factory.mktemp("model") / "mask.onnx"))


@pytest.fixture(scope="module")
def pictures(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight validation images."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(1, 9):
        shutil.copy(shapes_dir / "val" / f"{number:06}.png", folder)
    return folder


@pytest.fixture(scope="module")
def ranges(model: Path, pictures: Path) -> Path:
    """Found once; they stand beside the model."""
    _ = Quantizer(model, Calibration(sorted(pictures.iterdir()))).ranges
    [path] = model.parent.glob("mask.*.ranges.json")
    return path


def test_a_file_and_what_is_said_of_it(
    run: Run, model: Path, pictures: Path, ranges: Path, tmp_path: Path
) -> None:
    outcome = run("quantize", model, "--calibration", pictures, "--keep-float", 2)
    assert outcome.status == 0, outcome.err
    assert "48 layers to int8 for cpu, ranges by minmax of 8 images" in outcome.out
    assert str(ranges) in outcome.out.replace("\n", "")
    shown = run("inspect", "mask.int8.onnx")
    assert "48 layers to int8 for cpu, ranges by minmax of 8 images" in shown.out
    assert "in float" in shown.out
    layers = run("inspect", "mask.int8.onnx", "--json").json["layers"]
    assert layers["QuantizeLinear"] > 40
    detected = run("detect", "mask.int8.onnx", pictures, "-o", "found", "--json")
    assert detected.status == 0, detected.err


def test_sensitivity_alone_writes_nothing(run: Run, model: Path, pictures: Path) -> None:
    outcome = run(
        *("quantize", model, "--calibration", pictures, "--sensitivity", "error", "--json"),
        *("--sensitivity-images", 1),
    )
    assert outcome.json["file"] is None
    assert [row["layer"] for row in outcome.json["sensitivity"]]
    assert not list(Path.cwd().iterdir())


def test_float_layers_until_detections_are_near_enough(
    run: Run, model: Path, pictures: Path
) -> None:
    result = run(
        *("quantize", model, "--calibration", pictures, "--keep-float", "auto", "--json"),
        *("--max-loss", 0.5, "--sensitivity-images", 2, "-o", "auto.onnx"),
    ).json
    assert [trial["kept_float"] for trial in result["trials"]] == [[]]
    assert result["goal"] == {"what": "change of detections", "most": 0.5}
    assert 0 < result["trials"][0]["loss"] < 0.5
    assert result["kept_float"] == []


def test_choices_are_those_of_the_package() -> None:
    assert tuple(Method) == CALIBRATION_METHODS
    assert tuple(Measure) == MEASURES
    assert tuple(TargetName) == tuple(TARGETS)
    assert set(Values) == set(QUANTIZED)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "ranges come from images: give --calibration"),
        (("--keep-float", "all"), "--keep-float is 'all'"),
        (("--max-loss", "0.1"), "belongs to --keep-float auto"),
        (("--percentile", "99"), "--percentile 99 belongs to --method percentile"),
        (("--annotations", "a.json"), "belongs to --keep-float auto"),
        (("--keep-float", "1", "--float-layer", "x"), "drop one of them"),
        (("--for", "cpu", "--precision", "fp8"), "it takes int8"),
        (("-o", "x.engine"), "let its name end in .onnx"),
        (("--float-layer", "conv9"), "there is no layer 'conv9'"),
        (("--limit", "3"), "calibration has 3 images"),
        (("--image-dir", "x"), "--image-dir x belongs to --annotations"),
        (("--keep-float", "50"), "is 50 of 50 layers: at most 49"),
        (("--keep-float", "9" * 5000), "give a number of layers, or auto"),
        (("--keep-float", "auto", "--annotations", "no.json"), "no.json"),
        (("-o", "MODEL"), "is the file to quantize"),
    ],
)
def test_what_contradicts_itself(
    run: Run, model: Path, pictures: Path, options: tuple[str, ...], words: str
) -> None:
    given = ("--calibration", pictures, "--ranges", "none.json") if options else ()
    options = tuple(str(model) if option == "MODEL" else option for option in options)
    outcome = run("quantize", model, *given, *options)
    assert outcome.status == 2
    assert "✓ calibrate" not in outcome.err
    assert words in outcome.err.replace("\n", " ")
    assert not list(Path.cwd().iterdir())


def test_an_empty_folder_and_a_broken_image(
    run: Run, model: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    outcome = run("quantize", model, "--calibration", tmp_path / "empty")
    assert (outcome.status, "holds no image" in outcome.err) == (2, True)
    folder = Path(shutil.copytree(pictures, tmp_path / "some"))
    (folder / "broken.png").write_bytes(b"\x89PNG")
    outcome = run("quantize", model, "--calibration", folder)
    assert (outcome.status, "broken.png" in outcome.err) == (2, True)
    assert not list(Path.cwd().iterdir())


def test_exports_in_8_bits_need_images_and_onnx(run: Run, checkpoint: Path, pictures: Path) -> None:
    for options, words in (
        (("--precision", "int8"), "give --calibration FOLDER"),
        (("--precision", "int8", "--calibration", "nowhere"), "nowhere does not exist"),
        (("--precision", "int8", "--calibration", pictures / "000001.png"), "has 1 image"),
        (("--precision", "fp8", "--for", "cpu", "--calibration", pictures), "it takes int8"),
        (("--calibration", pictures), "belongs to --precision int8 or fp8"),
        (("--for", "cpu"), "belongs to --precision int8 or fp8"),
        (
            ("--precision", "int8", "--calibration", pictures, "-o", "x.ts"),
            "is of ONNX files, TorchScript has none",
        ),
    ):
        outcome = run("export", checkpoint, *options)
        assert outcome.status == 2
        assert words in outcome.err.replace("\n", " ")


@pytest.mark.slow
def test_an_export_in_8_bits(run: Run, faster_checkpoint: Path, pictures: Path) -> None:
    result = run(
        *("export", faster_checkpoint, "--precision", "int8", "--calibration", pictures),
        *("--for", "tensorrt", "--json"),
    ).json
    assert (result["precision"], result["quantized"]) == ("int8", 46)
    assert result["notes"] == ["ONNX Runtime's CPU computes half-precision convolutions in float32"]
    [file] = Path.cwd().iterdir()
    assert file.name == f"{result['model']}.int8.onnx"
    model = run("inspect", file, "--json").json["model"]
    assert model["quantization"]["base"] == "fp16"


def test_ctrl_c_in_calibration(model: Path, shapes_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "carafe_deploy", "quantize", model, "-o", "q.onnx"]
    child = subprocess.Popen(
        [*map(str, command), "--calibration", str(shapes_dir / "val"), "--ranges", "r.json"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    time.sleep(6)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert b"Traceback" not in said
    assert not list(tmp_path.iterdir())
