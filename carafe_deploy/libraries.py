"""Find the shared libraries that travel with the package or were built from its sources."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from carafe_deploy.errors import BackendUnavailableError

#: Names a folder with libraries, or one of the libraries in it; searched before the package's own.
ENVIRONMENT_VARIABLE = "CARAFE_DEPLOY_PLUGIN"

#: What all of them are called.
_PATTERN = "libcarafe_*.so"

#: Where wheels and ``make plugins`` put libraries.
PACKAGE_FOLDER = Path(__file__).parent / "lib"


def find_library(name: str) -> Path | None:
    """Absolute path of ``lib<name>.so`` where ``CARAFE_DEPLOY_PLUGIN`` points, or in the package.

    Raises:
        BackendUnavailableError: ``CARAFE_DEPLOY_PLUGIN`` names nothing that exists, a folder
            without libraries of carafe_deploy, or a file that is none.
    """
    candidates = (folder / f"lib{name}.so" for folder in _folders())
    return next((path.resolve() for path in candidates if path.is_file()), None)


def require_library(name: str) -> Path:
    """:func:`find_library`; raises BackendUnavailableError where it is nowhere, too."""
    path = find_library(name)
    if path is None:
        raise BackendUnavailableError(f"lib{name}.so is needed: {missing(name)}")
    return path


def check_whole(path: Path) -> None:
    """Refuse a shared library that is cut short: loading it would end the process (SIGBUS).

    Raises:
        BackendUnavailableError: the file ends before its section headers, which come last.
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
    except OSError:
        return  # loading it will say why
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return
    (offset,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    found = path.stat().st_size
    if found < offset + size * count:
        raise BackendUnavailableError(
            f"{path} is truncated, it has {found} of {offset + size * count} bytes: copy or "
            "install it again"
        )


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
    # The package's own libraries in their place would hide a mistake.
    if not (any(path.glob(_PATTERN)) if path.is_dir() else path.match(_PATTERN)):
        raise BackendUnavailableError(
            f"{ENVIRONMENT_VARIABLE} is {given!r}, "
            f"{'which holds no' if path.is_dir() else 'whose name is not'} {_PATTERN}: set it to a "
            "folder with carafe_deploy's libraries or to one of them, or unset it"
        )
    return (path if path.is_dir() else path.parent, PACKAGE_FOLDER)
