"""What a figure was measured on: machine, versions, commit, and what else was running."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from carafe_deploy.environment import describe_environment

__all__ = ["describe_run", "load_facts"]

#: Seconds that the machine is looked at before measuring.
LOOK = 1.0


def describe_run() -> Mapping[str, str]:
    """:func:`~carafe_deploy.environment.describe_environment`, the commit and the date.

    Folders are left out: results are published.
    """
    facts = {
        name: re.sub(r"(?<!\S)/\S*/", "", value) for name, value in describe_environment().items()
    }
    threads = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.endswith("_NUM_THREADS")]
    if threads:
        facts["threads"] = ", ".join(threads)
    facts["commit"] = _commit()
    facts["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    return facts


def load_facts() -> Mapping[str, float]:
    """``busy``: cores at work now, looked at for a second in which this process sleeps; ``cores``.

    The load average would count what this process did a minute ago.
    """
    cores = float(os.cpu_count() or 1)
    total, idle = _ticks()
    time.sleep(LOOK)
    later, still_idle = _ticks()
    share = 1 - (still_idle - idle) / (later - total) if later > total else 0.0
    return {"busy": cores * share, "cores": cores}


def _ticks() -> tuple[int, int]:
    """Of all cores since the system started: in all, and idle or waiting for a disk."""
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system, idle, iowait, *others = map(int, line.split()[1:9])
    return user + nice + system + idle + iowait + sum(others), idle + iowait


def _commit() -> str:
    """Of the checkout that this package runs from."""
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "none (not run from a checkout)"
    changed = " with uncommitted changes" if _git(folder, "status", "--porcelain") else ""
    return f"{_git(folder, 'rev-parse', 'HEAD')}{changed}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
