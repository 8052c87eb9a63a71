"""Calls of RpnCandidates' and BoxCandidates' kernels, from the operators' cases or at random."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from carafe_deploy.kernels import (
    BoxCandidatesParams,
    Device,
    KernelLibrary,
    Layout,
    RpnCandidatesParams,
)
from carafe_deploy.ops.box_candidates import box_candidates_reference
from carafe_deploy.ops.rpn_candidates import rpn_candidates_reference
from tests.ops import faces
from tests.ops.cases import BOX_CASES, RPN_CASES, Case
from tests.plugins.buffers import Buffer
from tests.plugins.problems import (
    DTYPES,
    FEATURES,
    HALF_AND_SINGLE,
    NCHW,
    NHWC,
    RESULT,
    WEIGHTS,
    Place,
    assert_close,
)

Boxes = tuple[Tensor, Tensor]

_TOLERANCE = faces.TOLERANCES["rpn_candidates"][torch.float32]


def _room(*shape: int) -> tuple[Buffer, Buffer]:
    """For boxes [..., 4] and scores [...]."""
    scores = NCHW.buffer(torch.full(shape, math.nan), RESULT)
    return NCHW.buffer(torch.full((*shape, 4), math.nan), RESULT), scores


def _results(inputs: dict[str, Buffer], boxes: Buffer, scores: Buffer) -> Boxes:
    """What a call left; it must have written nothing else."""
    for name, buffer in inputs.items():
        buffer.assert_untouched(name)
    boxes.assert_guards_untouched("boxes")
    scores.assert_guards_untouched("scores")
    return boxes.array.clone(), scores.array.clone()


# --- RpnCandidates -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RpnProblem:
    """One call: float32 constants, and logits and deltas of every level, rounded to their dtype.

    ``place`` pads pixels of logits as FEATURES, of deltas as WEIGHTS.
    """

    reason: str
    constants: tuple[Tensor, Tensor, Tensor]
    maps: tuple[Tensor, ...]
    num_candidates: int
    min_size: float
    strides: tuple[int, ...]
    place: Place

    def __str__(self) -> str:
        return f"{str(self.maps[0].dtype).removeprefix('torch.')}-{self.place}-{self.reason}"

    @functools.cached_property
    def expected(self) -> Boxes:
        """In float64."""
        constants = (tensor.double() for tensor in self.constants)
        maps = [tensor.double() for tensor in self.maps]
        return rpn_candidates_reference(
            *constants, maps, self.num_candidates, self.min_size, self.strides
        )

    def run(self, library: KernelLibrary, device: Device) -> Boxes:
        """The library's result."""
        levels = len(self.strides)
        names = ("image_sizes", "anchors", "normalization")
        inputs = {
            name: NCHW.buffer(tensor, WEIGHTS)
            for name, tensor in zip(names, self.constants, strict=True)
        }
        for index, tensor in enumerate(self.maps):
            role = FEATURES if index < levels else WEIGHTS
            inputs[f"map {index}"] = self.place.put(tensor, role)
        batch, anchors = self.maps[0].shape[:2]
        boxes, scores = _room(batch, levels, self.num_candidates)
        params = RpnCandidatesParams(
            dtype=DTYPES[self.maps[0].dtype],
            layout=self.place.layout,
            batch=batch,
            levels=levels,
            anchors=anchors,
            candidates=self.num_candidates,
            heights=tuple(tensor.shape[2] for tensor in self.maps[:levels]),
            widths=tuple(tensor.shape[3] for tensor in self.maps[:levels]),
            strides=self.strides,
            logit_pitch=anchors + self.place.padding[FEATURES],
            delta_pitch=4 * anchors + self.place.padding[WEIGHTS],
            min_size=self.min_size,
        )
        addresses = [buffer.address for buffer in inputs.values()]
        library.rpn_candidates(
            params,
            *addresses[:3],
            addresses[3:],
            boxes.address,
            scores.address,
            device=device,
            threads=2,
        )
        return _results(inputs, boxes, scores)

    def check(self, library: KernelLibrary, device: Device = Device.CUDA) -> None:
        """Run and compare."""
        for found, expected in zip(self.run(library, device), self.expected, strict=True):
            assert_close(found, expected, _TOLERANCE)


def rpn_problem(case: Case, dtype: torch.dtype, place: Place) -> RpnProblem:
    sizes, anchors, normalization, *maps = case.inputs
    count, min_size, strides = case.attributes.values()
    return RpnProblem(
        case.reason,
        (sizes, anchors, normalization),
        tuple(tensor.to(dtype) for tensor in maps),
        count,
        min_size,
        tuple(strides),
        place,
    )


def random_rpn(seed: int) -> RpnProblem:
    """Small pyramids, some with more anchors than a block holds, many with equal logits."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    levels, batch, anchors = choose.randint(1, 3), choose.choice((1, 1, 2)), choose.randint(1, 4)
    height, width = choose.randint(1, 12), choose.randint(1, 12)
    if choose.random() < 0.3:  # a bound is needed
        levels, height, width = 1, choose.randint(40, 60), choose.randint(40, 60)
    sizes = [(max(1, height >> level), max(1, width >> level)) for level in range(levels)]
    dtype = choose.choice(HALF_AND_SINGLE)

    def maps(channels: int) -> list[Tensor]:
        shapes = ((batch, channels, *size) for size in sizes)
        return [torch.randn(shape, generator=generator) for shape in shapes]

    logits, deltas = maps(anchors), maps(4 * anchors)
    kind = choose.random()
    if kind < 0.2:  # ties
        logits = [tensor.round() for tensor in logits]
    elif kind < 0.3:  # all equal
        logits = [torch.full_like(tensor, -2.5) for tensor in logits]
    elif kind < 0.5:  # the largest lie together, in few of the kernel's heaps
        order = torch.linspace(-3, 3, sizes[0][0] * sizes[0][1])
        logits[0] = order.view(1, 1, *sizes[0]).expand_as(logits[0]).contiguous()
    elif kind < 0.6:
        for tensor in logits:
            tensor[torch.rand(tensor.shape, generator=generator) < 0.5] = choose.choice(
                (math.nan, -math.inf, math.inf)
            )
    half = torch.rand(levels, anchors, 2, generator=generator) * 12
    place = Place(Layout.NCHW)
    if choose.random() < 0.6:
        padding = (choose.choice((0, 0, 1, 5)), choose.choice((0, 0, 4)), 0)
        place = Place(Layout.NHWC, padding, first=choose.random() < 0.3)
    return RpnProblem(
        f"random {seed}",
        (
            torch.tensor([[height * 4.0, width * 4.0]] * batch),
            torch.cat((-half, half), dim=2),
            torch.tensor([[0.0] * 4, [0.5, 1.0, 0.5, 0.2]]),
        ),
        tuple(tensor.to(dtype) for tensor in (*logits, *deltas)),
        choose.choice((1, 7, 64, 100, 1000, 4096)),
        choose.choice((-1.0, 0.0, 8.0)),
        tuple(4 << level for level in range(levels)),
        place,
    )


@functools.cache
def scattered_rpn(count: int) -> RpnProblem:
    """The largest logits are all in one of the kernel's heaps, so that its bound is far too low."""
    logits = torch.linspace(-4, -3, 4096 * 10).view(10, 4096)
    logits[:, :1024] += 8  # the first heap of every thread
    flat = logits.view(1, 1, 160, 256)
    return RpnProblem(
        f"{count} of one heap",
        (
            torch.tensor([[640.0, 1024.0]]),
            torch.tensor([[[-8.0, -8, 8, 8]]]),
            torch.tensor([[0.0] * 4, [1.0] * 4]),
        ),
        (flat, torch.zeros(1, 4, 160, 256)),
        count,
        -1.0,
        (4,),
        NCHW,
    )


def rpn_problems() -> list[RpnProblem]:
    """Every case by dtype and layout."""
    return [
        rpn_problem(case, dtype, place)
        for case in RPN_CASES
        for dtype in HALF_AND_SINGLE
        for place in (NCHW, NHWC)
    ]


# --- BoxCandidates -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BoxProblem:
    """One call: logits and deltas, rounded to their dtype, and the inputs after them."""

    reason: str
    logits: Tensor
    deltas: Tensor
    others: tuple[Tensor, ...]

    def __str__(self) -> str:
        return f"{str(self.logits.dtype).removeprefix('torch.')}-{self.reason}"

    @functools.cached_property
    def expected(self) -> Boxes:
        """In float64."""
        proposals, count, *rest = self.others
        wide = (tensor.double() for tensor in rest)
        return box_candidates_reference(
            self.logits.double(), self.deltas.double(), proposals.double(), count, *wide
        )

    def run(self, library: KernelLibrary, device: Device) -> Boxes:
        """The library's result."""
        inputs = {
            f"input {index}": NCHW.buffer(tensor, WEIGHTS, poison=77)
            for index, tensor in enumerate((self.logits, self.deltas, *self.others))
        }
        batch, count, columns = self.logits.shape
        boxes, scores = _room(batch, columns - 1, count)
        params = BoxCandidatesParams(
            dtype=DTYPES[self.logits.dtype], batch=batch, proposals=count, classes=columns - 1
        )
        addresses = (buffer.address for buffer in (*inputs.values(), boxes, scores))
        library.box_candidates(params, *addresses, device=device, threads=2)
        return _results(inputs, boxes, scores)

    def check(self, library: KernelLibrary, device: Device = Device.CUDA) -> None:
        """Run and compare."""
        for found, expected in zip(self.run(library, device), self.expected, strict=True):
            assert_close(found, expected, _TOLERANCE)


def box_problem(case: Case, dtype: torch.dtype) -> BoxProblem:
    logits, deltas, *others = case.inputs
    return BoxProblem(case.reason, logits.to(dtype), deltas.to(dtype), tuple(others))


def random_box(seed: int) -> BoxProblem:
    """A few classes or many, tiles of proposals that are full, ragged or padding."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batch, classes = choose.choice((1, 1, 2, 3)), choose.choice((1, 2, 7, 8, 9, 31, 32, 80))
    count = choose.choice((1, 2, 31, 32, 33, 64, 70))
    dtype = choose.choice(HALF_AND_SINGLE)
    low, size = torch.rand(2, batch, count, 2, generator=generator) * 60
    return BoxProblem(
        f"random {seed}",
        (3 * torch.randn(batch, count, classes + 1, generator=generator)).to(dtype),
        torch.randn(batch, count, 4 * classes, generator=generator).to(dtype),
        (
            torch.cat((low, low + size), dim=2),
            torch.randint(0, count + 2, (batch, 1), generator=generator, dtype=torch.int32),
            torch.rand(batch, 2, generator=generator) * 100,
            torch.tensor([[0.1, 0.0, 0.0, -0.1], [0.1, 0.1, 0.2, 0.2]]),
        ),
    )


def box_problems() -> list[BoxProblem]:
    """Every case by dtype."""
    return [box_problem(case, dtype) for case in BOX_CASES for dtype in HALF_AND_SINGLE]
