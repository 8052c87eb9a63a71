"""mmdetection configs: the parser of their text, and what makes a detector of them."""

from __future__ import annotations

from tests.fuzz._program import attacked, module
from tests.fuzz.outcome import Outcome


def attack(seconds: float, seed: int) -> Outcome:
    """Each seed is one config, read or refused."""
    return attacked(module("_configs"), seconds, seed)
