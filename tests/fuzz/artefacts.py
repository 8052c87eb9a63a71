"""Spoilt artefacts of every kind, read by the commands: exit 0, 1 or 2, never a traceback."""

from __future__ import annotations

from tests.fuzz._program import attacked, module
from tests.fuzz.outcome import Outcome


def attack(seconds: float, seed: int) -> Outcome:
    """Each seed is one artefact and one command; outcomes are its exit statuses."""
    # A fork has no threads of its parent's.
    return attacked(module("_commands"), seconds, seed, {"OMP_NUM_THREADS": "1"})
