"""What compiling the libraries takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from carafe_deploy.doctor.findings import Finding, missing, ok
from carafe_deploy.doctor.packages import numbers
from carafe_deploy.requirements import installed_version

__all__ = ["check_cmake", "check_compiler", "check_nvcc"]

_OLDEST_CMAKE = "3.24"
_OLDEST_NVCC = "12.4"


def check_nvcc() -> Finding:
    """The compiler that the build takes: from CUDACXX, CUDA_HOME or PATH, else from PyPI."""
    homes = (os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH", "CUDAToolkit_ROOT"))
    places = (os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc")
    path = _first(places)
    if path is None:
        return missing("nvcc", "none: the build fetches one from PyPI")
    version = _version(path, r"release (\d+\.\d+)")
    if version and numbers(version) < numbers(_OLDEST_NVCC):
        fact = f"{version} in {path} is too old, {_OLDEST_NVCC} or newer is needed"
        return missing("nvcc", fact, "export CUDACXX=/path/to/a/newer/nvcc")
    return ok("nvcc", f"{version or 'of unknown version'}, {path}")


def check_cmake() -> Finding:
    """CMake: as a package of this Python, which has its program beside Python's, or on PATH."""
    version = installed_version("cmake")
    path = None if version else _first(["cmake"])
    if path is not None:
        version = _version(path, r"version (\d+\.\d+\.\d+)")
    command = f"pip install 'cmake>={_OLDEST_CMAKE}'"
    if version is None:
        return missing("CMake", "not installed", command)
    if numbers(version) < numbers(_OLDEST_CMAKE):
        fact = f"{version} is too old, {_OLDEST_CMAKE} or newer is needed"
        return missing("CMake", fact, command)
    return ok("CMake", f"{version}{f', {path}' if path else ''}")


def check_compiler() -> Finding:
    """A C++ compiler, as CMake looks for one."""
    path = _first((os.environ.get("CXX"), "c++", "g++", "clang++"))
    if path is None:
        return missing("C++ compiler", "not installed", "apt-get install g++")
    return ok("C++ compiler", path)


def _first(programs: Iterable[str | None]) -> str | None:
    return next((path for name in programs if name and (path := shutil.which(name))), None)


def _version(path: str, pattern: str) -> str | None:
    try:
        done = subprocess.run(
            [Path(path), "--version"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(pattern, done.stdout)
    return found.group(1) if found else None
