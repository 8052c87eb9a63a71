"""The CUDA source of RoIAlign and NMS, on the emulator, gives the CPU twins' results to the bit.

Threads run forward, backward or at random, by the seed.
"""

from __future__ import annotations

import collections

import pytest

from carafe_deploy.kernels import Device
from tests.plugins.emulated import BACKWARD, FORWARD, EmulatedLibrary, Order, at_random
from tests.plugins.varied import (
    Twins,
    neighbours_nms,
    nms_paths,
    roi_align_paths,
    varied_nms,
    varied_roi_align,
)

SEEDS = range(500)


def order_of(seed: int) -> Order:
    return (FORWARD, BACKWARD, at_random(seed))[seed % 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_roi_align(library: EmulatedLibrary, seed: int) -> None:
    library.set_order(order_of(seed))
    Twins(varied_roi_align(seed)).check(library)


@pytest.mark.parametrize("seed", SEEDS)
def test_nms(library: EmulatedLibrary, seed: int) -> None:
    library.set_order(order_of(seed))
    Twins(varied_nms(seed)).check(library)


def test_nms_of_neighbouring_labels(library: EmulatedLibrary) -> None:
    problem = neighbours_nms()
    assert problem.expected[1].tolist() == [[66, 131]]
    problem.check(library)


def test_roi_align_takes_every_path() -> None:
    counts = collections.Counter(
        path for seed in SEEDS for path in roi_align_paths(varied_roi_align(seed))
    )
    expected = {"shared", "walked", "degenerate", "packs", "single channels"} | {
        f"{layout} {dtype}"
        for layout in ("nchw", "nhwc")
        for dtype in ("float32", "float16", "bfloat16")
    }
    assert {path for path, count in counts.items() if count >= 20} == expected


def test_nms_takes_every_path(library: EmulatedLibrary) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for seed in SEEDS:
        problem = varied_nms(seed)
        counts.update(nms_paths(problem, *problem.run(library, Device.CPU)))
    assert counts["two merges"] == counts["keeps of window 4"] == 1
    assert counts["keeps of window 2"] >= 8
    assert counts["keeps of window 3"] >= 2
    rest = {path: count for path, count in counts.items() if "window" not in path}
    del rest["two merges"]
    assert set(rest) == {
        "short",
        "runs",
        "spread",
        "several tiles a block",
        "more labels than lanes",
        "empty label",
        "ragged run",
        "several tiles",
        "full",
        "padded",
        "NaN score",
        "NaN box",
        "ties",
    }
    assert min(rest.values()) >= 10, counts
