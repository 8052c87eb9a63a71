"""Python packages: which versions are needed, and what can be wrong with an installed one."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carafe_deploy.brief import OneLine
from carafe_deploy.doctor.findings import Finding, missing, ok, wrong
from carafe_deploy.environment import installed_version, is_installed

__all__ = ["PACKAGES", "Package", "check_package", "check_python", "numbers"]

#: Python versions that this package is for.
_PYTHON = ((3, 11), (3, 13))


@dataclass(frozen=True, repr=False)
class Package(OneLine):
    """A package as pyproject.toml requires it.

    Attributes:
        title: for people.
        module: to import.
        oldest: version that is new enough.
        extra: of carafe-deploy that installs it; empty for what it always needs.
        distributions: names on PyPI that bring the module, the one of the extra first.
        exclusive: they own the same files, so that two of them break each other.
    """

    title: str
    module: str
    oldest: str
    extra: str
    distributions: tuple[str, ...]
    exclusive: bool = False

    @property
    def install(self) -> str:
        """Command that installs it."""
        if not self.extra:
            return f"pip install '{self.distributions[0]}>={self.oldest}'"
        return f"pip install 'carafe-deploy[{self.extra}]'"

    @property
    def installed(self) -> dict[str, str]:
        """Versions of the distributions that are installed."""
        found = {name: installed_version(name) for name in self.distributions}
        return {name: version for name, version in found.items() if version is not None}


_ORT = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)

#: By module.
PACKAGES = {
    package.module: package
    for package in (
        Package("NumPy", "numpy", "1.24", "", ("numpy",)),
        Package("OpenCV", "cv2", "4.8", "image", _OPENCV),
        Package("pycocotools", "pycocotools", "2.0.8", "eval", ("pycocotools",)),
        Package("ONNX Runtime", "onnxruntime", "1.20", "ort", _ORT, exclusive=True),
        Package("torch", "torch", "2.11", "torch", ("torch",)),
        Package("torchvision", "torchvision", "0.26", "torch", ("torchvision",)),
        Package("onnx", "onnx", "1.18", "onnx", ("onnx",)),
        Package("onnxscript", "onnxscript", "0.5", "onnx", ("onnxscript",)),
        Package(
            "TensorRT",
            "tensorrt",
            "10.1",
            "trt",
            ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        ),
        Package(
            "TensorRT-RTX",
            "tensorrt_rtx",
            "1.4",
            "rtx",
            ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
            exclusive=True,
        ),
        Package("pycuda", "pycuda", "2024.1", "pycuda", ("pycuda",)),
        Package("cuda-bindings", "cuda.bindings", "12.8", "cuda-python", ("cuda-bindings",)),
        Package("matplotlib", "matplotlib", "3.8", "bench", ("matplotlib",)),
        Package("cattrs", "cattrs", "23.2", "bench", ("cattrs",)),
        Package("jinja2", "jinja2", "3.1", "bench", ("jinja2",)),
    )
}


def numbers(version: str) -> tuple[int, ...]:
    """``"2.14.1+cu130"`` -> (2, 14, 1), to compare by."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def check_package(
    package: Package, answer: Mapping[str, Any] | None = None, note: str = ""
) -> Finding:
    """Judge one package.

    Args:
        package: of :data:`PACKAGES`.
        answer: ``version`` or ``error`` of importing it, where it was imported.
        note: follows the version.
    """
    name, installed, answer = package.title, package.installed, answer or {}
    reinstall = f"pip uninstall -y {' '.join(installed)} && {package.install}"
    versions = " and ".join(f"{known} {version}" for known, version in installed.items())
    if not is_installed(package.module):
        if installed:
            fact = f"{versions} is installed, but its module {package.module} is not there"
            return wrong(name, fact, reinstall)
        return missing(name, "not installed", package.install)
    if package.exclusive and len(installed) > 1:
        return wrong(name, f"{versions} are installed over each other", reinstall)
    version = answer.get("version") or next(iter(installed.values()), None)
    if version is not None and numbers(version) < numbers(package.oldest):
        requirement = f"{next(iter(installed), package.distributions[0])}>={package.oldest}"
        fact = f"{version} is too old, {package.oldest} or newer is needed"
        return wrong(name, fact, f"pip install --upgrade {shlex.quote(requirement)}")
    if "error" in answer:
        fact = f"{version or 'it'} cannot be loaded ({answer['error']})"
        return wrong(name, fact, reinstall if installed else package.install)
    return ok(name, f"{version or 'of unknown version'}{note}")


def check_python() -> Finding:
    """Judge the interpreter."""
    oldest, newest = _PYTHON
    version = "{}.{}.{}".format(*sys.version_info[:3])
    if oldest <= sys.version_info[:2] <= newest:
        return ok("Python", version)
    supported = "{}.{} to {}.{}".format(*oldest, *newest)
    command = "python{}.{} -m venv .venv".format(*newest)
    return wrong("Python", f"{version}, supported are {supported}", command)
