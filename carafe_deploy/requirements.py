"""Packages as pyproject.toml requires them; nothing is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from carafe_deploy.brief import OneLine

__all__ = ["OTHERS", "Package", "installed_version", "is_installed"]


@dataclass(frozen=True, repr=False)
class Package(OneLine):
    """One package.

    Attributes:
        title: for people.
        module: to import.
        oldest: version that is new enough.
        extra: of carafe-deploy that installs it; empty for what has none.
        distributions: names on PyPI that bring the module, the one of the extra first.
        exclusive: they own the same files, so that two of them break each other.
        reported: so many of them are listed in a bug report.
    """

    title: str
    module: str
    oldest: str
    extra: str
    distributions: tuple[str, ...]
    exclusive: bool = False
    reported: int = 1

    @property
    def install(self) -> str:
        """Command that installs it."""
        if not self.extra:
            return f"pip install '{self.distributions[0]}>={self.oldest}'"
        return f"pip install 'carafe-deploy[{self.extra}]'"


_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)

#: What belongs to no backend.
OTHERS = (
    Package("pycuda", "pycuda", "2024.1", "pycuda", ("pycuda",)),
    Package("cuda-bindings", "cuda.bindings", "12.8", "cuda-python", ("cuda-bindings",)),
    Package("OpenCV", "cv2", "4.8", "image", _OPENCV),
    Package("pycocotools", "pycocotools", "2.0.8", "eval", ("pycocotools",)),
    Package("NumPy", "numpy", "1.24", "", ("numpy",), reported=0),
    Package("matplotlib", "matplotlib", "3.8", "bench", ("matplotlib",), reported=0),
    Package("jinja2", "jinja2", "3.1", "bench", ("jinja2",), reported=0),
)


def is_installed(module: str) -> bool:
    """Whether a module has code to import; a folder that an uninstallation left behind has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # of the package around it
        return False
    return spec is not None and spec.origin is not None


def installed_version(distribution: str) -> str | None:
    """Version of a package by its name on PyPI."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
