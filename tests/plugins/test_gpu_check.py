"""benchmarks/gpu_check.py: what it makes of the measured designs. Running it needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.plugins.built import ROOT, built

sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_check import DESIGNS, fastest_designs, steps


def entry(design: str, microseconds: float, **facts: Any) -> dict[str, Any]:
    return {
        "design": design,
        "chosen": False,
        "dtype": "float32",
        "layout": "NHWC",
        "shape": "1x256x13x21",
        "agrees": True,
        "cold_median_us": microseconds,
        "share_of_copy": 0.5,
        **facts,
    }


def test_designs_are_ranked_a_call() -> None:
    calls = [
        entry("any", 30.0, agrees=False),
        entry("strips_2x8", 4.0, chosen=True),
        entry("strips_4x4", 3.5),
        entry("any", 9.0, layout="NCHW"),
    ]
    assert fastest_designs({"copy_gb_per_s": 2900.4, "calls": calls}) == [
        "a copy moves 2900 GB/s",
        "float32 NHWC 1x256x13x21: strips_4x4 3.5 us (50%), strips_2x8* 4.0 us (50%),"
        " any 30.0 us (50%) WRONG",
        "float32 NCHW 1x256x13x21: any 9.0 us (50%)",
    ]


def test_program_on_the_emulator_writes_what_is_ranked(tmp_path: Any) -> None:
    program = built("libcarafe_kernels_emulated.so").parents[1] / "plugins/tests/emulated_designs"
    output = tmp_path / "designs.json"
    subprocess.run([program, "--small", "--output", output], check=True, timeout=120)
    measured = json.loads(output.read_text())
    assert all(call["agrees"] for call in measured["calls"])
    lines = fastest_designs(measured)
    assert len(lines) == 1 + 3 * 2 * 2  # types, layouts, shapes
    assert all(line.count("*") == 1 for line in lines[1:])
    designs = {call["design"] for call in measured["calls"]}
    assert designs == {
        *("any", "planes", "row_pairs", "channels_last", "strips_4x4", "strips_2x8"),
    }


@pytest.mark.parametrize("arguments", [["--wrong"], ["--output"]])
def test_program_refuses_other_arguments(arguments: list[str]) -> None:
    program = built("libcarafe_kernels_emulated.so").parents[1] / "plugins/tests/emulated_designs"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_designs_are_a_step(tmp_path: Any) -> None:
    command = steps(tmp_path, [])[DESIGNS]
    assert command[0].endswith("bin/carafe_designs")
    assert command[1:] == ["--output", str(tmp_path / "designs.json")]
