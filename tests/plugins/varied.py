"""Random calls of RoIAlign and NMS that take every path of their CUDA kernels, and what they take.

The kernels' source, run by the emulator, is to give what the CPU twins give, bit for bit.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from carafe_deploy.kernels import Device, KernelLibrary, Layout
from tests.plugins.problems import (
    HALF_AND_SINGLE,
    NmsProblem,
    Place,
    RoiAlignProblem,
)


@dataclass(frozen=True)
class Twins:
    """A problem whose result on both devices is compared."""

    problem: RoiAlignProblem | NmsProblem

    def __str__(self) -> str:
        return str(self.problem)

    def check(self, library: KernelLibrary) -> None:
        """Run and compare."""
        found, expected = (
            self.problem.run(library, device) for device in (Device.CUDA, Device.CPU)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# --- RoIAlign ------------------------------------------------------------------------------------

#: Taps of one axis, and bins along it, that a block has room for: kMostTaps and kMostBins.
MOST_TAPS, MOST_BINS = 256, 128


def varied_roi_align(seed: int) -> RoiAlignProblem:
    """Small pyramids under RoIs of all sizes; some maps are long and some bins many."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    levels, batch, count = choose.randint(1, 5), choose.choice((1, 1, 2, 3)), choose.randint(1, 5)
    channels = choose.choice((1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 36, 40))
    size = choose.choice((1, 2, 3, 5, 7, 7, 14))
    height, width = choose.randint(1, 40), choose.randint(1, 40)
    stride, ratio = choose.choice((1, 2, 3, 4)), choose.choice((0, 0, 0, 1, 2, 3))
    kind = choose.random()
    if kind < 0.2:  # long RoIs: too many taps for a block to share
        levels, batch, channels = 1, 1, choose.choice((1, 3, 4, 8, 9))
        height, width = choose.choice(((1, 400), (400, 1), (2, 300), (300, 3)))
        size, ratio = choose.choice((1, 2, 3, 5)), choose.choice((0, 0, 2))
    elif kind < 0.24:  # more bins than a block has room for, or more taps a bin
        batch, count, channels = 1, 1, choose.choice((1, 2))
        size, ratio = choose.choice(((129, 1), (64, 3), (40, 5), (128, 1)))
    image = torch.tensor([width * stride, height * stride], dtype=torch.float32)
    centre = (torch.rand(batch, count, 2, generator=generator) * 1.6 - 0.3) * image
    sides = torch.rand(batch, count, 2, generator=generator) ** 2 * image * 1.5
    if kind < 0.2:
        sides = (0.5 + torch.rand(batch, count, 2, generator=generator)) * image
        centre = (0.3 + 0.4 * torch.rand(batch, count, 2, generator=generator)) * image
    if choose.random() < 0.2:  # without area, or corners swapped
        sides *= torch.randint(-1, 2, sides.shape, generator=generator)
    rois = torch.cat((centre - sides / 2, centre + sides / 2), dim=2)
    if choose.random() < 0.1:
        value = choose.choice((math.nan, math.inf, -math.inf, 1e9, -1e9, 3e38))
        rois[choose.randrange(batch), choose.randrange(count), choose.randrange(4)] = value
    dtype = choose.choice(HALF_AND_SINGLE)
    features = tuple(
        torch.randn(
            batch, channels, max(1, height >> level), max(1, width >> level), generator=generator
        ).to(dtype)
        for level in range(levels)
    )
    return RoiAlignProblem(
        f"varied {seed}",
        rois,
        features,
        size,
        ratio,
        tuple(stride * 2**level for level in range(levels)),
        choose.choice((4, 7, 14, 56)),
        _place(choose, channels),
    )


def _place(choose: random.Random, channels: int) -> Place:
    kinds = (0, 0, 0, 1, 2, 4)
    offsets = (choose.choice(kinds), choose.choice(kinds), choose.choice(kinds))
    first = choose.random() < 0.3
    if choose.random() < 0.5:
        return Place(Layout.NCHW, offsets=offsets, first=first)
    if choose.random() < 0.4:
        padding = (choose.choice((0, 1, 3)), 0, choose.choice((0, 1, 3)))
        return Place(Layout.NHWC, padding, offsets, first)
    # Pixels at multiples of 16 bytes.
    padding = (
        -channels % 8 + 8 * choose.randint(0, 1),
        0,
        -channels % 8 + 8 * choose.randint(0, 1),
    )
    return Place(Layout.NHWC, padding, (0, choose.choice(kinds), 0), first)


def roi_align_paths(problem: RoiAlignProblem) -> set[str]:
    """Which paths the problem surely takes."""
    size, place, dtype = problem.output_size, problem.place, problem.features[0].dtype
    paths = {f"{place.layout.name.lower()} {str(dtype).removeprefix('torch.')}"}
    if place.layout == Layout.NHWC:
        pitches = (problem.features[0].shape[1] + place.padding[role] for role in (0, 2))
        aligned = place.offsets[0] == place.offsets[2] == 0
        whole = all(pitch * dtype.itemsize % 16 == 0 for pitch in pitches)
        paths.add("packs" if aligned and whole else "single channels")
    height, width = problem.features[0].shape[2:]
    for roi in problem.rois.flatten(0, 1):
        extents = roi[2:] - roi[:2]
        if not roi.isfinite().all() or (extents <= 0).any() or (roi.abs() > 1e6).any():
            paths.add("degenerate")
            continue
        if len(problem.features) > 1:
            continue
        taps = [
            _least_and_most_taps(float(roi[i]), float(roi[i + 2]), side, problem)
            for i, side in ((0, width), (1, height))
        ]
        if size > MOST_BINS or any(least > MOST_TAPS // size for least, _ in taps):
            paths.add("walked")
        elif all(most <= MOST_TAPS // size for _, most in taps):
            paths.add("shared")
    return paths


def _least_and_most_taps(
    low: float, high: float, side: int, problem: RoiAlignProblem
) -> tuple[float, float]:
    """Bounds of the taps of the bin that has most of them."""
    stride, size, ratio = problem.strides[0], problem.output_size, problem.sampling_ratio
    if ratio > 0:
        return 0, 2 * ratio
    bin_side = (high - low) / stride / size
    # Every pixel that a bin covers has taps, and at most one more on each side.
    covered = [
        min(low / stride + (i + 1) * bin_side, side) - max(low / stride + i * bin_side, 0)
        for i in range(size)
    ]
    return max(covered) - 2, max(*covered, 0) + 4


# --- NMS -----------------------------------------------------------------------------------------

#: Longest label that one block sorts, and keys that a run and a merged run have: kSharedKeys, kRun
#: and kFan of them. Windows are a run, 4 and 16.
SHORT, RUN, MERGED = 4096, 1024, 16 * 1024
#: Labels of all images that are spread over the GPU at most, kSpreadLists, and bounds of their
#: candidates: more than the first, at most the second.
SPREAD_LABELS, SPREAD = 40, (128, 1024)


def varied_nms(seed: int) -> NmsProblem:
    """Few or many labels, short or long ones, with ties, padding, NaN and infinity."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batch, labels = choose.choice((1, 1, 1, 2, 3)), choose.choice((1, 1, 2, 3, 5))
    candidates = choose.choice((1, 2, 17, 32, 63, 64, 65, 96, 127, 129, 150, 200, 257))
    max_output = choose.choice((1, 2, 7, 33, 64, 65, 100, 300, 1000))
    kind = seed % 50
    if kind == 0:  # label by label
        batch, labels, candidates = 1, choose.randint(30, 90), choose.randint(1, 12)
    elif kind == 1:
        batch, labels, candidates = 1, 1, choose.choice((511, 513, 1000, 1024, 1025, 2049))
    elif kind == 2:  # in runs
        batch, labels, candidates = choose.choice(
            ((1, 1, 4097), (2, 1, 4200), (1, 5, 4100), (3, 1, 4500), (1, 1, 5121), (1, 1, 6000))
        )
    elif kind == 4:  # many labels of several tiles: a block each
        batch, labels, candidates = choose.choice(((1, 41, 129), (2, 21, 150), (1, 43, 200)))
    elif seed == 3:  # merged twice, the second time with a run that was alone
        batch, labels, candidates = 1, 1, 17400
    shape = (batch, labels, candidates)
    image, least, most = choose.choice((6, 20, 60, 200, 600)), 0, choose.choice((4, 12, 40))
    steps = choose.choice((1, 3, 20, 1 << 20))
    iou_threshold = choose.choice((0.0, 1e-30, 0.25, 1 / 3, 0.5, 0.7, 0.9, 1.0))
    if candidates > SHORT:  # sparse enough to keep some of every window
        image, least, most = choose.choice((150, 250, 400)), 10, 40
        steps, max_output = choose.choice((20, 1 << 20)), choose.choice((500, 3000, 3000))
        iou_threshold = choose.choice((0.25, 1 / 3, 0.5))
    if candidates > MERGED:
        image, max_output = 150, 3000
    low = torch.randint(-3, image, (*shape, 2), generator=generator)
    sides = torch.randint(least, most, (*shape, 2), generator=generator)
    boxes = torch.cat((low, low + sides), dim=3).float()
    if choose.random() < 0.3:
        boxes += torch.rand(boxes.shape, generator=generator)
    if choose.random() < 0.2 and candidates <= SHORT:
        boxes *= choose.choice((1e-21, 1e-19, 1e18, 1e20))  # areas beneath and beyond float32
    scores = torch.randint(-steps // 4, steps + 1, shape, generator=generator) / steps
    scores = torch.where(torch.rand(shape, generator=generator) < 0.05, -scores, scores)
    padded = (0.0, 0.3) if candidates > SHORT else (0.0, 0.3, 0.95, 1.0)
    for value, share in (
        (-math.inf, choose.choice(padded)),
        (math.nan, choose.choice((0.0, 0.0, 0.1))),
        (math.inf, choose.choice((0.0, 0.0, 0.02))),
    ):
        if candidates <= MERGED:
            scores = scores.masked_fill(torch.rand(shape, generator=generator) < share, value)
    if choose.random() < 0.15:
        value = choose.choice((math.nan, math.inf, -math.inf))
        boxes = boxes.masked_fill(torch.rand(boxes.shape, generator=generator) < 0.03, value)
    return NmsProblem(
        f"varied {seed}",
        boxes,
        scores,
        iou_threshold,
        choose.choice((-math.inf, -1.0, 0.0, 0.05, 0.5)) if candidates <= MERGED else -1.0,
        max_output,
        Place(Layout.NCHW, offsets=(choose.randint(0, 3), choose.randint(0, 3), 0)),
    )


def neighbours_nms() -> NmsProblem:
    """A label keeps all it may; the next, one box of its first 64 and then the other's last."""
    first, last = [0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 29.0, 29.0]
    boxes = torch.tensor([[first, last] + [first] * 64, [first] * 65 + [last]]).unsqueeze(0)
    scores = torch.linspace(1, 0.1, 66) * torch.tensor([[[0.05], [1.0]]])
    return NmsProblem("neighbours", boxes, scores, 0.5, 0.0, 2)


def nms_paths(problem: NmsProblem, num_dets: Tensor, indices: Tensor) -> set[str]:
    """Which paths the problem takes; the result tells."""
    _, labels, candidates = problem.scores.shape
    alive = (problem.scores > problem.score_threshold).sum(dim=2)
    paths = {"short" if candidates <= SHORT else "runs"}
    if len(problem.scores) * labels <= SPREAD_LABELS and SPREAD[0] < candidates <= SPREAD[1]:
        paths.add("spread")
    elif SPREAD[0] < candidates <= SHORT:
        paths.add("several tiles a block")
    if candidates > MERGED:
        paths.add("two merges")
    if candidates > SHORT:
        # How many of its label are better than a kept one.
        keep = indices[0, : int(num_dets[0])]
        label = problem.scores[0][keep // candidates]
        better = (label > problem.scores[0].flatten()[keep].unsqueeze(1)).sum(dim=1)
        paths |= {
            f"keeps of window {n}"
            for n, first in ((2, RUN), (3, 4 * RUN), (4, 16 * RUN))
            if (better > first).any()
        }
    if labels > 32:
        paths.add("more labels than lanes")
    if (alive == 0).any() and candidates > 0:
        paths.add("empty label")
    if ((alive % RUN) != 0).any() and candidates > SHORT:
        paths.add("ragged run")
    if (alive > 64).any():
        paths.add("several tiles")
    if (num_dets == problem.max_output).any():
        paths.add("full")
    if (num_dets < problem.max_output).any():
        paths.add("padded")
    scores = problem.scores
    if scores.isnan().any():
        paths.add("NaN score")
    if problem.boxes.isnan().any():
        paths.add("NaN box")
    if any(row.unique().numel() < row.numel() for row in scores.flatten(0, 1)[:4]):
        paths.add("ties")
    return paths
