"""ONNX function body of MultilevelRoiAlign."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from carafe_deploy.operators.roi_align import MULTILEVEL_ROI_ALIGN
from carafe_deploy.ops.body_writer import FLOAT, INT64, BodyWriter, Given

__all__ = ["multilevel_roi_align_body"]

_FAR_OUTSIDE = -1e9


def multilevel_roi_align_body(
    *,
    num_levels: int,
    sampling_ratio: int,
    strides: Sequence[int],
    finest_scale: int,
    opset: int,
    overload: str,
) -> onnx.FunctionProto:
    """Function for ``MultilevelRoiAlign(rois, features0, features1, ...)``.

    ``output_size`` is taken from the node at run time, so that one function serves both heads.

    Each level pools its own RoIs only: a large RoI has hundreds of times more samples on the
    finest level than on its own. The results are put back in order by one gather. Levels without
    RoIs, and no RoIs at all, are fine; a RoI that is not finite pools to zeros. ONNX Runtime's CPU
    provider (1.32) has no kernel for RoiAlign of opset 22: models for it stay at opset 21 or lower.

    Args:
        num_levels: number of feature maps.
        sampling_ratio: samples a bin and axis; 0 takes ``ceil(RoI side / S)`` in level pixels.
        strides: of the levels, in image pixels.
        finest_scale: RoIs with sqrt(area) below ``2*finest_scale`` pixels go to level 0.
        opset: version of the standard operators, 18 or later.
        overload: tells this function from others of the same name in a model.

    Returns:
        Function with inputs [B, K, 4] float32 and one [B, C, H_l, W_l] a level, and one output
        [B, K, C, S, S] of the features' type.
    """
    body = BodyWriter()
    features = [f"features{level}" for level in range(num_levels)]
    batch, count = body.dims("rois", 2)
    right = body.called_with(
        sampling_ratio=sampling_ratio, strides=tuple(strides), finest_scale=finest_scale
    )
    total = body.Mul(body.Mul(batch, count), right)
    rois = body.reshape("rois", total, 4)
    # ONNX Runtime refuses RoIs that are not finite; one far outside pools to zeros. Only a finite
    # number times zero is zero.
    finite = body.Equal(body.ReduceSum(body.Mul(rois, 0.0), 1), 0.0)  # [K, 1]
    rois = body.Where(finite, rois, _FAR_OUTSIDE)
    low, high = body.Split(rois, axis=1, num_outputs=2, out=2)
    levels = _levels(body, body.Sub(high, low), num_levels, finest_scale)
    if sampling_ratio == 0:
        # An RoI turned inside out has no samples, as one without area; ONNX Runtime would fail
        # on its negative number of them.
        rois = body.Concat(low, body.Max(low, high), axis=1)
    images = body.Unsqueeze(body.arange(batch), 1)
    images = body.reshape(body.Expand(images, body.Concat(batch, count, axis=0)), total)

    chosen, pooled = [], []
    for level, (name, stride) in enumerate(zip(features, strides, strict=True)):
        index = body.Squeeze(body.NonZero(body.Equal(levels, level)), 0)
        chosen.append(index)
        pooled.append(
            body.RoiAlign(
                body.Cast(name, to=FLOAT),
                body.Gather(rois, index),
                body.Gather(images, index),
                output_height=Given("output_size"),
                output_width=Given("output_size"),
                sampling_ratio=sampling_ratio,
                spatial_scale=1.0 / stride,
                coordinate_transformation_mode="half_pixel",  # torchvision's aligned=True
            )
        )
    by_level, by_roi = body.Concat(*chosen, axis=0), body.arange(total)
    row = body.ScatterElements(by_roi, by_level, by_roi)  # inverse permutation
    result = body.Gather(body.Concat(*pooled, axis=0), row)
    _, channels = body.dims(features[0], 2)
    side = body.given("output_size")
    result = body.reshape(result, batch, count, channels, side, side)
    body.CastLike(result, features[0], out="out")
    return body.function(
        MULTILEVEL_ROI_ALIGN, opset=opset, overload=overload, tensors=1 + num_levels
    )


def _levels(body: BodyWriter, sides: str, num_levels: int, finest_scale: int) -> str:
    """[K] int64: how many powers of two, from 2 on, the RoI's relative scale reaches."""
    # The scale of negative sides is NaN, which reaches none.
    scale = body.Sqrt(body.ReduceProd(sides, 1))  # [K, 1]
    scale = body.Add(body.Div(scale, float(finest_scale)), 1e-6)
    powers = np.exp2(np.arange(1, num_levels)).astype(np.float32)
    reached = body.Cast(body.GreaterOrEqual(scale, powers), to=INT64)
    name: str = body.ReduceSum(reached, 1, keepdims=0)
    return name
