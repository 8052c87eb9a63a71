"""Attack what reads the outside world, for a bounded time: ``run.py [ATTACK...] --seconds N``.

Each module beside this one is an attack: it has a function ``attack(seconds, seed)`` that returns
an :class:`~tests.fuzz.outcome.Outcome`. Modules that begin with an underscore are their tools.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # its package is found from the root
    sys.path[0] = str(HERE.parents[1])

from tests.fuzz.outcome import Outcome  # noqa: E402

#: All of them, by name.
ATTACKS = tuple(
    sorted(
        path.stem
        for path in HERE.glob("[a-z]*.py")
        if path.stem not in ("run", "outcome", "soak") and not path.stem.startswith("test_")
    )
)


def attack(name: str, seconds: float, seed: int) -> Outcome:
    """Run one of :data:`ATTACKS`."""
    outcome: Outcome = importlib.import_module(f"tests.fuzz.{name}").attack(seconds, seed)
    return outcome


def main() -> int:
    """Run the attacks one after the other; 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each attack")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each")
    given = parser.parse_args()
    unknown = sorted(set(given.attacks) - set(ATTACKS))
    if unknown:
        parser.error(f"no attack is called {', '.join(unknown)}: choose from {', '.join(ATTACKS)}")
    failures: list[str] = []
    print(f"{'attack':<14} {'cases':>8} {'seconds':>8}  outcomes")
    for name in given.attacks or ATTACKS:
        begun = time.monotonic()
        outcome = attack(name, given.seconds, given.seed)
        told = [f"{count} {text}" for text, count in sorted(outcome.outcomes.items())]
        told += [f"{len(outcome.failures)} FAILED"] * bool(outcome.failures)
        taken = time.monotonic() - begun
        print(f"{name:<14} {outcome.count:>8} {taken:>8.0f}  {', '.join(told)}", flush=True)
        failures += [f"{name} {failure}" for failure in outcome.failures]
    for failure in failures:
        print(f"\ntests/fuzz/run.py {failure}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
