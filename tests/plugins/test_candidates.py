"""The kernels of RpnCandidates and BoxCandidates: the CUDA source on the emulator, and CPU twins.

References are in float64. Results and shared memory start as NaN,
and arrays lie in guard zones.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from carafe_deploy.kernels import Device
from tests.plugins import candidates
from tests.plugins.candidates import BoxProblem, RpnProblem
from tests.plugins.emulated import BACKWARD, FORWARD, ORDERS, EmulatedLibrary, Order, at_random
from tests.plugins.varied import Twins

Problem = RpnProblem | BoxProblem

#: What one block of the kernel keeps.
KEYS = 4096


def order_of(seed: int) -> Order:
    return (FORWARD, BACKWARD, at_random(seed))[seed % 3]


CASES = [*candidates.rpn_problems(), *candidates.box_problems()]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("problem", CASES, ids=str)
def test_emulated(library: EmulatedLibrary, problem: Problem, order: Order) -> None:
    library.set_order(order)
    problem.check(library)


@pytest.mark.parametrize("problem", CASES, ids=str)
def test_twin(library: EmulatedLibrary, problem: Problem) -> None:
    problem.check(library, Device.CPU)


@pytest.mark.parametrize("seed", range(100))
def test_rpn_equals_its_twin(library: EmulatedLibrary, seed: int) -> None:
    library.set_order(order_of(seed))
    Twins(candidates.random_rpn(seed)).check(library)


@pytest.mark.parametrize("seed", range(100))
def test_box_equals_its_twin(library: EmulatedLibrary, seed: int) -> None:
    """Boxes to the bit; scores but for the order in which exponentials are added."""
    library.set_order(order_of(seed))
    problem = candidates.random_box(seed)
    boxes, scores = problem.run(library, Device.CUDA)
    expected_boxes, expected_scores = problem.run(library, Device.CPU)
    assert torch.equal(boxes, expected_boxes)
    torch.testing.assert_close(scores, expected_scores, rtol=2e-6, atol=0)


@pytest.mark.parametrize("seed", range(100, 160))
def test_random_twins(library: EmulatedLibrary, seed: int) -> None:
    candidates.random_rpn(seed).check(library, Device.CPU)
    candidates.random_box(seed).check(library, Device.CPU)


@pytest.mark.parametrize("count", [1, 1000, KEYS])
def test_a_bound_that_is_far_too_low_is_raised(library: EmulatedLibrary, count: int) -> None:
    library.set_order(FORWARD)
    Twins(candidates.scattered_rpn(count)).check(library)


def test_random_calls_take_every_path() -> None:
    counts: Counter[str] = Counter()
    for seed in range(100):
        problem = candidates.random_rpn(seed)
        logits = problem.maps[0]
        anchors = logits[0].numel()
        counts["bounded" if anchors > KEYS else "all collected"] += 1
        counts["too few"] += anchors < problem.num_candidates
        counts["padded pixels"] += any(problem.place.padding)
        counts["ties"] += len(logits.unique()) < logits.numel()
    assert min(counts.values()) >= 10, counts
