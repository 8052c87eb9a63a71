"""The C interface of the kernels, as built and, where there is such a build, under sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from carafe_deploy.libraries import require_library
from tests.fuzz._program import attacked, merged
from tests.fuzz.outcome import ROOT, Outcome

HERE = Path(__file__).resolve().parent
#: Made by `make test-sanitized`.
SANITIZED = ROOT / "build/sanitized/lib/libcarafe_kernels.so"


def attack(seconds: float, seed: int) -> Outcome:
    """Half of the time each."""
    program = [sys.executable, HERE / "_calls.py"]
    plain = [*program, require_library("carafe_kernels")]
    if not SANITIZED.is_file():
        return attacked(plain, seconds, seed)
    environment = {
        "LD_PRELOAD": _sanitizer(),
        # Python itself leaks; more memory than there is shall be an exception.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    sanitized = attacked([*program, SANITIZED], seconds / 2, seed, environment)
    told = {f"{name} (sanitized)": count for name, count in sanitized.outcomes.items()}
    sanitized = Outcome(sanitized.count, told, sanitized.failures)
    return merged(sanitized, attacked(plain, seconds / 2, seed))


def _sanitizer() -> str:
    """AddressSanitizer's runtime must come before everything else."""
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()
