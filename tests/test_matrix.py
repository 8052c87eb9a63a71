"""tests/matrix.py, and that all files name the same versions of Python."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from carafe_deploy.doctor import packages

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "tests/matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_files_name_the_same_versions_of_python(matrix: ModuleType) -> None:
    versions = matrix.supported()
    assert versions == ["3.11", "3.12", "3.13"]
    oldest, newest = versions[0], versions[-1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == f">={oldest}"
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert [".".join(map(str, version)) for version in packages._PYTHON] == [oldest, newest]
    makefile = (ROOT / "Makefile").read_text()
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in makefile
    assert f"Python {oldest} or newer is needed" in makefile
    cmake = (ROOT / "plugins/cmake/CarafePyPI.cmake").read_text()
    assert f"find_package(Python {oldest} REQUIRED" in cmake
    assert not re.search(r"python_version", (ROOT / "constraints.txt").read_text())


def test_an_interpreter_is_found_by_its_version(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setattr(matrix.shutil, "which", lambda name: None)
    assert matrix.interpreter("3.11") is None
    for release in ("3.11.9", "3.11.10", "3.1.12"):
        path = tmp_path / "versions" / release / "bin/python3"
        path.parent.mkdir(parents=True)
        path.touch()
    assert matrix.interpreter("3.11") == str(tmp_path / "versions/3.11.10/bin/python3")
    # What pyenv puts on PATH fails unless that version is chosen.
    shim = tmp_path / "python3.12"
    monkeypatch.setattr(matrix.shutil, "which", lambda name: str(shim))
    for status, expected in ((127, None), (0, str(shim))):
        shim.write_text(f"#!/bin/sh\nexit {status}\n")
        shim.chmod(0o755)
        assert matrix.interpreter("3.12") == expected


def test_a_row_says_what_ran_and_what_did_not(matrix: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"/>'
        "</testsuites>"
    )
    found = matrix.counts(report)
    assert found == {"passed": 4, "failed": 3, "skipped": 3}
    done = {"python": "3.13.0", "torch": "2.14.1", "onnx": "", **found, "seconds": 9, "log": "a"}
    stopped = {"python": "3.12.1", "log": "build/matrix/3.12.log", "error": "pip: status 1"}
    lines = matrix.table([done, stopped]).splitlines()
    assert lines[2] == "| 3.13.0 | 2.14.1 | – |  | – | 4 | 3 | 3 | 9 |"
    assert lines[-1] == "3.12.1: pip: status 1, see build/matrix/3.12.log"


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"passed": 5, "failed": 0}, 0),
        ({"passed": 5, "failed": 1}, 1),
        ({"passed": 0, "failed": 0}, 1),
        ({"error": "pytest: status 4"}, 1),
    ],
)
def test_the_exit_status_is_that_of_the_worst_row(
    matrix: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: dict[str, object],
    status: int,
) -> None:
    output = tmp_path / "matrix.json"
    rows = [{"python": "3.11.1", "passed": 1, "failed": 0}, {"python": "3.12.1", "log": "", **row}]
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "measure", lambda python, arguments: rows[int(python)])
    monkeypatch.setattr(sys, "argv", ["matrix.py", "0", "1", "--output", str(output)])
    assert matrix.main() == status
    assert output.read_text().count("python") == 2
