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

__all__ = ["COMMIT_VARIABLE", "describe_run", "load_facts", "sources"]

#: Names the commit of sources that are no git checkout, in the words of
#: `git describe --always --abbrev=40 --dirty`.
COMMIT_VARIABLE = "CARAFE_DEPLOY_COMMIT"
_DIRTY = "-dirty"

# Results that were just written are no change of what is measured.
_SOURCES = (
    ":/",
    ":(top,exclude)benchmarks/results",
    ":(top,exclude)plugins/tests/results",
)
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


def sources() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether its tree is clean.

    Where there is no checkout, as :data:`COMMIT_VARIABLE` says; else None and None.
    """
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        changes = _git(folder, "status", "--porcelain", "--", *_SOURCES)
        return _git(folder, "rev-parse", "HEAD"), not changes
    given = os.environ.get(COMMIT_VARIABLE, "")
    return (given.removesuffix(_DIRTY), not given.endswith(_DIRTY)) if given else (None, None)


def _commit() -> str:
    commit, is_clean = sources()
    if commit is None:
        return "none (not run from a checkout)"
    return commit if is_clean else f"{commit} with uncommitted changes"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
