"""CARAFE and RoIAlign on the CPU with every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from cpu_isa import available  # noqa: E402

CHECK = """
from carafe_deploy.kernels import Device
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


@pytest.mark.parametrize("isa", [name for name in available() if name != "chosen"])
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
