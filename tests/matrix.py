"""Runs the fast tests under every supported Python that this machine has, each in its own .venv.

    python tests/matrix.py [--output FILE] [PYTHON...]

PYTHON are interpreters to test; by default python3.11 and so on are looked for on PATH and among
pyenv's. Environments are kept in build/matrix/ and set up anew when the requirements change. Prints
a table and writes it as JSON. Exit status: 0 if all passed, 1 if a test failed or an environment
could not be set up, 2 if there is no such Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/matrix"
PACKAGES = ("torch", "onnxruntime", "onnx", "numpy")
COUNTS = ("passed", "failed", "skipped")

#: Asked of an interpreter: its version and that of packages, empty where not installed.
VERSIONS = """
import importlib.metadata as metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""


def supported() -> list[str]:
    """``["3.11", ...]``, as pyproject.toml classifies the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.search(r"Python :: (3\.\d+)$", line) for line in project["classifiers"])
    return [match.group(1) for match in found if match]


def interpreter(version: str) -> str | None:
    """Of a Python, on PATH or among pyenv's (the newest of its patch releases)."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    installed = sorted(
        pyenv.glob(f"{version}.*/bin/python3"),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.parts[-3])],
    )
    if installed:
        return str(installed[-1])
    found = shutil.which(f"python{version}")
    # pyenv has a shim for each of its versions, which fails unless that one is chosen.
    works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False)
    return found if works and works.returncode == 0 else None


def versions(python: str | Path, *packages: str) -> dict[str, str]:
    command = [str(python), "-c", VERSIONS, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def environment(python: str, log: Any) -> Path:
    """The interpreter of an environment with this checkout and all that its tests need."""
    short = ".".join(versions(python)["python"].split(".")[:2])
    folder = FOLDER / short
    inside, stamp = folder / "bin/python", folder / ".installed"
    wanted = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt")
    )
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return inside
    stamp.unlink(missing_ok=True)
    install = ["pip", "install", "--disable-pip-version-check", "-c", "constraints.txt"]
    install += [*shlex.split(os.environ.get("PIP_ARGS", "")), "-e", ".[all,dev]"]
    commands = [python, "-m", "venv", folder], [inside, "-m", *install]
    for command in commands:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return inside


def counts(report: Path) -> dict[str, int]:
    """Of a JUnit report; a test that could not be set up has failed."""
    suites = list(xml.parse(report).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    failed += errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def measure(python: str, arguments: list[str]) -> dict[str, Any]:
    """One row of the table."""
    short = ".".join(versions(python)["python"].split(".")[:2])
    log_path, report = FOLDER / f"{short}.log", FOLDER / f"{short}.xml"
    report.unlink(missing_ok=True)
    row: dict[str, Any] = {"log": str(log_path.relative_to(ROOT))}
    with log_path.open("w", encoding="utf-8") as log:
        try:
            inside = environment(python, log)
        except subprocess.CalledProcessError as error:
            failed = f"{shlex.join(map(str, error.cmd))}: status {error.returncode}"
            return {**versions(python), **row, "error": failed}
        row |= versions(inside, *PACKAGES)
        command = [inside, "-m", "pytest", "-m", "not slow and not gpu", f"--junitxml={report}"]
        begun = time.monotonic()
        done = subprocess.run([*command, *arguments], cwd=ROOT, stdout=log, stderr=log, check=False)
        row["seconds"] = round(time.monotonic() - begun)
    if not report.is_file():
        return {**row, "error": f"pytest: status {done.returncode}"}
    return {**row, **counts(report)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a Python."""
    names = ("python", *PACKAGES, *COUNTS, "seconds")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(str(row.get(name, "–")) for name in names) + " |")
        if "error" in row:
            lines.append(f"\n{row['python']}: {row['error']}, see {row['log']}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the fast tests under several Pythons.")
    parser.add_argument("pythons", nargs="*", help="interpreters; default: every supported one")
    parser.add_argument("--output", type=Path, default=FOLDER / "matrix.json")
    parser.add_argument("--pytest", default="", help="further arguments of pytest, in one string")
    chosen = parser.parse_args()
    pythons = chosen.pythons or [path for name in supported() if (path := interpreter(name))]
    if not pythons:
        print(f"none of Python {', '.join(supported())} is here", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for python in pythons:
        print(f"testing {python} ...", file=sys.stderr, flush=True)
        rows.append(measure(python, shlex.split(chosen.pytest)))
        chosen.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    return int(any("error" in row or row["failed"] or not row["passed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
