"""The CUDA kernels' own source, run by the emulator, against references in float64.

Every case of the operators runs in three orders of threads, random problems in one each. Results
and shared memory start as NaN, and arrays lie in guard zones.
"""

from __future__ import annotations

from collections import Counter

import pytest

from carafe_deploy.kernels import MaskSource
from tests.plugins import problems
from tests.plugins.emulated import BACKWARD, FORWARD, ORDERS, EmulatedLibrary, Order, at_random
from tests.plugins.problems import Problem


def order_of(seed: int) -> Order:
    return (FORWARD, BACKWARD, at_random(seed))[seed % 3]


def check(library: EmulatedLibrary, problem: Problem, order: Order) -> None:
    library.set_order(order)
    problem.check(library)


each_order = pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)


@each_order
@pytest.mark.parametrize("problem", problems.carafe_problems(), ids=str)
def test_carafe(library: EmulatedLibrary, problem: Problem, order: Order) -> None:
    check(library, problem, order)


@each_order
@pytest.mark.parametrize("problem", problems.roi_align_problems(), ids=str)
def test_roi_align(library: EmulatedLibrary, problem: Problem, order: Order) -> None:
    check(library, problem, order)


@each_order
@pytest.mark.parametrize("problem", problems.nms_problems(), ids=str)
def test_nms(library: EmulatedLibrary, problem: Problem, order: Order) -> None:
    check(library, problem, order)


@each_order
@pytest.mark.parametrize("candidates", [4096, 4097])
def test_nms_beyond_shared_memory(library: EmulatedLibrary, candidates: int, order: Order) -> None:
    check(library, problems.long_nms(candidates), order)


@pytest.mark.parametrize("seed", range(400))
def test_random_carafe(library: EmulatedLibrary, seed: int) -> None:
    check(library, problems.random_carafe(seed), order_of(seed))


DESIGN_SEEDS = range(500)


@pytest.mark.parametrize("seed", DESIGN_SEEDS)
def test_carafe_designs(library: EmulatedLibrary, seed: int) -> None:
    check(library, problems.random_designs(seed), order_of(seed))


def test_carafe_designs_are_all_tried(library: EmulatedLibrary) -> None:
    tried: Counter[tuple[str, ...]] = Counter()
    chosen: Counter[str] = Counter()
    for seed in DESIGN_SEEDS:
        call = problems.random_designs(seed).call
        params, *buffers = call.lay_out()
        addresses = [buffer.address for buffer in buffers]
        for name in library.designs(params, *addresses):
            tried[name, call.source.name, str(call.features.dtype)] += 1
        chosen[library.design(params, *addresses)] += 1
    names = {"any", "planes", "row_pairs", "channels_last", "strips_4x4", "strips_2x8"}
    assert {name for name, *_ in tried} == names
    assert len(tried) == len(names) * len(MaskSource) * len(problems.HALF_AND_SINGLE)
    assert min(tried.values()) >= 10, tried
    assert set(chosen) == names
    assert min(chosen.values()) >= 10, chosen


@pytest.mark.parametrize("problem", problems.DESIGN_CHOICES, ids=str)
def test_design_of_a_call(library: EmulatedLibrary, problem: Problem) -> None:
    check(library, problem, FORWARD)


@pytest.mark.parametrize("seed", range(150))
def test_random_roi_align(library: EmulatedLibrary, seed: int) -> None:
    check(library, problems.random_roi_align(seed), order_of(seed))


@pytest.mark.parametrize("seed", range(150))
def test_random_nms(library: EmulatedLibrary, seed: int) -> None:
    check(library, problems.random_nms(seed), order_of(seed))
