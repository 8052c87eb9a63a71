"""Shapes of the workloads, what is counted from them, and how their values are distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from carafe_deploy import ops
from carafe_deploy.bench.workloads import WORKLOADS, ShapedCall, Variant, Workload
from carafe_deploy.operators import OPERATORS
from carafe_deploy.operators.carafe import CarafeCall
from carafe_deploy.operators.nms import NmsCall
from carafe_deploy.operators.roi_align import RoiAlignCall, assign_levels
from carafe_deploy.operators.specification import IMAGE, STRIDES
from carafe_deploy.types import OperatorCall

ALL = [workload for workloads in WORKLOADS.values() for workload in workloads]
FLOAT32 = Variant("float32", "nchw")


def named(name: str) -> Workload:
    return next(workload for workload in ALL if workload.name == name)


def flat(items: Any) -> list[Tensor]:
    if isinstance(items, Tensor):
        return [items]
    return [tensor for item in items for tensor in flat(item)]


def on_meta(items: Any) -> Any:
    if isinstance(items, Tensor):
        return items.to("meta")
    return type(items)(on_meta(item) for item in items)


def num_bytes(items: Any) -> int:
    return sum(tensor.nbytes for tensor in flat(items))


def test_the_neck_moves_128_megabytes() -> None:
    """What must move: features, encoder output and result; 0.59 G multiply-adds."""
    neck = named("neck, all four")
    parts = [sum(call.elements[i] for call in neck.calls) * 4 / 1e6 for i in range(3)]
    assert parts == pytest.approx([23.8, 9.3, 95.0], abs=0.06)
    assert neck.num_bytes(FLOAT32) / 1e6 == pytest.approx(128, abs=0.2)
    assert neck.num_bytes(Variant("float16", "nchw")) == neck.num_bytes(FLOAT32) / 2
    assert neck.flops / 2e9 == pytest.approx(0.59, abs=0.005)


def test_the_neck_is_the_sum_of_its_levels() -> None:
    levels = [workload for workload in ALL if workload.name.startswith("neck P")]
    sizes = [(call.height, call.width) for level in levels for call in level.calls]
    assert sizes == [(13, 21), (26, 42), (52, 84), (104, 168)]
    assert named("neck, all four").calls == tuple(level.calls[0] for level in levels)


@pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)
def test_bytes_are_those_of_inputs_and_results(workload: Workload) -> None:
    """Results are made on torch's meta device, by the operator's own rule for shapes."""
    entry = getattr(ops, workload.calls[0].entry)
    counted = 0
    for call, inputs in zip(workload.calls, workload.inputs(), strict=True):
        counted += num_bytes(inputs) + num_bytes(entry(*on_meta(inputs), **call.attributes))
    assert workload.num_bytes(FLOAT32) == counted


def test_masks_take_as_many_bytes_as_encoder_output() -> None:
    call = CarafeCall(2, 8, 3, 4, kernel_size=3, group_size=2, scale_factor=3)
    features, encoded = call.inputs(torch.Generator())
    masks = torch.pixel_shuffle(encoded, 3)
    out = ops.carafe(features.to("meta"), masks.to("meta"), **call.attributes)
    assert call.num_bytes(4) == features.nbytes + masks.nbytes + out.nbytes
    assert call.flops == 2 * out.numel() * 9


def test_rois_are_float32_in_every_variant() -> None:
    call = RoiAlignCall(rois=10, output_size=2, channels=3, maps=((4, 6), (2, 3)))
    assert call.num_bytes(4) - call.num_bytes(2) == 2 * 3 * (24 + 6 + 10 * 4)


@pytest.mark.parametrize(
    "call",
    [CarafeCall(2, 8, 3, 4, 3, 2), RoiAlignCall(5, 3), NmsCall(3, 40, 20, 0.5, 0.05, objects=6)],
    ids=lambda call: call.entry,
)
def test_a_call_known_by_its_shapes_costs_the_same(call: Any) -> None:
    shapes = tuple(tuple(t.shape) for t in flat(call.inputs(torch.Generator())))
    shaped = ShapedCall(OperatorCall(call.entry, shapes, call.attributes))
    assert [shaped.num_bytes(size) for size in (4, 2)] == [call.num_bytes(size) for size in (4, 2)]
    inputs = shaped.inputs(torch.Generator())
    assert tuple(tuple(t.shape) for t in flat(inputs)) == shapes
    getattr(torch.ops.carafe, call.entry)(*inputs, **call.attributes)
    assert shaped.entry in OPERATORS


def test_names_are_unique_and_all_is_there() -> None:
    assert list(WORKLOADS) == ["carafe", "rpn_candidates", "roi_align", "box_candidates", "nms"]
    assert len({workload.name for workload in ALL}) == len(ALL) == 13 + 2 + 4 + 2
    kernels = {
        (call.kernel_size, call.group_size)
        for workload in WORKLOADS["carafe"]
        for call in workload.calls
        if isinstance(call, CarafeCall)
    }
    assert kernels == {(k, groups) for k in (3, 5, 7) for groups in (1, 4)}


def test_variants() -> None:
    neck, level = named("neck, all four"), named("neck P3 to P2, 256x104x168")
    assert neck.variants()[0] == level.variants()[0] == FLOAT32
    assert level.variants() == (FLOAT32,)
    assert neck.variants() == neck.variants(full=True) == level.variants(full=True)
    assert len(neck.variants()) == 6
    for workload in WORKLOADS["nms"]:
        assert workload.variants(full=True) == (Variant("float32", ""),)
    for workload in WORKLOADS["box_candidates"]:
        assert [(v.dtype, v.layout) for v in workload.variants()] == [
            (dtype, "") for dtype in ("float32", "float16", "bfloat16")
        ]


@pytest.mark.parametrize("variant", named("neck, all four").variants(), ids=str)
def test_a_variant_gives_type_and_layout(variant: Variant) -> None:
    found = variant.arranged(torch.randn(2, 3, 4, 5), torch.device("cpu"))
    assert str(found.dtype) == f"torch.{variant.dtype}"
    last = variant.layout == "channels-last"
    assert found.is_contiguous(memory_format=torch.channels_last) == last
    assert found.is_contiguous() != last


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["neck P6 to P5, 256x13x21", "mask head, 100 RoIs, 14x14", "RPN, 5x1000"]
)
def test_values_are_the_same_every_time(name: str) -> None:
    first, second = (flat(named(name).inputs()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(tensor.dtype == torch.float32 for tensor in first)


def test_rois_lie_in_the_image_and_on_all_levels() -> None:
    [(rois, maps)] = named("box head, 1000 RoIs, 7x7").inputs()
    height, width = IMAGE
    assert rois.min() >= 0
    assert (rois <= torch.tensor([width, height, width, height])).all()
    assert (rois[..., 2:] > rois[..., :2]).all()
    shares = assign_levels(rois[0], 4, 56).bincount(minlength=4) / 1000
    assert shares[0].item() == pytest.approx(0.5, abs=0.1)
    assert shares.min() > 0.05
    assert [tuple(level.shape[2:]) for level in maps] == [
        (height // stride, width // stride) for stride in STRIDES[:4]
    ]


@pytest.mark.parametrize("workload", WORKLOADS["nms"], ids=lambda workload: workload.name)
def test_no_rounding_or_tie_decides_what_nms_keeps(workload: Workload) -> None:
    [(boxes, scores)] = workload.inputs()
    threshold = workload.calls[0].attributes["score_threshold"]
    above = scores[scores > threshold]
    assert len(above.unique()) == len(above)
    assert torch.equal(boxes * 2, (boxes * 2).round())
    height, width = IMAGE
    assert boxes.min() >= 0
    assert (boxes <= torch.tensor([width, height, width, height])).all()


def test_scores_of_the_box_head() -> None:
    [(_, scores)] = named("box head, 80x1000").inputs()
    shares = (scores[0] > 0.05).float().mean(dim=1)
    present = torch.arange(80) % 10 == 0
    assert shares[present].mean().item() == pytest.approx(0.13, abs=0.01)
    assert shares[~present].mean().item() == pytest.approx(0.002, abs=0.001)
    [(_, worst)] = named("box head, 80x1000, all above the threshold").inputs()
    assert (worst > 0.05).all()


def test_candidates_of_the_rpn() -> None:
    """Best first in a level; P6 has 819 anchors, padded to a thousand."""
    [(boxes, scores)] = named("RPN, 5x1000").inputs()
    assert torch.equal(scores, scores.sort(dim=2, descending=True).values)
    padding = scores[0].isinf().sum(dim=1)
    assert padding.tolist() == [0, 0, 0, 0, 1000 - 3 * 13 * 21]
    assert (boxes[scores.isinf()] == 0).all()


@pytest.mark.parametrize("workload", WORKLOADS["nms"], ids=lambda workload: workload.name)
def test_nms_suppresses_many_and_keeps_many(workload: Workload) -> None:
    [inputs], [call] = workload.inputs(), workload.calls
    assert isinstance(call, NmsCall)
    attributes = {**call.attributes, "max_output": call.labels * call.candidates}
    count, _ = ops.batched_nms(*inputs, **attributes)
    above = int((inputs[1] > call.score_threshold).sum())
    assert 0.05 * above < int(count) < 0.8 * above
    assert int(count) > call.max_output
