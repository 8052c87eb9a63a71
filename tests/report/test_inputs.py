"""Reading results: all kinds, and everything that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from carafe_deploy.bench.result_file import Result, write_result
from carafe_deploy.errors import ArtefactError
from carafe_deploy.report.inputs import read
from tests.report import synthetic


@pytest.mark.parametrize(
    "result", [synthetic.tiny_bench(), synthetic.operators(), synthetic.partial_bench()]
)
def test_benchmarks(tmp_path: Path, result: Result) -> None:
    write_result(tmp_path / "result.json", result)
    loaded = read(tmp_path / "result.json")
    assert type(loaded) is type(result)
    assert loaded.partial == result.partial  # type: ignore[union-attr]


@pytest.mark.parametrize("passed", [True, False])
def test_parity(tmp_path: Path, passed: bool) -> None:
    report = synthetic.parity(passed=passed)
    (tmp_path / "parity.json").write_text(report.to_json())
    assert read(tmp_path / "parity.json") == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"bad\.json is damaged \(it is no JSON.*\): measure again"),
        (
            "[1, 2]",
            r"is neither a benchmark result nor a parity report: write the JSON of one with",
        ),
        ("{}", r"`carafe-deploy bench \.\.\. -o FILE\.json` or `carafe-deploy parity"),
        ('{"passed": true, "detectors": []}', r"is neither"),
        ('{"kind": "poem", "schema": 1}', r"is no benchmark result"),
        ('{"kind": "bench", "schema": 0}', r"bad\.json has schema 0, this version reads 1"),
        ('{"kind": "bench", "schema": 1}', r"is damaged \(.*\): measure again"),
        (
            '{"rows": [{}], "passed": true}',
            r"bad\.json is no parity report \(rows\[0\]\.level is missing\)",
        ),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ArtefactError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["x.onnx", "x.engine", "x.pth"])
def test_an_artefact_is_none_by_its_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtefactError, match=rf"{name} is an? .*: write the JSON of one with `car"):
        read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"none\.json cannot be read: No such file"):
        read(tmp_path / "none.json")
