"""CARAFE and RoIAlign on the CPU with every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Value of CARAFE_CPU_ISA -> what /proc/cpuinfo calls that it needs.
NEEDS = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"},
}

CHECK = """
from carafe_deploy.ops._library import Device
from tests.plugins import problems
from tests.plugins.emulated import EmulatedLibrary, library_path
from tests.plugins.varied import Twins, varied_roi_align

library = EmulatedLibrary(library_path())
found = [
    *problems.carafe_problems(tuple(problems.DTYPES)),
    *(problems.random_carafe(seed, tuple(problems.DTYPES)) for seed in range(1000, 1500)),
]
for problem in found:
    problem.check(library, Device.CPU)
# Of RoIAlign all instruction sets make the same bits.
twins = [Twins(varied_roi_align(seed)) for seed in range(1000, 1200)]
for pair in twins:
    pair.check(library)
print(len(found) + len(twins))
"""


def _available() -> list[str]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [name for name, needed in NEEDS.items() if needed <= set(flags)]


@pytest.mark.parametrize("isa", _available())
def test_every_instruction_set(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=ROOT,
        env={**os.environ, "CARAFE_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 800
