"""What every benchmark here shares: the machine's description, timing, and writing results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from carafe_deploy.files import atomic_write_text

RESULTS = Path(__file__).parent / "results"

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


def environment() -> dict[str, Any]:
    """CPU, cores, Python, package versions, commit and date; ``commit`` is None outside git."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def time_ms(function: Callable[[], object], *, repeats: int, warmup: int = 3) -> dict[str, float]:
    """Wall-clock milliseconds of a call: median, fastest and slowest of ``repeats``."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return {
        "median_ms": round(statistics.median(times), 4),
        "fastest_ms": round(min(times), 4),
        "slowest_ms": round(max(times), 4),
    }


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write ``result`` together with :func:`environment` as JSON, atomically."""
    content = {"environment": environment(), **result}
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")
