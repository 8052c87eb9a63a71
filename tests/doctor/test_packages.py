"""Packages: the table is pyproject.toml's, and every state has its remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from carafe_deploy import backends
from carafe_deploy.doctor import packages
from carafe_deploy.doctor.findings import missing, ok, wrong
from carafe_deploy.doctor.packages import check_package, check_python, numbers
from carafe_deploy.requirements import Package

PACKAGES = backends.packages()

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
ORT = PACKAGES["onnxruntime"]
Has = Callable[..., None]


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Has:
    """Decide which distributions are installed, and whether their module is there."""

    def decide(versions: Mapping[str, str], module: bool = True) -> None:
        monkeypatch.setattr(packages, "installed_version", versions.get)
        monkeypatch.setattr(packages, "is_installed", lambda name: module)

    return decide


def requirements(extra: str) -> str:
    """What pyproject.toml lists for an extra, those that it refers to included."""
    name = extra or "dependencies"
    [line] = re.findall(rf"^{name} = (.*)", PYPROJECT, re.MULTILINE)
    return line + "".join(map(requirements, re.findall(r"carafe-deploy\[(\w+)\]", line)))


@pytest.mark.parametrize("package", PACKAGES.values(), ids=lambda package: package.module)
def test_the_table_is_that_of_the_project(package: Package) -> None:
    pattern = rf'"{re.escape(f"{package.distributions[0]}>={package.oldest}")}[";]'
    assert re.search(pattern, requirements(package.extra))


def test_python_versions_are_those_of_the_project() -> None:
    (oldest, newest) = packages._PYTHON
    listed = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)
    assert [oldest, newest] == [(3, int(listed[0])), (3, int(listed[-1]))]


def test_installed(has: Has) -> None:
    has({"onnxruntime": "1.20"})
    assert check_package(ORT, {"version": "1.20"}, " (CPU)") == ok("ONNX Runtime", "1.20 (CPU)")


def test_not_installed(has: Has) -> None:
    has({}, module=False)
    expected = missing("ONNX Runtime", "not installed", "pip install 'carafe-deploy[ort]'")
    assert check_package(ORT) == expected


def test_too_old(has: Has) -> None:
    has({"onnxruntime-gpu": "1.9.3"})
    assert check_package(ORT, {"error": "would not matter"}) == wrong(
        "ONNX Runtime",
        "1.9.3 is too old, 1.20 or newer is needed",
        "pip install --upgrade 'onnxruntime-gpu>=1.20'",
    )


def test_two_over_each_other(has: Has) -> None:
    has({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"})
    assert check_package(ORT, {"version": "1.32.0"}) == wrong(
        "ONNX Runtime",
        "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.0 are installed over each other",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'carafe-deploy[ort]'",
    )


def test_several_opencvs_are_common_and_work(has: Has) -> None:
    has({"opencv-python": "4.9", "opencv-python-headless": "4.10"})
    assert check_package(PACKAGES["cv2"], {"version": "4.10.0"}).status == "ok"


def test_one_whose_module_went_with_another(has: Has) -> None:
    """What remains when one of two that own the same files is uninstalled."""
    has({"onnxruntime-gpu": "1.31.0"}, module=False)
    finding = check_package(ORT)
    assert finding.status == "wrong"
    assert finding.fact == (
        "onnxruntime-gpu 1.31.0 is installed, but its module onnxruntime is not there"
    )
    assert finding.remedy.startswith("pip uninstall -y onnxruntime-gpu && pip install ")


def test_one_that_cannot_be_loaded(has: Has) -> None:
    has({"opencv-python": "4.9"})
    error = "libGL.so.1: cannot open shared object file: No such file or directory"
    assert check_package(PACKAGES["cv2"], {"error": error}) == wrong(
        "OpenCV",
        f"4.9 cannot be loaded ({error})",
        "pip uninstall -y opencv-python && pip install 'carafe-deploy[image]'",
    )


def test_one_that_pip_does_not_know(has: Has) -> None:
    has({})
    assert check_package(ORT) == ok("ONNX Runtime", "of unknown version")
    assert check_package(ORT, {"version": "1.2"}).remedy == (
        "pip install --upgrade 'onnxruntime>=1.20'"
    )
    assert check_package(ORT, {"error": "broken"}).remedy == "pip install 'carafe-deploy[ort]'"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.14.1+cu130", (2, 14, 1)), ("10.0rc1", (10, 0)), ("1.20", (1, 20)), ("unknown", ())],
)
def test_numbers_of_a_version(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 18), "wrong"), ((3, 11, 0), "ok"), ((3, 13, 7), "ok"), ((3, 14, 0), "wrong")],
)
def test_python(
    version: tuple[int, int, int], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.sys, "version_info", version)
    finding = check_python()
    assert (finding.status, finding.fact.partition(",")[0]) == (
        status,
        ".".join(map(str, version)),
    )
    assert finding.remedy == ("" if status == "ok" else "python3.13 -m venv .venv")
