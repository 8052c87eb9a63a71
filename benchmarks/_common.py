"""What every benchmark here shares: arguments, the machine, timing, and writing results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carafe_deploy.bench.provenance import sources
from carafe_deploy.environment import cores, processor
from carafe_deploy.files import atomic_write_text
from carafe_deploy.requirements import installed_version

RESULTS = Path(__file__).parent / "results"
#: Calls before those that are timed.
_WARMUP = 3

_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Whose help is a script's docstring, line by line."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def environment() -> dict[str, Any]:
    """The machine and its load, Python, package versions, commit (None if not known) and date."""
    commit, is_clean = sources()
    return {
        "cpu": processor(),
        "cores": cores(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := installed_version(name))},
        "commit": commit,
        "uncommitted_changes": None if is_clean is None else not is_clean,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def time_ms(function: Callable[[], object], *, repeats: int) -> dict[str, float]:
    """Milliseconds of a call over ``repeats``: wall clock, and CPU time of all its threads.

    CPU time well below the wall clock says that others had the machine.
    """
    for _ in range(_WARMUP):
        function()
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        function()
        cpu.append((time.process_time() - cpu_start) * 1e3)
        wall.append((time.perf_counter() - wall_start) * 1e3)
    return {
        "median_ms": round(statistics.median(wall), 3),
        "fastest_ms": round(min(wall), 3),
        "slowest_ms": round(max(wall), 3),
        "median_cpu_ms": round(statistics.median(cpu), 3),
    }


def in_process(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """What a script prints as JSON with ``--measure``, in a process of its own."""
    command = [sys.executable, script, "--measure", *arguments]
    return json.loads(subprocess.check_output(command, env=environment))


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write ``result`` together with :func:`environment` as JSON, atomically."""
    content = {"environment": environment(), **result}
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")
