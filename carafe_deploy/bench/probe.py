"""Open an artefact and run it once, in a process of its own: load time, first run, memory.

Used as ``python -m carafe_deploy.bench.probe OPENING WIDTHxHEIGHT PARENT``; prints one JSON object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from carafe_deploy.backends import BACKENDS, load
from carafe_deploy.bench.record import Cold
from carafe_deploy.bench.subjects import Opening
from carafe_deploy.failures import LOGGER, caught
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.termination import end_with_parent

__all__ = ["gpu_memory", "probe"]

#: Seconds after which a process is given up.
LIMIT = 900


def probe(opening: Opening, height: int, width: int) -> Cold:
    """Figures of a fresh process; a reason in place of them where it fails.

    Args:
        opening: of the subject.
        height: of the image it detects in, in pixels.
        width: likewise.
    """
    size, parent = f"{width}x{height}", str(os.getpid())
    command = [sys.executable, "-m", __name__, opening.to_json(), size, parent]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return Cold(reason=f"took longer than {LIMIT} s")
    for line in reversed(done.stdout.splitlines() if done.returncode == 0 else ()):
        with contextlib.suppress(ValueError, TypeError):  # libraries may print, too
            return Cold(**json.loads(line))
    logging.getLogger(LOGGER).debug("%s", done.stderr.rstrip())
    lines = done.stderr.strip().splitlines()
    return Cold(reason=": ".join([_ended(done.returncode), *lines[-1:]]))


def _ended(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"the process died of {signal.Signals(-status).name}"
    return f"the process died of signal {-status}"


def _measure(opening: Opening, height: int, width: int) -> Cold:
    load(BACKENDS[opening.kind].open)  # imports what opening would; loading is timed without that
    imported = _peak_memory()
    taken_before = gpu_memory(opening.device)
    begun = time.perf_counter()
    with opening.open() as runner:
        loaded = time.perf_counter()
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        inputs = Pipeline(runner).inputs([image])
        prepared = time.perf_counter()
        runner.run(inputs)
        finished = time.perf_counter()
        taken = gpu_memory(opening.device)
    device_memory = None
    if taken is not None and taken_before is not None:
        device_memory = taken - taken_before
    return Cold(
        load_s=loaded - begun,
        first_s=finished - prepared,
        peak_memory_mb=_peak_memory(),
        import_memory_mb=imported,
        device_memory_mb=device_memory,
    )


def _peak_memory() -> float:
    """Most resident memory of this process so far, in 10^6 bytes.

    ``getrusage`` would count that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def gpu_memory(device: str) -> float | None:
    """Memory taken on the GPU by all processes, in 10^6 bytes; None where nothing tells."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.check_output([*query, "-i", index or "0"], text=True, timeout=30)
        return float(text.strip()) * 2**20 / 1e6
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _main() -> None:
    end_with_parent(int(sys.argv[3]))
    width, _, height = sys.argv[2].partition("x")
    with caught() as attempt:
        found = _measure(Opening.from_json(sys.argv[1]), int(height), int(width))
    if attempt.failure:
        sys.stderr.write(attempt.failure.traceback)
        found = Cold(reason=attempt.failure.reason)
    sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")


if __name__ == "__main__":
    _main()
