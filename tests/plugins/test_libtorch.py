"""libcarafe_torch.so without the package, as C++ programs have it, and one that detects with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import load_image
from carafe_deploy.operators import OPERATORS
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.runners.torchscript import TorchScriptRunner
from tests.ops import faces
from tests.ops.cases import CASES
from tests.ops.layouts import LAYOUTS, has_layout_of
from tests.plugins import problems
from tests.plugins.built import built, run_python


@pytest.fixture(scope="module")
def library() -> Path:
    return built("libcarafe_torch.so")


# --- who registers -------------------------------------------------------------------------------

PRINT_SCHEMAS = f"""
for name in {tuple(OPERATORS)}:
    print(getattr(torch.ops.carafe, name).default._schema)
"""


def test_schemas_are_those_of_the_package(library: Path) -> None:
    load = "import sys, torch; torch.ops.load_library(sys.argv[1])"
    ours = run_python(load + PRINT_SCHEMAS, library)
    theirs = run_python("import torch, carafe_deploy.ops" + PRINT_SCHEMAS)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == theirs.stdout
    assert ours.stdout.count("\n") == len(OPERATORS)


# --- what the operators compute ------------------------------------------------------------------

RUN_CALLS = """
import sys, torch
torch.ops.load_library(sys.argv[1])
calls = torch.load(sys.argv[2], weights_only=True)
torch.save(
    {key: getattr(torch.ops.carafe, name)(*arguments) for key, (name, arguments) in calls.items()},
    sys.argv[3],
)
"""

Calls = Mapping[str, tuple[str, tuple[object, ...]]]


def run_calls(library: Path, calls: Calls, folder: Path) -> dict[str, Any]:
    """Results of ``torch.ops.carafe.<name>(*arguments)`` of libcarafe_torch.so, by key."""
    torch.save(calls, folder / "calls.pt")
    done = run_python(RUN_CALLS, library, folder / "calls.pt", folder / "results.pt")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = torch.load(folder / "results.pt", weights_only=True)
    assert results.keys() == calls.keys()
    return results


#: What the library computes in, where that is not all that PyTorch does.
DTYPES = {
    **dict.fromkeys(
        ("rpn_candidates", "multilevel_roi_align", "box_candidates"), problems.HALF_AND_SINGLE
    ),
    "batched_nms": (torch.float32,),
}


@pytest.mark.parametrize("name", CASES)
def test_results(library: Path, tmp_path: Path, name: str) -> None:
    operator = OPERATORS[name]
    inputs = {
        (case, dtype, layout): LAYOUTS[layout](case, faces.typed(name, case, dtype))
        for case in CASES[name]
        for dtype in DTYPES.get(name, faces.dtypes(name))
        for layout in (LAYOUTS if operator.has_layouts else ("as listed",))
    }
    calls = {
        f"{case} {dtype} {layout}": (name, (*operator.grouped(tensors), *case.attributes.values()))
        for (case, dtype, layout), tensors in inputs.items()
    }
    results = run_calls(library, calls, tmp_path)
    for (case, dtype, layout), tensors in inputs.items():
        out = results[f"{case} {dtype} {layout}"]
        faces.assert_right(name, out, faces.truth(name, case, dtype), dtype)
        if operator.input_at(0).is_feature_map and operator.has_layouts:
            assert has_layout_of(out, tensors[0])


X = "torch.zeros(1, 4, 3, 5)"
ROIS, MAPS = "torch.zeros(1, 2, 4)", "[torch.zeros(1, 3, 8, 8)]"
BOXES, SCORES = "torch.zeros(1, 2, 3, 4)", "torch.zeros(1, 2, 3)"
ERRORS = [
    (f"carafe({X}, torch.zeros(1, 16, 6, 10), 4, 1, 2)", "kernel_size is 4, expected an odd"),
    (f"carafe({X}, torch.zeros(1, 27, 6, 10), 3, 3, 2)", "4 channels, not divisible by group_size"),
    (
        f"carafe({X}, torch.zeros(1, 24, 6, 10), 5, 1, 2)",
        "masks has 24 channels, expected group_size*kernel_size**2 = 25",
    ),
    (f"carafe({X}, torch.zeros(1, 9, 6, 9), 3, 1, 2)", "(1, 6, 9), expected (1, 6, 10)"),
    (f"carafe({X}, torch.zeros(1, 9, 6, 10), 3, 1, 0)", "scale_factor 0, expected at least 1"),
    (f"carafe({X}, torch.zeros(1, 9, 6, 10), 3, 1, 2**40)", "scale_factor 1099511627776"),
    (
        f"carafe({X}, torch.zeros(1, 9, 6, 10).half(), 3, 1, 2)",
        "features is torch.float32 and masks torch.float16",
    ),
    (f"carafe({X}[0], torch.zeros(1, 9, 6, 10), 3, 1, 2)", "features has 3 and masks 4 dimensions"),
    (
        f"carafe({X}.int(), torch.zeros(1, 9, 6, 10).int(), 3, 1, 2)",
        "expected one floating-point dtype",
    ),
    (
        f"carafe_encoded({X}, torch.zeros(1, 9, 3, 5), 3, 1, 2)",
        "encoded has 9 channels, expected",
    ),
    (
        f"multilevel_roi_align({ROIS}.half(), {MAPS}, 7, 0, [4], 56)",
        "rois is torch.float16, expected",
    ),
    (f"multilevel_roi_align({ROIS}[0], {MAPS}, 7, 0, [4], 56)", "rois has shape (2, 4), expected"),
    (f"multilevel_roi_align({ROIS}, {MAPS}, 7, 0, [4, 8], 56)", "1 feature maps for 2 strides"),
    (f"multilevel_roi_align({ROIS}, [], 7, 0, [], 56)", "0 feature maps for 0 strides"),
    (f"multilevel_roi_align({ROIS}, {MAPS}, 0, 0, [4], 56)", "output_size 0, sampling_ratio 0"),
    (f"multilevel_roi_align({ROIS}, {MAPS}, -7, 0, [4], 56)", "output_size -7, sampling_ratio 0"),
    (
        f"multilevel_roi_align({ROIS}, [{MAPS}[0].double()], 7, 0, [4], 56)",
        "features is torch.float64 on cpu, which the kernels do not compute in",
    ),
    (
        f"multilevel_roi_align({ROIS}, [{MAPS}[0], {MAPS}[0].half()], 7, 0, [4, 8], 56)",
        "feature map 1 is torch.float16 on cpu, expected torch.float32 on cpu",
    ),
    (
        f"multilevel_roi_align({ROIS}, [{MAPS}[0], {MAPS}[0][:, :2]], 7, 0, [4, 8], 56)",
        "feature map 1 has batch and channels (1, 2), expected (1, 3)",
    ),
    (
        f"batched_nms({BOXES}, {SCORES}.double(), 0.5, 0, 5)",
        "scores torch.float64, expected float32 both",
    ),
    (
        f"batched_nms({BOXES}, {SCORES}[:, :1], 0.5, 0, 5)",
        "scores has shape (1, 1, 3), expected (1, 2, 3)",
    ),
    (f"batched_nms({BOXES}[..., :3], {SCORES}, 0.5, 0, 5)", "expected [B, L, M, 4]"),
    (f"batched_nms({BOXES}, {SCORES}, 1.5, 0, 5)", "iou_threshold is 1.5, expected"),
    (f"batched_nms({BOXES}, {SCORES}, 0.5, float('nan'), 5)", "score_threshold is nan, expected"),
    (f"batched_nms({BOXES}, {SCORES}, 0.5, 0, 0)", "max_output is 0, expected at least 1"),
]

PROVOKE = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for call in sys.argv[2:]:
    try:
        eval(f"torch.ops.carafe.{call}")
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("no error")
"""


def test_errors_are_exceptions_that_name_the_value(library: Path) -> None:
    done = run_python(PROVOKE, library, *(call for call, _ in ERRORS))
    assert done.returncode == 0, done.stderr
    for (call, message), line in zip(ERRORS, done.stdout.splitlines(), strict=True):
        assert line.startswith("ValueError "), f"{call}: {line}"
        assert message in line, f"{call}: {line}"


# --- the example ---------------------------------------------------------------------------------


UINT8 = ExportOptions(uint8_input=True)


@pytest.fixture(scope="module", params=["faster", "mask"])
def detector_file(request: pytest.FixtureRequest, export: Callable[..., Path]) -> Path:
    return export(request.param, ".ts", UINT8)


def run_example(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One thread, as in Python here: sums are split alike."""
    return subprocess.run(
        [str(built("carafe_detect", "bin")), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def detections_of_example(detector_file: Path, image: np.ndarray, folder: Path) -> np.ndarray:
    """[N, 6]: class, score, x1, y1, x2, y2 as printed."""
    path = folder / "image.ppm"
    assert cv2.imwrite(str(path), image)
    done = run_example(detector_file, path)
    assert done.returncode == 0, done.stderr
    rows = [[float(value) for value in line.split()] for line in done.stdout.splitlines()]
    return np.array(rows).reshape(-1, 6)


@pytest.fixture(scope="module")
def python(detector_file: Path) -> Iterator[Pipeline]:
    with TorchScriptRunner(detector_file) as runner:
        yield Pipeline(runner)


def detections_of_python(python: Pipeline, image: np.ndarray) -> np.ndarray:
    (found,) = python.detect([image])
    return np.column_stack((found.labels, found.scores, found.boxes))


def test_detections_equal_those_of_python(
    detector_file: Path, python: Pipeline, shapes_dir: Path, tmp_path: Path
) -> None:
    images = [load_image(path) for path in sorted((shapes_dir / "val").iterdir())]
    unscaled = [image for image in images if image.shape[:2] == (120, 160)]
    total = 0
    for image in unscaled[:4]:
        found = detections_of_example(detector_file, image, tmp_path)
        expected = detections_of_python(python, image)
        total += len(expected)
        np.testing.assert_array_equal(found[:, 0], expected[:, 0])
        np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=0, atol=0.6e-4)
        np.testing.assert_allclose(found[:, 2:], expected[:, 2:], rtol=0, atol=0.6e-2)
    assert total > 4


def test_a_resized_image_gives_nearly_the_same(
    detector_file: Path, python: Pipeline, shapes_dir: Path, tmp_path: Path
) -> None:
    """Bilinear interpolation in float32 and OpenCV's in whole numbers: one grey level at most."""
    images = [load_image(path) for path in sorted((shapes_dir / "val").iterdir())]
    image = next(image for image in images if image.shape[:2] == (100, 150))
    found = detections_of_example(detector_file, image, tmp_path)
    expected = detections_of_python(python, image)
    sure = expected[expected[:, 1] > 0.5]
    assert len(sure) > 0
    np.testing.assert_array_equal(found[: len(sure), 0], sure[:, 0])
    np.testing.assert_allclose(found[: len(sure), 1], sure[:, 1], rtol=0, atol=0.02)
    np.testing.assert_allclose(found[: len(sure), 2:], sure[:, 2:], rtol=0, atol=1.0)


def test_bad_input_of_the_example(export: Callable[..., Path], tmp_path: Path) -> None:
    good, normalised = export("faster", ".ts", UINT8), export("faster", ".ts")
    image = tmp_path / "image.ppm"
    cv2.imwrite(str(image), np.zeros((64, 64, 3), np.uint8))
    truncated = tmp_path / "truncated.ppm"
    truncated.write_bytes(image.read_bytes()[:100])
    broken = tmp_path / "broken.ts"
    broken.write_bytes(good.read_bytes()[:1000])
    for arguments, code, message in (
        ((), 2, "usage: "),
        ((good, tmp_path / "no.ppm"), 1, "no.ppm"),
        ((good, truncated), 1, "truncated.ppm"),
        ((broken, image), 1, "broken.ts cannot be loaded"),
        ((normalised, image), 1, "takes no uint8 images: export it with --uint8-input"),
        ((good, image, "tpu"), 1, "tpu"),
    ):
        done = run_example(*arguments)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert done.stdout == ""
