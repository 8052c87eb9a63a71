"""Compilers, as the build looks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from carafe_deploy.doctor import tools
from carafe_deploy.doctor.findings import ok
from carafe_deploy.doctor.tools import check_cmake, check_compiler, check_nvcc

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a program that prints something into a folder; only ``bin`` is on PATH."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUDAToolkit_ROOT", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tools, "installed_version", lambda name: None)

    def write(name: str, prints: str = "", folder: str = "bin") -> Path:
        program = tmp_path / folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{prints}'\n")
        program.chmod(0o755)
        return program

    return write


def test_none(install: Install) -> None:
    assert (check_nvcc().status, check_nvcc().remedy) == ("missing", "")
    assert check_cmake().remedy == "pip install 'cmake>=3.24'"
    assert check_compiler().remedy == "apt-get install g++"


def test_nvcc_from_path_or_a_variable(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install("nvcc", "Cuda compilation tools, release 13.0, V13.0.88")
    assert check_nvcc() == ok("nvcc", f"13.0, {path}")
    other = install("nvcc", "release 12.8, V12.8.1", "cuda/bin")
    monkeypatch.setenv("CUDA_HOME", str(other.parents[1]))
    assert check_nvcc() == ok("nvcc", f"12.8, {other}")
    monkeypatch.setenv("CUDACXX", str(path))
    assert check_nvcc() == ok("nvcc", f"13.0, {path}")


def test_an_old_nvcc_is_as_good_as_none(install: Install) -> None:
    path = install("nvcc", "release 11.8, V11.8.89")
    finding = check_nvcc()
    assert finding.status == "missing"
    assert finding.fact == f"11.8 in {path} is too old, 12.4 or newer is needed"


def test_an_nvcc_that_says_nothing(install: Install) -> None:
    path = install("nvcc")
    assert check_nvcc() == ok("nvcc", f"of unknown version, {path}")
    path.write_text("#!/bin/sh\nexit 1\n")
    assert check_nvcc() == ok("nvcc", f"of unknown version, {path}")


def test_cmake_as_a_package_or_program(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install("cmake", "cmake version 3.25.1")
    assert check_cmake() == ok("CMake", f"3.25.1, {path}")
    install("cmake", "cmake version 3.22.0")
    assert check_cmake().status == "missing"
    monkeypatch.setattr(tools, "installed_version", {"cmake": "4.1"}.get)
    assert check_cmake() == ok("CMake", "4.1")


def test_compiler(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install("g++")
    assert check_compiler() == ok("C++ compiler", str(path))
    clang = install("clang++-18")
    monkeypatch.setenv("CXX", "clang++-18")
    assert check_compiler() == ok("C++ compiler", str(clang))


@pytest.mark.parametrize("name", ["_OLDEST_CMAKE", "_OLDEST_NVCC"])
def test_versions_are_those_of_cmakes_files(name: str) -> None:
    root = Path(__file__).parents[2]
    file, words = {
        "_OLDEST_CMAKE": ("CMakeLists.txt", "cmake_minimum_required(VERSION {})"),
        "_OLDEST_NVCC": (
            "plugins/cmake/CarafeCuda.cmake",
            "CMAKE_CUDA_COMPILER_VERSION VERSION_LESS {})",
        ),
    }[name]
    assert words.format(getattr(tools, name)) in (root / file).read_text(encoding="utf-8")
