"""What a figure was measured on: machine, versions, commit, and what else was running."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from carafe_deploy.environment import describe_environment

__all__ = ["describe_run", "load_facts"]


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
    facts["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return facts


def load_facts() -> Mapping[str, float]:
    """``load``: processes running in the last minute, on average; ``cores``: that may be used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"load": os.getloadavg()[0], "cores": float(cores or 1)}


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
