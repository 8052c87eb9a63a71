"""Metadata of artefacts: read as it was written, and refused by the name of what does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carafe_deploy.errors import ArtefactError
from carafe_deploy.types import InputFormat, ModelInfo, OperatorCall

INFO = ModelInfo(
    "toy",
    "mask_rcnn",
    ("cat", "dog"),
    input=InputFormat(batch=(1, 4)),
    mask_size=28,
    source={"file": "toy.pth"},
    operators=(OperatorCall("carafe", ((1, 2, 3, 3),), {"kernel_size": 3, "strides": [4, 8]}),),
    stages=("P2",),
)


def test_round_trip() -> None:
    assert ModelInfo.from_json(INFO.to_json(), "it") == INFO
    assert ModelInfo.from_json(INFO.to_json().encode(), "it") == INFO


@pytest.mark.parametrize(
    "path",
    ["stages", "precision", "preprocessing", "preprocessing.bgr_to_rgb", "input", "input.height"],
)
def test_every_version_has_written_all_fields(path: str) -> None:
    """A default in place of one that is lost would change what is detected."""
    data = json.loads(INFO.to_json())
    *outer, last = path.split(".")
    part = data
    for name in outer:
        part = part[name]
    del part[last]
    with pytest.raises(ArtefactError, match=rf"metadata of it is damaged \({path} is missing\)"):
        ModelInfo.from_json(json.dumps(data), "it")


def changed(path: str, value: Any) -> str:
    """The metadata with one value replaced."""
    data = json.loads(INFO.to_json())
    *outer, last = path.split(".")
    part = data
    for name in outer:
        part = part[int(name)] if isinstance(part, list) else part[name]
    part[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, r"metadata of x\.onnx has schema 2, this version reads 1"),
        ("preprocessing.scale", [0, 0], r"scale\[0\] is 0, expected 1 to 65536"),
        ("preprocessing.scale", [10**6, 10**6], r"scale\[0\] is 1000000, expected 1 to 65536"),
        ("preprocessing.scale", [-800, 3], r"scale\[0\] is -800"),
        ("preprocessing.std", [1, 0, 1], r"std\[1\] is 0\.0, expected 1e-06 to 1e\+06"),
        ("preprocessing.mean", [1, 1, float("nan")], r"NaN is no number of JSON"),
        ("preprocessing.pad_size_divisor", 0, r"pad_size_divisor is 0, expected 1 to 4096"),
        ("input.batch", [], r"input\.batch is \[\], expected 2 entries"),
        ("input.batch", [0, 4], r"input\.batch\[0\] is 0, expected 1 to 65536"),
        ("input.batch", [4, 1], r"input: batch is 4 to 1, expected the smaller one first"),
        ("input.layout", "nhwc", r"input\.layout is 'nhwc', expected one of nchw_float32, nhwc_"),
        ("classes", [], r"classes is \[\], expected 1 to 65536 entries"),
        ("classes", ["cat", ["dog"]], r"classes\[1\] is \['dog'\], expected a text"),
        ("classes", ["\ud800"], r"classes\[0\] is '\\ud800', expected a text without lone surro"),
        ("architecture", "yolo", r"architecture is 'yolo', expected one of faster_rcnn, mask_rcnn"),
        ("mask_size", 0, r"mask_size is 0, expected at least 1 of a mask_rcnn"),
        ("score_threshold", "0.5", r"score_threshold is '0\.5', expected a finite number"),
        ("max_detections", -1, r"max_detections is -1, expected 1 to"),
        ("operators.0.shapes", [[1 << 20, 1 << 20]], r"operators\[0\]: shape .* has more than"),
        ("operators.0.name", None, r"operators\[0\]\.name is None, expected a text"),
        ("colour", "red", r"colour is unknown"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ArtefactError, match=message) as caught:
        ModelInfo.from_json(changed(path, value), "x.onnx")
    assert "x.onnx" in str(caught.value)
    assert str(caught.value).endswith(": export the model again")
