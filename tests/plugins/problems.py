"""Calls of the kernels with their float64 results, made from the operators' cases or at random.

A problem knows how to lay out its tensors, to call a library, and to judge what came back: the
result is right, guards are untouched, inputs unchanged, padding channels zero.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.kernels import (
    CarafeParams,
    Device,
    DType,
    KernelLibrary,
    Layout,
    MaskSource,
    NmsParams,
    RoiAlignParams,
)
from carafe_deploy.ops.carafe import carafe_encoded_reference, carafe_reference
from carafe_deploy.ops.nms import batched_nms_reference
from carafe_deploy.ops.roi_align import multilevel_roi_align_reference
from tests.ops import faces
from tests.ops.cases import CASES, NMS_CASES, ROI_ALIGN_CASES, Case, normalized
from tests.plugins.buffers import Buffer
from tests.plugins.emulated import EmulatedLibrary

DTYPES = {
    torch.float32: DType.FLOAT32,
    torch.float16: DType.FLOAT16,
    torch.bfloat16: DType.BFLOAT16,
    torch.float64: DType.FLOAT64,
}
HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Place:
    """How tensors lie in memory.

    Attributes:
        layout: order of the axes.
        padding: channels that every pixel has beyond its own, channels-last only: of features, of
            masks and of the result.
        offsets: elements by which addresses miss their alignment: of features, of masks or RoIs or
            boxes and scores, and of the result.
        first: arrays start, rather than end, at a page that cannot be touched.
    """

    layout: Layout
    padding: tuple[int, int, int] = (0, 0, 0)
    offsets: tuple[int, int, int] = (0, 0, 0)
    first: bool = False

    def __str__(self) -> str:
        return self.layout.name.lower()

    def buffer(self, tensor: Tensor, role: int, **options: Any) -> Buffer:
        """Holds a tensor as it is; ``role`` counts in ``padding`` and ``offsets``."""
        options |= {"offset": self.offsets[role], "first": self.first}
        return Buffer(tensor.shape, tensor.dtype, **options).fill(tensor)

    def put(self, tensor: Tensor, role: int) -> Buffer:
        """[N, C, H, W] in this layout; padding channels are NaN."""
        n, c, h, w = tensor.shape
        if self.layout == Layout.NCHW:
            return self.buffer(tensor, role)
        values = tensor.new_full((n, h, w, c + self.padding[role]), math.nan)
        values[..., :c] = tensor.permute(0, 2, 3, 1)
        return self.buffer(values, role)

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Buffer:
        """For a result [N, C, H, W]."""
        return self.put(torch.full(tuple(shape), math.nan, dtype=dtype), RESULT)

    def get(self, buffer: Buffer, channels: int) -> Tensor:
        """A result as [N, C, H, W]; its padding channels must be zeros."""
        if self.layout == Layout.NCHW:
            return buffer.array.clone()
        padding = buffer.array[..., channels:]
        assert (padding == 0).all(), f"padding channels hold {padding.unique().tolist()}"
        return buffer.array[..., :channels].permute(0, 3, 1, 2).clone()


FEATURES, WEIGHTS, RESULT = range(3)
NCHW, NHWC = Place(Layout.NCHW), Place(Layout.NHWC)


def assert_close(found: Tensor, expected: Tensor, tolerance: tuple[float, float]) -> None:
    relative, absolute = tolerance
    torch.testing.assert_close(
        found.double(), expected, rtol=relative, atol=absolute, equal_nan=True
    )


# --- CARAFE --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CarafeProblem:
    """One call: features and weights [N, C, H, W], rounded to their dtype, and where they lie."""

    reason: str
    source: MaskSource
    features: Tensor
    weights: Tensor
    kernel_size: int
    groups: int
    scale: int
    place: Place

    def __str__(self) -> str:
        dtype = str(self.features.dtype).removeprefix("torch.")
        return f"{self.source.name.lower()}-{dtype}-{self.place}-{self.reason}"

    @functools.cached_property
    def expected(self) -> Tensor:
        """In float64."""
        reference = carafe_reference
        if self.source == MaskSource.ENCODED:
            reference = carafe_encoded_reference
        return reference(
            self.features.double(),
            self.weights.double(),
            self.kernel_size,
            self.groups,
            self.scale,
        )

    def lay_out(self) -> tuple[CarafeParams, Buffer, Buffer, Buffer]:
        """Parameters, features, weights and room for the result."""
        n, c, h, w = self.features.shape
        dtype, (extra, mask_extra, out_extra) = self.features.dtype, self.place.padding
        features = self.place.put(self.features, FEATURES)
        weights = self.place.put(self.weights, WEIGHTS)
        out = self.place.room((n, c, h * self.scale, w * self.scale), dtype)
        params = CarafeParams(
            dtype=DTYPES[dtype],
            layout=self.place.layout,
            source=self.source,
            batch=n,
            channels=c,
            height=h,
            width=w,
            kernel_size=self.kernel_size,
            groups=self.groups,
            scale=self.scale,
            # 0 stands for packed.
            feature_pitch=c + extra if extra else 0,
            mask_pitch=self.weights.shape[1] + mask_extra if mask_extra else 0,
            out_pitch=c + out_extra if out_extra else 0,
        )
        return params, features, weights, out

    def result(self, features: Buffer, weights: Buffer, out: Buffer) -> Tensor:
        """What a call left in ``out``; it must have written nothing else."""
        features.assert_untouched("features")
        weights.assert_untouched("masks")
        out.assert_guards_untouched("the result")
        return self.place.get(out, self.features.shape[1])

    def run(self, library: KernelLibrary, device: Device) -> Tensor:
        """The library's result."""
        params, *buffers = self.lay_out()
        addresses = (buffer.address for buffer in buffers)
        library.carafe(params, *addresses, device=device, threads=2)
        return self.result(*buffers)

    def check(self, library: KernelLibrary, device: Device = Device.CUDA) -> None:
        """Run and compare."""
        self.compare(self.run(library, device))

    def compare(self, found: Tensor) -> None:
        assert_close(found, self.expected, faces.tolerance("carafe", self.features.dtype))


@dataclass(frozen=True, eq=False)
class DesignsProblem:
    """A CARAFE call by every design of the CUDA kernels that can run it."""

    call: CarafeProblem

    def __str__(self) -> str:
        return str(self.call)

    @property
    def reason(self) -> str:
        return self.call.reason

    @property
    def expected(self) -> Tensor:
        """In float64."""
        return self.call.expected

    def check(self, library: EmulatedLibrary) -> None:
        """Run and compare each."""
        params, *buffers = self.call.lay_out()
        *_, out = buffers
        addresses = [buffer.address for buffer in buffers]
        for design in library.designs(params, *addresses).values():
            out.fill(torch.full((), math.nan, dtype=out.array.dtype))
            library.run_design(design, params, *addresses)
            self.call.compare(self.call.result(*buffers))


def carafe_problem(
    case: Case, source: MaskSource, dtype: torch.dtype, place: Place
) -> CarafeProblem:
    features, weights = (tensor.to(dtype) for tensor in case.inputs)
    return CarafeProblem(case.reason, source, features, weights, *case.attributes.values(), place)


def _place(choose: random.Random, channels: int) -> Place:
    offsets = (0, 0, 0)
    if choose.random() < 0.5:
        kinds = (0, 0, 1, 2, 4)
        offsets = (choose.choice(kinds), choose.choice(kinds), choose.choice(kinds))
    first = choose.random() < 0.3
    if choose.random() < 0.5:
        return Place(Layout.NCHW, offsets=offsets, first=first)
    padding = [choose.choice((0, 0, 1, 3, 7, 8)) for _ in range(3)]
    if choose.random() < 0.6:  # so that packs of 16 bytes fit
        padding = [-channels % 8 + 8 * choose.randint(0, 1) for _ in range(3)]
    return Place(Layout.NHWC, (padding[0], padding[1], padding[2]), offsets, first)


def random_carafe(seed: int, dtypes: Sequence[torch.dtype] = HALF_AND_SINGLE) -> CarafeProblem:
    """Small maps, some wide or high or with many channels, sizes mostly odd to any tile."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    k = choose.choice((1, 3, 5, 5, 5, 7))
    s = choose.choice((1, 2, 2, 2, 3, 4))
    groups = choose.choice((1, 1, 1, 2, 3, 4))
    most = max(1, 60 // groups)
    n, per_group = choose.choice((1, 1, 1, 2, 3)), choose.randint(1, choose.choice((3, 9, most)))
    h, w = choose.randint(1, 9), choose.randint(1, 9)
    if choose.random() < 0.3:
        n, per_group = 1, choose.randint(1, 4)
        w = choose.randint(30, 70)
        h = choose.randint(1, 3)
        if choose.random() < 0.5:
            h, w = w, h
    elif choose.random() < 0.1:
        n, per_group, h, w = 1, choose.randint(60, 300) // groups, 2, 3
    if choose.random() < 0.3:  # what the detectors use has kernels of its own
        k, s = 5, 2
        per_group += choose.choice((0, -per_group % 4, -per_group % 8))
    source = choose.choice(tuple(MaskSource))
    dtype = choose.choice(tuple(dtypes))
    features = torch.randn(n, per_group * groups, h, w, generator=generator)
    encoded = 2 * torch.randn(n, s * s * groups * k * k, h, w, generator=generator)
    weights = encoded if source == MaskSource.ENCODED else normalized(encoded, k, groups, s)
    place = _place(choose, per_group * groups)
    return CarafeProblem(
        f"random {seed}", source, features.to(dtype), weights.to(dtype), k, groups, s, place
    )


@dataclass(frozen=True, eq=False)
class ChoiceProblem:
    """Sizes of a call, ``channels`` in ``groups``, and the design that it takes; nothing runs."""

    place: Place
    channels: int
    groups: int
    expected: str
    kernel_size: int = 5
    scale: int = 2
    batch: int = 1
    height: int = 3
    width: int = 4
    dtype: torch.dtype = torch.float32
    source: MaskSource = MaskSource.ENCODED

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.channels}x{self.height}x{self.width}"
        dtype = str(self.dtype).removeprefix("torch.")
        sizes = f"{self.groups}-{self.kernel_size}-{self.scale}-{self.source.name.lower()}"
        return f"{self.place}-{dtype}-{shape}-{sizes}-{self.expected}"

    @property
    def reason(self) -> str:
        return str(self)

    def chosen(self, library: EmulatedLibrary) -> str:
        taps = self.groups * self.kernel_size**2
        masks = taps if self.source == MaskSource.NORMALIZED else taps * self.scale**2
        channels_last = self.place.layout == Layout.NHWC
        pitches = (
            [
                size + extra
                for size, extra in zip(
                    (self.channels, masks, self.channels), self.place.padding, strict=True
                )
            ]
            if channels_last
            else [0, 0, 0]
        )
        params = CarafeParams(
            dtype=DTYPES[self.dtype],
            layout=self.place.layout,
            source=self.source,
            batch=self.batch,
            channels=self.channels,
            height=self.height,
            width=self.width,
            kernel_size=self.kernel_size,
            groups=self.groups,
            scale=self.scale,
            feature_pitch=pitches[FEATURES],
            mask_pitch=pitches[WEIGHTS],
            out_pitch=pitches[RESULT],
        )
        # The design depends on what an address is a multiple of, not on what lies there.
        addresses = [4096 + offset * self.dtype.itemsize for offset in self.place.offsets]
        return library.design(params, *addresses)

    def check(self, library: EmulatedLibrary) -> None:
        """The library names the expected design."""
        assert self.chosen(library) == self.expected


def random_designs(seed: int) -> DesignsProblem:
    """k = 5 and s = 2, what the designs are for: sizes odd to any tile, strip and chunk."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    n, h, w = choose.choice((1, 1, 1, 2, 3)), choose.randint(1, 9), choose.randint(1, 9)
    groups = choose.choice((1, 1, 1, 1, 2, 3))
    channels = choose.choice((1, 1, 2, 3, 4, 7, 8, 12, 13, 20, 33))
    shape = choose.random()
    if shape < 0.15:
        n, channels, h, w = (
            1,
            choose.choice((1, 4, 5)),
            choose.randint(1, 5),
            choose.randint(15, 45),
        )
        if choose.random() < 0.5:
            h, w = w, h
    elif shape < 0.35:
        n, groups, h, w = 1, choose.choice((1, 1, 2)), choose.randint(1, 3), choose.randint(1, 5)
        channels = choose.choice((60, 64, 68, 72, 96, 127, 128, 130, 136, 200)) // groups
    if choose.random() < 0.5:  # so that groups begin at packs of 16 bytes
        channels += -channels % choose.choice((4, 8)) if channels > 1 else 0
    source = choose.choice(tuple(MaskSource))
    dtype = choose.choice(HALF_AND_SINGLE)
    features = torch.randn(n, channels * groups, h, w, generator=generator)
    encoded = 2 * torch.randn(n, 100 * groups, h, w, generator=generator)
    weights = encoded if source == MaskSource.ENCODED else normalized(encoded, 5, groups, 2)
    place = _place(choose, channels * groups)
    if choose.random() < 0.35:  # what packs of 16 bytes need
        padding = [-channels * groups % 8 + 8 * choose.randint(0, 1) for _ in range(2)]
        place = Place(Layout.NHWC, (padding[0], choose.choice((0, 3)), padding[1]))
    if channels * groups == 1 and choose.random() < 0.5:  # planes, whatever the layout is called
        place = Place(Layout.NHWC, (0, choose.choice((0, 4)), 0), first=choose.random() < 0.5)
    return DesignsProblem(
        CarafeProblem(
            f"random {seed}", source, features.to(dtype), weights.to(dtype), 5, groups, 2, place
        )
    )


# --- MultilevelRoiAlign --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RoiAlignProblem:
    """One call: rois [B, K, 4] float32, one map [B, C, H, W] a level, and where they lie."""

    reason: str
    rois: Tensor
    features: tuple[Tensor, ...]
    output_size: int
    sampling_ratio: int
    strides: tuple[int, ...]
    finest_scale: int
    place: Place

    def __str__(self) -> str:
        dtype = str(self.features[0].dtype).removeprefix("torch.")
        return f"{dtype}-{self.place}-{self.reason}"

    @functools.cached_property
    def expected(self) -> Tensor:
        """In float64."""
        return multilevel_roi_align_reference(
            self.rois.double(),
            [feature.double() for feature in self.features],
            self.output_size,
            self.sampling_ratio,
            self.strides,
            self.finest_scale,
        )

    def run(self, library: KernelLibrary, device: Device) -> Tensor:
        """The library's result, [B, K, C, S, S]."""
        batch, count, _ = self.rois.shape
        first, size = self.features[0], self.output_size
        channels, (extra, _, out_extra) = first.shape[1], self.place.padding
        rois = self.place.buffer(self.rois, WEIGHTS)
        maps = [self.place.put(feature, FEATURES) for feature in self.features]
        out = self.place.room((batch * count, channels, size, size), first.dtype)
        params = RoiAlignParams(
            dtype=DTYPES[first.dtype],
            layout=self.place.layout,
            batch=batch,
            rois=count,
            channels=channels,
            levels=len(maps),
            output_size=size,
            sampling_ratio=self.sampling_ratio,
            finest_scale=self.finest_scale,
            heights=tuple(feature.shape[2] for feature in self.features),
            widths=tuple(feature.shape[3] for feature in self.features),
            strides=self.strides,
            feature_pitch=channels + extra,
            out_pitch=channels + out_extra,
        )
        library.multilevel_roi_align(
            params,
            rois.address,
            [feature.address for feature in maps],
            out.address,
            device=device,
            threads=2,
        )
        rois.assert_untouched("rois")
        for level, feature in enumerate(maps):
            feature.assert_untouched(f"feature map {level}")
        out.assert_guards_untouched("the result")
        return self.place.get(out, channels).unflatten(0, (batch, count))

    def check(self, library: KernelLibrary, device: Device = Device.CUDA) -> None:
        """Run and compare."""
        tolerance = faces.tolerance("multilevel_roi_align", self.features[0].dtype)
        assert_close(self.run(library, device), self.expected, tolerance)


def roi_align_problem(case: Case, dtype: torch.dtype, place: Place) -> RoiAlignProblem:
    rois, *features = case.inputs
    size, ratio, strides, finest = case.attributes.values()
    maps = tuple(feature.to(dtype) for feature in features)
    return RoiAlignProblem(
        case.reason, rois.float(), maps, size, ratio, tuple(strides), finest, place
    )


def random_roi_align(seed: int) -> RoiAlignProblem:
    """RoIs of all sizes and shapes, in, across and beyond the border, on small pyramids."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    levels = choose.randint(1, 5)
    batch, count = choose.choice((1, 1, 2, 3)), choose.randint(1, 6)
    channels = choose.choice((1, 2, 3, 5, 8, 16, 31, 33, 67))
    size = choose.choice((1, 2, 3, 5, 7, 7, 14))
    if size == 14:
        channels = min(channels, 16)
    stride = choose.choice((1, 2, 3, 4))
    strides = tuple(stride * 2**level for level in range(levels))
    height, width = choose.randint(1, 40), choose.randint(1, 40)
    image = torch.tensor([width * stride, height * stride], dtype=torch.float32)
    centre = (torch.rand(batch, count, 2, generator=generator) * 1.4 - 0.2) * image
    sides = torch.rand(batch, count, 2, generator=generator) ** 2 * image * 1.5
    if choose.random() < 0.2:  # some without area, some with corners swapped
        sides *= torch.randint(-1, 2, sides.shape, generator=generator)
    rois = torch.cat((centre - sides / 2, centre + sides / 2), dim=2)
    dtype = choose.choice(HALF_AND_SINGLE)
    features = tuple(
        torch.randn(
            batch, channels, max(1, height >> level), max(1, width >> level), generator=generator
        ).to(dtype)
        for level in range(levels)
    )
    ratio = choose.choice((0, 0, 0, 1, 2, 3))
    finest = choose.choice((4, 7, 14, 56))
    return RoiAlignProblem(
        f"random {seed}", rois, features, size, ratio, strides, finest, _place(choose, channels)
    )


# --- BatchedNms ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NmsProblem:
    """One call: boxes [B, L, M, 4] and scores [B, L, M], float32."""

    reason: str
    boxes: Tensor
    scores: Tensor
    iou_threshold: float
    score_threshold: float
    max_output: int
    place: Place = NCHW

    def __str__(self) -> str:
        return self.reason

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """num_dets [B, 1] and indices [B, max_output]."""
        return batched_nms_reference(
            self.boxes, self.scores, self.iou_threshold, self.score_threshold, self.max_output
        )

    def run(self, library: KernelLibrary, device: Device) -> tuple[Tensor, Tensor]:
        """The library's result."""
        batch, labels, candidates = self.scores.shape
        # Whoever reads a score outside the array finds the best of all.
        scores = self.place.buffer(self.scores, WEIGHTS, poison=1e30)
        boxes = self.place.buffer(self.boxes, FEATURES)
        unset = torch.full((batch, self.max_output), -7)
        num_dets = self.place.buffer(unset[:, :1].int(), RESULT, poison=-7)
        indices = self.place.buffer(unset, RESULT, poison=-7)
        params = NmsParams(
            batch=batch,
            labels=labels,
            candidates=candidates,
            max_output=self.max_output,
            iou_threshold=self.iou_threshold,
            score_threshold=self.score_threshold,
        )
        workspace = Buffer(
            (library.batched_nms_workspace(params),), torch.uint8, poison=0xFF, alignment=256
        )
        library.batched_nms(
            params,
            boxes.address,
            scores.address,
            num_dets.address,
            indices.address,
            workspace=workspace.address,
            device=device,
            threads=2,
        )
        boxes.assert_untouched("boxes")
        scores.assert_untouched("scores")
        for name, buffer in (
            ("num_dets", num_dets),
            ("indices", indices),
            ("workspace", workspace),
        ):
            buffer.assert_guards_untouched(name)
        return num_dets.array.clone(), indices.array.clone()

    def check(self, library: KernelLibrary, device: Device = Device.CUDA) -> None:
        """Run and compare: counts and indices are integers, equal or wrong."""
        num_dets, indices = self.run(library, device)
        assert num_dets.tolist() == self.expected[0].tolist()
        assert indices.tolist() == self.expected[1].tolist()


def nms_problem(case: Case) -> NmsProblem:
    iou, threshold, keep = case.attributes.values()
    boxes, scores = case.inputs
    return NmsProblem(case.reason, boxes.float(), scores.float(), iou, threshold, keep)


def random_nms(seed: int) -> NmsProblem:
    """Clusters of boxes on a grid, so that IoUs and scores tie; a few labels are long."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batch, labels = choose.choice((1, 1, 2, 3)), choose.choice((1, 1, 2, 3, 7))
    candidates = choose.choice((0, 1, 2, 31, 33, 63, 64, 65, 100, 129, 200))
    if choose.random() < 0.12:
        batch, labels, candidates = 1, choose.choice((1, 2)), choose.choice((513, 700, 1030))
    image = choose.choice((6, 20, 60, 200))
    low = torch.randint(-3, image, (batch, labels, candidates, 2), generator=generator)
    sides = torch.randint(0, 12, (batch, labels, candidates, 2), generator=generator)
    boxes = torch.cat((low, low + sides), dim=3).float()
    if choose.random() < 0.3:
        boxes += torch.rand(boxes.shape, generator=generator)
    shape = (batch, labels, candidates)
    steps = choose.choice((3, 20, 1 << 20))
    scores = torch.randint(-steps // 4, steps + 1, shape, generator=generator) / steps
    scores = torch.where(torch.rand(shape, generator=generator) < 0.05, -scores, scores)  # -0 too
    padded = torch.rand(shape, generator=generator) < choose.choice((0.0, 0.0, 0.3, 0.9))
    scores = scores.masked_fill(padded, -math.inf)
    return NmsProblem(
        f"random {seed}",
        boxes,
        scores,
        choose.choice((0.0, 0.25, 0.5, 0.7, 1.0)),
        choose.choice((-math.inf, -1.0, 0.0, 0.05, 0.5)),
        choose.choice((1, 2, 5, 64, 65, 100, 300, 1000)),
        _place(choose, 8),
    )


@functools.cache
def long_nms(candidates: int) -> NmsProblem:
    """Two labels, too long for the kernels to sort in shared memory from 4,097 candidates on."""
    generator = torch.Generator().manual_seed(candidates)
    low = torch.randint(0, 60, (1, 2, candidates, 2), generator=generator)
    sides = torch.randint(10, 60, (1, 2, candidates, 2), generator=generator)
    boxes = torch.cat((low, low + sides), dim=3).float()
    scores = torch.randint(0, 2000, (1, 2, candidates), generator=generator) / 2000
    return NmsProblem(f"{candidates} candidates", boxes, scores, 0.5, 0.05, 300)


# --- lists ---------------------------------------------------------------------------------------

Problem = CarafeProblem | DesignsProblem | ChoiceProblem | RoiAlignProblem | NmsProblem


#: Strips want more than 32 channels a group, packs of 16 bytes groups that begin at them.
def _choices() -> Iterator[ChoiceProblem]:
    """Both sides of every bound of ``kPreferences`` (carafe.cu), and what does not fit."""
    half = torch.float16
    # Channels-last: from 33 channels a group on, and up to 8,192 pixels in float32.
    for channels, groups, expected in (
        (256, 1, "strips_4x4"),
        (36, 1, "strips_4x4"),
        (32, 1, "channels_last"),
        (72, 2, "strips_4x4"),
        (64, 2, "channels_last"),
        (80, 2, "strips_4x4"),
        (76, 2, "any"),
        (34, 1, "any"),
        (2, 1, "any"),
    ):
        yield ChoiceProblem(NHWC, channels, groups, expected)
    for channels, expected in ((256, "strips_2x8"), (32, "channels_last"), (36, "strips_4x4")):
        yield ChoiceProblem(NHWC, channels, 1, expected, dtype=half)
        yield ChoiceProblem(NHWC, channels, 1, expected, dtype=torch.bfloat16)
    for batch, height, expected in (
        (1, 64, "strips_4x4"),
        (1, 65, "strips_2x8"),
        (2, 32, "strips_4x4"),
        (2, 33, "strips_2x8"),
    ):
        yield ChoiceProblem(NHWC, 256, 1, expected, batch=batch, height=height, width=128)
    # One channel is a plane, unless pixels are padded.
    for dtype in (torch.float32, half):
        yield ChoiceProblem(NHWC, 1, 1, "row_pairs", dtype=dtype)
        yield ChoiceProblem(Place(Layout.NHWC, (3, 0, 3)), 1, 1, "strips_4x4", dtype=dtype)
        yield ChoiceProblem(Place(Layout.NHWC, (7, 4, 7)), 1, 1, "strips_4x4", dtype=dtype)
    yield ChoiceProblem(Place(Layout.NHWC, (0, 0, 3)), 1, 1, "any")
    # Planes: from 2,048 pixels of a map on, and up to 512 in all in float32; never one channel.
    for batch, height, width, single, other in (
        (1, 16, 32, "planes", "row_pairs"),
        (1, 27, 19, "row_pairs", "row_pairs"),
        (2, 16, 16, "planes", "row_pairs"),
        (2, 16, 17, "row_pairs", "row_pairs"),
        (1, 32, 64, "planes", "planes"),
        (1, 23, 89, "row_pairs", "row_pairs"),
        (100, 14, 14, "row_pairs", "row_pairs"),
    ):
        shape = {"batch": batch, "height": height, "width": width}
        yield ChoiceProblem(NCHW, 256, 1, single, **shape)
        yield ChoiceProblem(NCHW, 4, 2, single, **shape)
        yield ChoiceProblem(NCHW, 256, 1, other, dtype=half, **shape)
        yield ChoiceProblem(NCHW, 1, 1, "row_pairs", **shape)
    # What does not fit.
    yield ChoiceProblem(NCHW, 8, 1, "any", kernel_size=3)
    yield ChoiceProblem(NCHW, 8, 1, "any", scale=3)
    yield ChoiceProblem(Place(Layout.NCHW, offsets=(1, 1, 0)), 8, 1, "planes")
    yield ChoiceProblem(Place(Layout.NCHW, offsets=(0, 0, 1)), 8, 1, "any")
    offset_masks = Place(Layout.NCHW, offsets=(0, 1, 0))
    yield ChoiceProblem(offset_masks, 8, 1, "row_pairs", source=MaskSource.NORMALIZED)
    yield ChoiceProblem(NHWC, 256, 1, "any", kernel_size=3)
    yield ChoiceProblem(Place(Layout.NHWC, offsets=(2, 0, 0)), 256, 1, "any")
    yield ChoiceProblem(Place(Layout.NHWC, offsets=(0, 0, 2)), 256, 1, "any")
    yield ChoiceProblem(Place(Layout.NHWC, offsets=(4, 0, 4)), 256, 1, "strips_4x4", dtype=half)


DESIGN_CHOICES = list(_choices())


def carafe_problems(dtypes: Sequence[torch.dtype] = HALF_AND_SINGLE) -> list[CarafeProblem]:
    """Every case by entry, dtype and layout."""
    return [
        carafe_problem(case, source, dtype, place)
        for source, name in (
            (MaskSource.NORMALIZED, "carafe"),
            (MaskSource.ENCODED, "carafe_encoded"),
        )
        for case in CASES[name]
        for dtype in dtypes
        for place in (NCHW, NHWC)
    ]


def roi_align_problems() -> list[RoiAlignProblem]:
    """Every case by dtype and layout."""
    return [
        roi_align_problem(case, dtype, place)
        for case in ROI_ALIGN_CASES
        for dtype in HALF_AND_SINGLE
        for place in (NCHW, NHWC)
    ]


def nms_problems() -> list[NmsProblem]:
    """Every case, and those without labels, images or candidates."""
    empty = [
        NmsProblem(
            f"{shape} candidates", torch.zeros(*shape, 4), torch.zeros(shape), 0.5, -1.0, 300
        )
        for shape in ((2, 0, 3), (0, 2, 3), (2, 3, 0))
    ]
    return [nms_problem(case) for case in NMS_CASES] + empty
