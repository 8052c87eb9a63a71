"""The plugin creators with random fields, by a program of the C++ tests; best under sanitizers."""

from __future__ import annotations

from tests.fuzz._program import attacked
from tests.fuzz.outcome import ROOT, Outcome

#: Of `make test-sanitized` and `make test-cpp`.
BUILDS = tuple(ROOT / "build" / name for name in ("sanitized", "dev"))


def attack(seconds: float, seed: int) -> Outcome:
    """Each seed is a thousand lists of fields."""
    programs = [build / "plugins/tests/fuzz_creators" for build in BUILDS]
    found = [program for program in programs if program.is_file()]
    if not found:
        raise FileNotFoundError(f"no {programs[0]} or {programs[1]}: make test-sanitized")
    return attacked([found[0]], seconds, seed)
