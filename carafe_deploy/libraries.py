"""Find the shared libraries that travel with the package or were built from its sources."""

from __future__ import annotations

import os
from pathlib import Path

from carafe_deploy.errors import BackendUnavailableError

__all__ = ["ENVIRONMENT_VARIABLE", "PACKAGE_FOLDER", "find_library", "missing", "require_library"]

#: Names a folder with libraries, or one of the libraries in it; searched before the package's own.
ENVIRONMENT_VARIABLE = "CARAFE_DEPLOY_PLUGIN"

#: Where wheels and ``make plugins`` put libraries.
PACKAGE_FOLDER = Path(__file__).parent / "lib"


def find_library(name: str) -> Path | None:
    """Look for ``lib<name>.so`` where ``CARAFE_DEPLOY_PLUGIN`` points, then in the package.

    Args:
        name: e.g. ``"carafe_kernels"``, ``"carafe_tensorrt"``, ``"carafe_tensorrt_register"``.

    Returns:
        Absolute path of the first one found, or None.

    Raises:
        BackendUnavailableError: ``CARAFE_DEPLOY_PLUGIN`` names nothing that exists.
    """
    candidates = (folder / f"lib{name}.so" for folder in _folders())
    return next((path.resolve() for path in candidates if path.is_file()), None)


def require_library(name: str) -> Path:
    """:func:`find_library`, where going on without the library makes no sense.

    Raises:
        BackendUnavailableError: it is nowhere; the message says where it was sought and what to do.
    """
    path = find_library(name)
    if path is None:
        raise BackendUnavailableError(f"lib{name}.so is needed: {missing(name)}")
    return path


def missing(name: str) -> str:
    """Where ``lib<name>.so`` was sought in vain, and what to do about it."""
    sought = " or ".join(str(folder) for folder in _folders())
    return (
        f"there is no lib{name}.so in {sought}. Install a wheel of carafe-deploy that carries it, "
        f"build it with `make plugins`, or set {ENVIRONMENT_VARIABLE} to the folder that holds it"
    )


def _folders() -> tuple[Path, ...]:
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    if not given:
        return (PACKAGE_FOLDER,)
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise BackendUnavailableError(
            f"{ENVIRONMENT_VARIABLE} is {given!r}, which does not exist: set it to a folder with "
            "carafe_deploy's libraries or to one of them, or unset it"
        )
    return (path if path.is_dir() else path.parent, PACKAGE_FOLDER)
