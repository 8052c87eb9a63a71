"""NaN and infinity in features, weights, boxes and scores: they reach what they belong to."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from carafe_deploy.kernels import Device, MaskSource
from tests.plugins import problems
from tests.plugins.emulated import EmulatedLibrary, at_random
from tests.plugins.problems import HALF_AND_SINGLE, CarafeProblem, NmsProblem, RoiAlignProblem

VALUES = (math.nan, math.inf, -math.inf)

each_device = pytest.mark.parametrize("device", Device, ids=("cpu", "emulated"))
each_value = pytest.mark.parametrize("value", VALUES)


def sprinkle(tensor: Tensor, value: float, seed: int) -> tuple[Tensor, Tensor]:
    """The tensor with one element in sixteen replaced, and where."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tensor.shape, generator=generator) < 1 / 16
    return tensor.masked_fill(chosen, value), chosen


def assert_reached(found: Tensor, clean: Tensor, reached: Tensor) -> None:
    """What is reached is not finite, and nothing else has changed."""
    assert not found[reached].isfinite().any()
    torch.testing.assert_close(found[~reached], clean[~reached], rtol=0, atol=0)


@each_device
@each_value
@pytest.mark.parametrize("seed", range(20))
def test_carafe_features(library: EmulatedLibrary, device: Device, value: float, seed: int) -> None:
    library.set_order(at_random(seed))
    problem = problems.random_carafe(seed)
    features, chosen = sprinkle(problem.features, value, seed)
    clean = dataclasses.replace(problem, features=problem.features.masked_fill(chosen, 0))
    # Softmax weighs every tap inside the map, however little; in half types a mask may be zero.
    marked = dataclasses.replace(
        problem, features=chosen.double(), weights=problem.weights.double()
    ).expected
    spoilt = dataclasses.replace(problem, features=features)
    assert_reached(spoilt.run(library, device), clean.run(library, device), marked > 0)


@each_device
@each_value
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("place", [problems.NCHW, problems.NHWC], ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_carafe_weights(
    library: EmulatedLibrary,
    device: Device,
    value: float,
    dtype: torch.dtype,
    place: problems.Place,
    kernel_size: int,
) -> None:
    # One weight of the pixel in the middle of the second of two groups, whose taps are all inside.
    s, taps = 2, kernel_size**2
    generator = torch.Generator().manual_seed(kernel_size)
    features = 1 + torch.rand(1, 16, 7, 9, generator=generator).to(dtype)
    masks = torch.rand(1, 2 * taps, 7 * s, 9 * s, generator=generator).to(dtype)
    encoded = torch.randn(1, s * s * 2 * taps, 7, 9, generator=generator).to(dtype)
    reached = torch.zeros(1, 16, 7 * s, 9 * s, dtype=torch.bool)
    reached[:, 8:, 3 * s + 1, 4 * s] = True  # output (1, 0) of pixel (3, 4)
    for source, weights, at in (
        (MaskSource.NORMALIZED, masks, (0, taps + 4, 3 * s + 1, 4 * s)),
        (MaskSource.ENCODED, encoded, (0, (taps + 4) * s * s + 2, 3, 4)),
    ):
        spoilt = weights.clone()
        spoilt[at] = value
        clean = CarafeProblem("", source, features, weights, kernel_size, 2, s, place)
        found = dataclasses.replace(clean, weights=spoilt).run(library, device)
        expected = clean.run(library, device)
        if source == MaskSource.ENCODED and value == -math.inf:  # a weight of zero
            assert found.isfinite().all()
            assert (found != expected)[~reached].sum() == 0
        else:
            assert_reached(found, expected, reached)


@each_device
@each_value
@pytest.mark.parametrize("seed", range(20))
def test_roi_align_features(
    library: EmulatedLibrary, device: Device, value: float, seed: int
) -> None:
    library.set_order(at_random(seed))
    problem = problems.random_roi_align(seed)
    sprinkled = [sprinkle(feature, value, seed) for feature in problem.features]
    clean = dataclasses.replace(
        problem,
        features=tuple(
            feature.masked_fill(chosen, 0)
            for feature, (_, chosen) in zip(problem.features, sprinkled, strict=True)
        ),
    )
    marked = dataclasses.replace(
        problem, features=tuple(chosen.double() for _, chosen in sprinkled)
    ).expected
    spoilt = dataclasses.replace(problem, features=tuple(feature for feature, _ in sprinkled))
    found, expected = spoilt.run(library, device), clean.run(library, device)
    assert not found[marked > 1e-4].isfinite().any()
    untouched = found.isfinite()
    torch.testing.assert_close(found[untouched], expected[untouched], rtol=0, atol=0)
    # A sample on a pixel's centre may or may not read the neighbour that it weighs with zero.
    assert untouched[marked == 0].double().mean() > 0.9 or not (marked == 0).any()


@each_device
@each_value
@pytest.mark.parametrize("corner", range(4))
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("place", [problems.NCHW, problems.NHWC], ids=str)
def test_rois_that_are_not_finite_pool_to_zeros(
    library: EmulatedLibrary,
    device: Device,
    value: float,
    corner: int,
    ratio: int,
    place: problems.Place,
) -> None:
    rois = torch.tensor([[[3.0, 4.0, 30.0, 20.0]] * 3])
    rois[0, 1, corner] = value
    features = (torch.ones(1, 8, 16, 16), torch.ones(1, 8, 8, 8))
    problem = RoiAlignProblem("", rois, features, 3, ratio, (2, 4), 8, place)
    found = problem.run(library, device)
    assert (found[0, 1] == 0).all()
    torch.testing.assert_close(found[0, 0::2], torch.ones(2, 8, 3, 3))


@pytest.mark.parametrize("value", [*VALUES, 1e38])
@pytest.mark.parametrize("seed", range(20))
def test_nms_boxes(library: EmulatedLibrary, value: float, seed: int) -> None:
    library.set_order(at_random(seed))
    problem = problems.random_nms(seed)
    spoilt = dataclasses.replace(problem, boxes=sprinkle(problem.boxes, value, seed)[0])
    on_cpu = spoilt.run(library, Device.CPU)
    on_cuda = spoilt.run(library, Device.CUDA)
    for cpu, cuda in zip(on_cpu, on_cuda, strict=True):
        assert cpu.tolist() == cuda.tolist()
    assert_ranked(spoilt, *on_cpu)


@each_device
@each_value
@pytest.mark.parametrize("seed", range(20))
def test_nms_scores(library: EmulatedLibrary, device: Device, value: float, seed: int) -> None:
    library.set_order(at_random(seed))
    problem = problems.random_nms(seed)
    spoilt = dataclasses.replace(problem, scores=sprinkle(problem.scores, value, seed)[0])
    num_dets, indices = spoilt.run(library, device)
    assert num_dets.tolist() == spoilt.expected[0].tolist()
    assert indices.tolist() == spoilt.expected[1].tolist()


def assert_ranked(problem: NmsProblem, num_dets: Tensor, indices: Tensor) -> None:
    """Distinct candidates above the threshold by descending score, then -1."""
    for image, count in enumerate(num_dets.flatten().tolist()):
        kept, rest = indices[image, :count], indices[image, count:]
        assert (rest == -1).all()
        assert kept.unique().numel() == count
        scores = problem.scores[image].flatten()[kept]
        assert (scores > problem.score_threshold).all()
        assert (scores[:-1] >= scores[1:]).all()
