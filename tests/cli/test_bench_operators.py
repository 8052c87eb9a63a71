"""``carafe-deploy bench --op``: tables, files, exit status."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from carafe_deploy.bench import operator_bench
from carafe_deploy.bench.operator_bench import OperatorOptions
from carafe_deploy.bench.record import OperatorRow, OperatorsResult
from carafe_deploy.bench.result_file import read_result
from carafe_deploy.cli.bench_operators import bench_operators
from carafe_deploy.cli.common import UsageError

SLOW, FAST = tuple([2000.0] * 6), tuple([50.0, 50.0, 60.0])
RESULT = OperatorsResult(
    environment={},
    settings={"turns": "3 rounds", "caches": "warm", "threads": "2", "doubt": "too many cooks"},
    device="cpu",
    cache="warm",
    copy_bytes_per_second=2e10,
    flops_per_second=1e11,
    rows=(
        OperatorRow(
            "carafe", "neck", "CPU kernel", "carafe_encoded", "float32", "nchw", FAST,
            num_bytes=400_000, flops=2_000_000, copy_us=20.0, max_error=3e-7,
        ),
        OperatorRow("carafe", "neck", "PyTorch", "carafe", "float32", "nchw", SLOW, 400_000, 2),
        OperatorRow("carafe", "neck", "mmcv", "carafe", "float32", "nchw", reason="not installed"),
        OperatorRow("nms", "RPN", "CPU kernel", "batched_nms", "float32", "", FAST, 400_000),
    ),
)  # fmt: skip
WRONG = OperatorRow(
    "nms", "RPN", "other", "batched_nms", "float32", "", reason="wrong: 3 of 9 boxes kept"
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[OperatorOptions]:
    """Options that were measured with; the result is made up."""
    options: list[OperatorOptions] = []
    give(monkeypatch, options)
    monkeypatch.chdir(tmp_path)
    return options


def give(
    monkeypatch: pytest.MonkeyPatch, options: list[OperatorOptions], *more: Any, **changes: Any
) -> None:
    def measure(given: OperatorOptions, *, step: Any, progress: Any) -> OperatorsResult:
        options.append(given)
        step("carafe")
        progress(1, 2)
        return dataclasses.replace(RESULT, rows=(*RESULT.rows, *more), **changes)

    monkeypatch.setattr(operator_bench, "measure_operators", measure)


def test_tables(asked: list[OperatorOptions], capsys: pytest.CaptureFixture[str]) -> None:
    bench_operators(["carafe", "nms", "carafe"], output=Path("r.json"))
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "carafe entry type median µs p90 GB/s GFLOP/s copy floor error" in lines
    assert "CPU kernel carafe_encoded float32 nchw 50.0 58.0 8.0 40.0 40% 40% 3e-07" in lines
    assert "PyTorch carafe float32 nchw 2000 2000 0.2 0.0 0" in lines
    assert "mmcv: not installed" in lines
    assert "nms type median µs p90 GB/s copy" in lines
    assert "CPU kernel float32 50.0 58.0 8.0" in lines
    assert "copy 20.0 GB/s, read and written" in lines
    assert "too many cooks" in lines
    assert "carafe-deploy report r.json -o report.html" in lines
    assert "carafe" in err
    assert read_result("r.json") == RESULT
    assert asked == [OperatorOptions(operators=("carafe", "nms"))]


def test_options(asked: list[OperatorOptions]) -> None:
    bench_operators(
        ["all"], device="cuda:1", rounds=2, iterations=3, threads=4, full=True, json_output=True
    )
    assert asked == [OperatorOptions(device="cuda:1", rounds=2, iterations=3, threads=4, full=True)]


def test_json_is_all_of_stdout(
    asked: list[OperatorOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    bench_operators(["nms"], output=Path("r.json"), json_output=True)
    assert json.loads(capsys.readouterr().out) == json.loads(Path("r.json").read_text())


def test_a_wrong_implementation_is_status_1(
    asked: list[OperatorOptions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give(monkeypatch, asked, WRONG)
    with pytest.raises(typer.Exit) as ended:
        bench_operators(["nms"])
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert "other, RPN, float32: wrong: 3 of 9 boxes kept" in out
    assert "FAIL 1 of 5 rows" in out


def test_interrupted(
    asked: list[OperatorOptions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give(monkeypatch, asked, partial=True)
    with pytest.raises(typer.Exit) as ended:
        bench_operators(["nms"], output=Path("r.json"))
    assert ended.value.exit_code == 130
    assert "this is what was measured by then" in capsys.readouterr().out
    assert read_result("r.json").partial


def test_nothing_measured(
    asked: list[OperatorOptions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give(monkeypatch, asked, partial=True)
    monkeypatch.setattr(
        operator_bench,
        "measure_operators",
        lambda *_, **__: dataclasses.replace(RESULT, rows=(), partial=True),
    )
    with pytest.raises(typer.Exit):
        bench_operators(["nms"])
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"operators": ["softmax"]},
            "--op is 'softmax': give carafe, rpn_candidates, roi_align, box_candidates, nms or all",
        ),
        ({"rounds": 0}, "--rounds is 0: give at least 1"),
        ({"iterations": -1}, "--iterations is -1: give at least 1"),
        ({"threads": 0}, "--threads is 0: give at least 1"),
    ],
)
def test_bad_input(asked: list[OperatorOptions], settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench_operators(**{"operators": ["nms"], **settings})
    assert asked == []
