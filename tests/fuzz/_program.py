"""Attacks that run in a program of their own, since what they attack may end it by a signal.

The program takes seconds and a first seed, once at least, and tells on its standard output what it
does: ``case SEED`` before each case, then ``outcome COUNT NAME`` or ``broken TEXT``.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tests.fuzz.outcome import MOST_FAILURES, ROOT, Broken, Outcome

#: Seconds beyond those given after which a program hangs.
PATIENCE = 120.0


def attacked(
    command: Sequence[str | os.PathLike[str]],
    seconds: float,
    seed: int,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run the program until the time is over, again behind each case that ended it."""
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    first = seed
    while True:
        left = max(end - time.monotonic(), 0.0)
        status, told, errors = _run([*map(str, command), f"{left:.3f}", str(first)], environment)
        last = None
        for line in told:
            kind, _, text = line.partition(" ")
            if kind == "case":
                last = int(text)
            elif kind == "outcome":
                count, _, name = text.partition(" ")
                outcomes[name] += int(count)
            elif kind == "broken":
                failures.append(f"--seed {last} --seconds 0: {text}")
        if last is None:
            raise RuntimeError(f"{command[0]} ended with {status} before its first case: {errors}")
        if status != 0:
            failures.append(f"--seed {last} --seconds 0: ended with {status}: {errors}")
        first = last + 1
        if status == 0 or time.monotonic() >= end or len(failures) >= MOST_FAILURES:
            return Outcome(outcomes.total() + len(failures), outcomes, failures)


def merged(*outcomes: Outcome) -> Outcome:
    """Several as one."""
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome.outcomes)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    return Outcome(sum(outcome.count for outcome in outcomes), total, failures)


def _run(
    command: Sequence[str], environment: Mapping[str, str] | None
) -> tuple[int | str, list[str], str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        program = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=out,
            stderr=errors,
        )
        status: int | str
        try:
            status = program.wait(float(command[-2]) + PATIENCE)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            status = f"no end after {PATIENCE:g} s more than it was given"
        if isinstance(status, int) and status < 0:
            status = signal.Signals(-status).name
        out.seek(0)
        errors.seek(0)
        return status, out.read().splitlines(), errors.read()[-2000:]


def serve(case: Callable[[int], str]) -> None:
    """The other side: call ``case`` with one seed after the other for as long as argv says.

    It returns the name of its outcome, or raises :class:`~tests.fuzz.outcome.Broken`.
    """
    end = time.monotonic() + float(sys.argv[-2])
    for seed in itertools.count(int(sys.argv[-1])):
        print("case", seed, flush=True)
        try:
            print("outcome 1", case(seed))
        except Broken as broken:
            print("broken", " ".join(str(broken).split()))
        if time.monotonic() >= end:
            return


def module(name: str) -> list[str]:
    """Command that runs a module of this package."""
    return [sys.executable, "-m", f"tests.fuzz.{name}"]
