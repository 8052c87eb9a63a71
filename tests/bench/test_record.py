"""Results as JSON and back, and files that are none."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from carafe_deploy.bench.record import (
    PARTS,
    Agreement,
    BenchResult,
    Cold,
    Layer,
    Layers,
    OperatorRow,
    OperatorsResult,
    Sample,
    SampleDetections,
    Samples,
    Streamed,
    Subject,
    Throughput,
)
from carafe_deploy.bench.result_file import read_result, to_json, write_result
from carafe_deploy.errors import ArtefactError

SAMPLES = Samples(
    rounds=(0, 0, 1, 1),
    total_ms=(10.0, 11.0, 12.0, 13.0),
    parts_ms={name: (1.0, 2.0, 3.0, 4.0) for name in PARTS},
    enqueue_ms=(0.1, 0.1, 0.1, 0.1),
)
SUBJECT = Subject(
    name="PyTorch fp32",
    backend="pytorch",
    device="cpu",
    precision="fp32",
    variant="",
    file="a.pth",
    file_mb=12.5,
    samples=SAMPLES,
    throughput=(Throughput(1, (10.0, 20.0, 40.0)), Throughput(8, reason="too many")),
    cold=Cold(1.5, 0.25, 900.0, 800.0),
    streamed=Streamed(4, 32, 0.5, 0.25, 0.125, {"load": ((0.0, 0.125),), "run": ()}),
    ap={"bbox": 0.7},
    layers=Layers("a profiler", 5, (Layer("a", "Conv", 3.0), Layer("b", "x", 1.0, "Carafe"))),
    warnings=("careful",),
)
BENCH = BenchResult(
    environment={"Python": "3.11"},
    settings={"turns": "2"},
    model="m",
    architecture="mask_rcnn",
    classes=("cat", "dog"),
    subjects=(
        SUBJECT,
        dataclasses.replace(SUBJECT, name="x", agreement=Agreement(3, 4, 0.1, 0.9, None, False)),
        Subject("t", "tensorrt", "cuda", "fp16", "", "a.engine", 1.0, 2.5, "skipped", "no GPU"),
    ),
    samples=(
        Sample("a.png", 10, 20, "AA==", {"x": SampleDetections(((1, 2, 3, 4),), (0.5,), (1,))}),
    ),
    warnings=("busy",),
    partial=True,
)
OPERATORS = OperatorsResult(
    environment={},
    settings={},
    device="cpu",
    cache="warm",
    copy_bytes_per_second=1e10,
    flops_per_second=1e11,
    rows=(
        OperatorRow(
            "carafe", "w", "CPU kernel", "carafe", "float32", "nchw", (50.0, 100.0, 150.0),
            num_bytes=2_000_000, flops=5_000_000, copy_us=20.0, max_error=1e-7,
        ),
        OperatorRow("carafe", "w", "mmcv", "carafe", "float32", "nchw", reason="not installed"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("result", [BENCH, OPERATORS], ids=["bench", "operators"])
def test_what_is_written_is_read_again(result: object, tmp_path: Path) -> None:
    write_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result


def test_numbers_stand_on_one_line_and_are_rounded() -> None:
    samples = dataclasses.replace(SAMPLES, total_ms=(1 / 3, 1e-7 / 3, 2.0, 3.0))
    text = to_json(dataclasses.replace(BENCH, subjects=(
        dataclasses.replace(SUBJECT, samples=samples),)))  # fmt: skip
    assert '"total_ms": [0.333333, 3.33333e-08, 2.0, 3.0]' in text
    assert json.loads(text)["schema"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=2), "schema 2, this version reads 1: measure again"),
        (lambda data: data.update(kind="cake"), "is no benchmark result"),
        (lambda data: data.pop("kind"), "is no benchmark result"),
        (lambda data: data.pop("subjects"), r"is damaged \(.*subjects.*\): measure again"),
        (lambda data: data.update(more=1), r"is damaged \(.*more.*\): measure again"),
        (
            lambda data: data["subjects"][0]["samples"].update(total_ms=["x"]),
            r"is damaged \(.*subjects\[0\].samples.total_ms.*\): measure again",
        ),
        (
            lambda data: data["subjects"][0]["samples"].update(total_ms=[0, 1, 1, 1]),
            r"total_ms\[0\] is 0\.0, expected 1e-09 to",
        ),
        (
            lambda data: data["subjects"][0]["samples"].update(total_ms=[1.0, math.nan, 1, 1]),
            "NaN is no number of JSON",
        ),
        (
            lambda data: data["subjects"][0]["samples"].update(rounds=[0]),
            r"samples: total_ms has 4 entries, expected 1 as rounds has",
        ),
        (lambda data: data["subjects"][0].update(status="x"), r"status is 'x', expected one of"),
        (lambda data: data.update(environment=[1]), r"environment is \[1\], expected an object"),
        (lambda data: data.update(model="\ud800"), r"expected a text without lone surrogates"),
        (
            lambda data: data["samples"][0]["found"]["x"].update(scores=[]),
            r"samples\[0\]\.found\.x: 1 boxes, expected as many scores",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    data = json.loads(to_json(BENCH))
    change(data)
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match=message):
        read_result(tmp_path / "r.json")


def test_results_of_versions_without_pipelined_throughput_are_read(tmp_path: Path) -> None:
    data = json.loads(to_json(BENCH))
    for entry in data["subjects"][0]["throughput"]:
        del entry["pipelined_ms"]
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert read_result(tmp_path / "r.json") == BENCH


def test_missing_files_and_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read: No such file"):
        read_result(tmp_path / "none.json")
    for text, message in (
        ("[]", "no benchmark result"),
        ("{", "is no JSON"),
        ("[" * 200_000, "nested too deep"),
    ):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ArtefactError, match=message):
            read_result(tmp_path / "r.json")


def test_what_follows_from_the_samples() -> None:
    assert SAMPLES.total.median == 11.5
    assert SAMPLES.part("compute").median == 2.5
    assert SAMPLES.over(SAMPLES).value == 1
    assert SAMPLES.over(SAMPLES, "compute").value == 1
    assert BENCH.measured == BENCH.subjects[:2]
    assert SUBJECT.throughput[0].images_per_second == 50
    assert SUBJECT.throughput[1].images_per_second is None
    assert SUBJECT.throughput[0].pipelined_images_per_second is None
    assert BENCH.subjects[0].streamed.images_per_second == 64
    assert Throughput(2, (40.0,), "", (50.0, 40.0, 60.0)).pipelined_images_per_second == 40
    assert SUBJECT.layers.share("Carafe", "CarafeEncoded") == 0.25
    assert Layers("p", 1, reason="no").share("Carafe") == 0


def test_what_follows_from_bytes_and_flops() -> None:
    measured, skipped = OPERATORS.rows
    assert measured.median_us == 100
    assert measured.gigabytes_per_second == 20  # 2 MB in 100 us
    assert measured.gigaflops == 50  # 5 MFLOP in 100 us
    assert OPERATORS.floor_us(measured) == 50  # computing takes longer than copying
    assert skipped.median_us is None
    assert skipped.gigaflops is None
