"""Runs the tests of ONNX files and of our kernels under older releases of ONNX Runtime.

    python tests/onnxruntime_versions.py [VERSION...]

Each release is installed for itself into build/onnxruntime/ (PIP_ARGS is passed on) and stands
before the environment's own. Prints a table and writes it as JSON beside them. Exit status: 0 if
all passed, 1 if a test failed or a release could not be installed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from matrix import counts

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/onnxruntime"
#: Releases that behave differently: the oldest supported one, before and after bodies of one
#: operator are told apart (1.27), and before and after empty batches crash no more.
VERSIONS = ("1.20.1", "1.23.2", "1.26.0", "1.28.0", "1.30.0")
#: What they are to run.
TESTS = (
    "tests/plugins/test_onnxruntime_library.py",
    "tests/runners/test_onnxruntime.py",
    "tests/runners/test_conformance.py",
    "tests/runners/test_runners.py",
    "tests/ops/test_operators.py",
    "tests/graph/test_operator_network.py",
)
#: Of these, what runs in ONNX Runtime; opset 22 is newer than some of the releases.
CHOSEN = "(onnx or function_body or network) and not float32-22"


def install(version: str) -> Path:
    """A folder that, first on the path, is this release.

    Raises:
        CalledProcessError: pip could not.
    """
    folder = FOLDER / version
    if not (folder / "onnxruntime").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        pip += shlex.split(os.environ.get("PIP_ARGS", ""))
        subprocess.run([*pip, f"onnxruntime=={version}"], check=True)
    return folder


def measure(version: str) -> dict[str, Any]:
    """One row of the table."""
    report, log = FOLDER / f"{version}.xml", FOLDER / f"{version}.log"
    try:
        path = os.pathsep.join([str(install(version)), os.environ.get("PYTHONPATH", "")])
    except subprocess.CalledProcessError as error:
        return {"onnxruntime": version, "error": f"pip: status {error.returncode}"}
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not gpu", "-k", CHOSEN]
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [*command, *TESTS, f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    row: dict[str, Any] = {"onnxruntime": version, "status": done.returncode}
    if not report.is_file():
        return {**row, "error": f"pytest: status {done.returncode}, see {log}"}
    return {**row, **counts(report)}


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for version in sys.argv[1:] or VERSIONS:
        rows.append(measure(version))
        print(json.dumps(rows[-1]), flush=True)
    (FOLDER / "versions.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in row or row["status"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
