"""Run steps as processes: side by side where they say so, each within a limit, none for ever.

What a step printed goes to a log of its own. A step ends with all processes it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

#: Lines of a log that a result keeps.
TAIL = 30
#: Seconds below which a step is not begun.
LEAST = 5.0
#: Seconds between being asked to end and being made to.
GRACE = 3.0
#: Exit status of programs that find no GPU.
NO_GPU = 77
_REASON = 300
_POLL = 0.05

Facts = Mapping[str, Any]


class StepError(Exception):
    """A step has not done what it should.

    Args:
        reason: in words.
        facts: that it found all the same.
    """

    def __init__(self, reason: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.facts = facts or {}


class LackingError(StepError):
    """A step cannot do what it should on this machine."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: unique.
        command: what runs; its first word may be sought in PATH.
        limit: seconds after which it is given up.
        group: steps of one group that follow each other run side by side; empty for alone.
        lacking: why it cannot run here, if that is known before.
        read: finds facts in what it wrote; raises StepError if it should not have passed.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    group: str = ""
    lacking: str = ""
    read: Callable[[], Facts] | None = None


@dataclass
class Row:
    """What became of a step.

    Attributes:
        name: of the step.
        status: ``"passed"``, ``"failed"``, ``"lacking"`` where this machine has not what it takes,
            or ``"not run"`` for want of time.
        reason: unless it passed.
        seconds: it took.
        command: what ran.
        tail: the last lines that it printed.
        facts: see :class:`Step`.
    """

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    command: tuple[str, ...] = ()
    tail: list[str] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)


@dataclass
class _Running:
    step: Step
    process: subprocess.Popen[str]
    log: TextIO
    begun: float
    limit: float
    out_of: str


def run_steps(
    steps: Iterable[Step],
    logs: Path,
    deadline: float,
    environment: Mapping[str, str],
    folder: Path,
    tell: Callable[[Row], None],
) -> None:
    """Run all steps, group after group.

    Args:
        steps: in order.
        logs: folder for a log a step.
        deadline: of :func:`time.monotonic`; limits are cut to it.
        environment: of the processes.
        folder: that they run in.
        tell: gets a row as soon as it is known.

    Raises:
        KeyboardInterrupt: and whatever else ends this process; the steps at work are ended first,
            and told as failed.
    """
    numbered = enumerate(steps)
    for _, group in groupby(numbered, key=lambda pair: pair[1].group or pair[0]):
        running: list[_Running] = []
        try:
            for _, step in group:
                started = _start(step, logs, deadline, environment, folder)
                if isinstance(started, Row):
                    tell(started)
                else:
                    running.append(started)
            while running:
                for one in list(running):
                    row = _ended(one)
                    if row is not None:
                        running.remove(one)
                        tell(row)
                time.sleep(_POLL)
        finally:
            for one in running:  # all of them, before anything else can go wrong
                _end(one.process)
            for one in running:
                tell(_row(one, "failed", "interrupted"))


def _start(
    step: Step, logs: Path, deadline: float, environment: Mapping[str, str], folder: Path
) -> _Running | Row:
    if step.lacking:
        return Row(step.name, "lacking", step.lacking)
    left = deadline - time.monotonic()
    if left < LEAST:
        return Row(step.name, "not run", "the budget is spent: give more, or choose steps")
    if shutil.which(step.command[0], path=environment.get("PATH")) is None:
        return Row(step.name, "lacking", f"there is no {step.command[0]}")
    path = logs / f"{step.name.replace(' ', '-')}.log"
    log = path.open("w+", encoding="utf-8", errors="replace")
    try:
        process = subprocess.Popen(
            step.command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        return Row(step.name, "failed", str(error), command=step.command)
    limit, out_of = min((step.limit, "its limit"), (left, "what was left of the budget"))
    return _Running(step, process, log, time.monotonic(), limit, out_of)


def _ended(one: _Running) -> Row | None:
    """The row of a step that is done or whose time is over; None for one at work."""
    status = one.process.poll()
    if status is None:
        if time.monotonic() - one.begun < one.limit:
            return None
        return _row(one, "failed", f"took longer than {one.limit:.0f} s, {one.out_of}")
    if status == NO_GPU:
        return _row(one, "lacking", "it finds no GPU")
    return _row(one, "passed" if status == 0 else "failed", _how(status))


def _how(status: int) -> str:
    if status >= 0:
        return f"status {status}" if status else ""
    with contextlib.suppress(ValueError):
        return f"died of {signal.Signals(-status).name}"
    return f"died of signal {-status}"


def _row(one: _Running, status: str, reason: str) -> Row:
    _end(one.process)
    seconds = time.monotonic() - one.begun
    one.log.seek(0)
    lines = [line.rstrip() for line in one.log.read().splitlines() if line.strip()]
    one.log.close()
    row = Row(one.step.name, status, reason, round(seconds, 1), one.step.command, lines[-TAIL:])
    try:
        row.facts = one.step.read() if one.step.read is not None else {}
    except LackingError as error:
        row.status, row.reason = "lacking", str(error)
    except StepError as error:
        row.status, row.facts = "failed", error.facts
        row.reason = "; ".join(filter(None, (reason, str(error))))
    except Exception as error:  # whatever a step that broke has left
        if status == "passed":
            row.status = "failed"
            row.reason = f"its result cannot be read ({type(error).__name__}: {error})"
    if row.reason == _how(one.process.returncode) and row.tail and row.status == "failed":
        row.reason += f": {row.tail[-1]}"
    row.reason = row.reason[:_REASON]
    if row.status == "passed":
        row.tail = []  # the log has it
    return row


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the process and all that it started to end, then make them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if number is signal.SIGTERM:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    process.wait()
