"""The kernels' CPU twins: the same problems, and float64 where they have it."""

from __future__ import annotations

import pytest

from carafe_deploy.kernels import Device
from tests.plugins import problems
from tests.plugins.emulated import EmulatedLibrary
from tests.plugins.problems import DTYPES, Problem


@pytest.mark.parametrize("problem", problems.carafe_problems(tuple(DTYPES)), ids=str)
def test_carafe(library: EmulatedLibrary, problem: Problem) -> None:
    problem.check(library, Device.CPU)


@pytest.mark.parametrize("problem", problems.roi_align_problems(), ids=str)
def test_roi_align(library: EmulatedLibrary, problem: Problem) -> None:
    problem.check(library, Device.CPU)


@pytest.mark.parametrize("problem", problems.nms_problems(), ids=str)
def test_nms(library: EmulatedLibrary, problem: Problem) -> None:
    problem.check(library, Device.CPU)


def test_nms_of_long_labels(library: EmulatedLibrary) -> None:
    problems.long_nms(4097).check(library, Device.CPU)


@pytest.mark.parametrize("seed", range(400))
def test_random_carafe(library: EmulatedLibrary, seed: int) -> None:
    problems.random_carafe(seed, tuple(DTYPES)).check(library, Device.CPU)


@pytest.mark.parametrize("seed", range(150))
def test_random_roi_align(library: EmulatedLibrary, seed: int) -> None:
    problems.random_roi_align(seed).check(library, Device.CPU)


@pytest.mark.parametrize("seed", range(150))
def test_random_nms(library: EmulatedLibrary, seed: int) -> None:
    problems.random_nms(seed).check(library, Device.CPU)
