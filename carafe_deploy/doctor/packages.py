"""Python packages: what can be wrong with an installed one."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from carafe_deploy.doctor.findings import Finding, missing, ok, wrong
from carafe_deploy.requirements import Package, installed_version, is_installed

__all__ = ["check_package", "check_python", "installed", "numbers"]

#: Python versions that this package is for.
_PYTHON = ((3, 11), (3, 13))


def installed(package: Package) -> dict[str, str]:
    """Versions of the distributions that are installed."""
    found = {name: installed_version(name) for name in package.distributions}
    return {name: version for name, version in found.items() if version is not None}


def numbers(version: str) -> tuple[int, ...]:
    """``"2.14.1+cu130"`` -> (2, 14, 1), to compare by."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def check_package(
    package: Package, answer: Mapping[str, Any] | None = None, note: str = ""
) -> Finding:
    """Judge one package.

    Args:
        package: to judge.
        answer: ``version`` or ``error`` of importing it, where it was imported.
        note: follows the version.
    """
    name, there, answer = package.title, installed(package), answer or {}
    reinstall = f"pip uninstall -y {' '.join(there)} && {package.install}"
    versions = " and ".join(f"{known} {version}" for known, version in there.items())
    if not is_installed(package.module):
        if there:
            fact = f"{versions} is installed, but its module {package.module} is not there"
            return wrong(name, fact, reinstall)
        return missing(name, "not installed", package.install)
    if package.exclusive and len(there) > 1:
        return wrong(name, f"{versions} are installed over each other", reinstall)
    version = answer.get("version") or next(iter(there.values()), None)
    if version is not None and numbers(version) < numbers(package.oldest):
        requirement = f"{next(iter(there), package.distributions[0])}>={package.oldest}"
        fact = f"{version} is too old, {package.oldest} or newer is needed"
        return wrong(name, fact, f"pip install --upgrade {shlex.quote(requirement)}")
    if "error" in answer:
        fact = f"{version or 'it'} cannot be loaded ({answer['error']})"
        return wrong(name, fact, reinstall if there else package.install)
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
