"""CARAFE's choice of a design is what an H100 measured, and _design_choice.py, which compares."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from carafe_deploy.kernels import Layout
from tests.plugins.built import ROOT
from tests.plugins.emulated import EmulatedLibrary
from tests.plugins.problems import ChoiceProblem, Place

sys.path.insert(0, str(ROOT / "benchmarks"))

from _design_choice import choices, disagreements

RESULT = ROOT / "benchmarks/results/h100/designs.json"
#: The library of this result took the designs that counting had ranked first.
MEASURED = json.loads(RESULT.read_text())


def chosen_today(library: EmulatedLibrary, entry: dict[str, Any]) -> str:
    batch, channels, height, width = map(int, entry["shape"].split("x"))
    layout, dtype = Layout[entry["layout"]], getattr(torch, entry["dtype"])
    # As plugins/harness/designs.cpp lays out: half types in packs of eight channels.
    pack = 8 if layout == Layout.NHWC and dtype != torch.float32 else 1
    padding = (-channels % pack, -100 % pack, -channels % pack)
    shape = {"batch": batch, "height": height, "width": width}
    problem = ChoiceProblem(Place(layout, padding), channels, 1, "", dtype=dtype, **shape)
    return problem.chosen(library)


def test_choice_is_the_fastest_measured_design(library: EmulatedLibrary) -> None:
    today = copy.deepcopy(MEASURED)
    for entry in today["calls"]:
        entry["chosen"] = entry["design"] == chosen_today(library, entry)
    found = choices(today)
    assert len(found) == 3 * 2 * 5  # types, layouts, maps
    assert [str(choice) for choice in found if not choice.agrees] == []
    assert disagreements(today) == (
        "CARAFE's choice is the fastest measured design in 30 of 30 calls"
    )


def test_disagreements_of_the_library_that_was_measured() -> None:
    heading, *lines = disagreements(MEASURED).splitlines()
    assert heading == "CARAFE's choice is the fastest measured design in 18 of 30 calls"
    assert lines[0] == (
        "  float16 NHWC 100x1x14x14: takes channels_last, 33.7 us, 47 % more than strips_4x4,"
        " 22.9 us"
    )
    assert (
        "  float32 NCHW 1x256x104x168: takes row_pairs, 145.5 us, 28 % more than planes, 114.0 us"
        in lines
    )
    assert len(lines) == 12


def entry(design: str, microseconds: float, **facts: Any) -> dict[str, Any]:
    return {
        "design": design,
        "chosen": False,
        "dtype": "float32",
        "layout": "NCHW",
        "shape": "1x8x3x4",
        "agrees": True,
        "cold_median_us": microseconds,
        **facts,
    }


def test_a_wrong_result_is_not_the_fastest() -> None:
    calls = [entry("a", 9.0, chosen=True), entry("b", 1.0, agrees=False), entry("c", 10.0)]
    (choice,) = choices({"calls": calls})
    assert choice.agrees


@pytest.mark.parametrize("calls", [[entry("a", 9.0)], [entry("a", 9.0, chosen=True, agrees=False)]])
def test_what_cannot_be_compared_is_refused(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"float32 NCHW 1x8x3x4: \d designs are marked as chosen"):
        disagreements({"calls": calls})


def test_command() -> None:
    program = [sys.executable, str(ROOT / "benchmarks/_design_choice.py")]
    done = subprocess.run([*program, RESULT], capture_output=True, text=True, check=True)
    assert done.stdout == disagreements(MEASURED) + "\n"
    assert subprocess.run(program, capture_output=True, check=False).returncode == 1
