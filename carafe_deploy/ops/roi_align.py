"""Multilevel RoIAlign: pick a pyramid level for every RoI and pool it there, in one operator.

mmdetection's SingleRoIExtractor over mmcv's aligned RoIAlign (Mask R-CNN, arXiv:1703.06870,
section 3; level assignment of FPN, arXiv:1612.03144, equation 1), with a fixed output shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from carafe_deploy.kernels import MAX_LEVELS, KernelLibrary, RoiAlignParams
from carafe_deploy.operators.roi_align import assign_levels
from carafe_deploy.operators.specification import Attributes, Implementation, Shape
from carafe_deploy.ops import _kernels

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = ["multilevel_roi_align", "multilevel_roi_align_reference"]

Maps = Sequence[Tensor]


def multilevel_roi_align(
    rois: Tensor,
    features: Sequence[Tensor],
    *,
    output_size: int,
    sampling_ratio: int,
    strides: Sequence[int],
    finest_scale: int,
) -> Tensor:
    """Pool every RoI from the pyramid level of its size.

    With ``sampling_ratio`` 0 a RoI without area has no samples and pools to zeros, so padding rows
    of zeros cost nothing. A RoI that is not finite pools to zeros whatever the ratio.

    Args:
        rois: [B, K, 4] float32: x1, y1, x2, y2 in image pixels; row b belongs to image b. Always
            float32, because half types are off by up to half a pixel beyond x = 1000.
        features: one map [B, C, H_l, W_l] a level, finest first, all of one floating dtype.
        output_size: side S of the pooled map in bins.
        sampling_ratio: samples a bin and axis; 0 takes ``ceil(RoI side / S)`` in level pixels.
        strides: of the levels, in image pixels.
        finest_scale: RoIs with sqrt(area) below ``2*finest_scale`` pixels go to level 0.

    Returns:
        [B, K, C, S, S], dtype of the features; flattened to [B*K, C, S, S] it is channels-last when
        the finest map is.

    Raises:
        ValueError: a shape, dtype or argument does not fit; the message names it.
    """
    out: Tensor = torch.ops.carafe.multilevel_roi_align(
        rois, list(features), output_size, sampling_ratio, list(strides), finest_scale
    )
    return out


# --- reference -----------------------------------------------------------------------------------


def multilevel_roi_align_reference(
    rois: Tensor, features: Maps, size: int, ratio: int, strides: Sequence[int], finest: int
) -> Tensor:
    """:func:`multilevel_roi_align` in plain PyTorch, one RoI at a time; float64 stays float64."""
    _check(rois, features, size, ratio, strides, finest)
    batch, count, _ = rois.shape
    out = features[0].new_zeros(batch, count, features[0].shape[1], size, size)
    levels = assign_levels(rois.float(), len(features), finest)
    for b in range(batch):
        for k in range(count):
            level = int(levels[b, k])
            roi = rois[b, k] / strides[level] - 0.5
            out[b, k] = _pool_one(roi, features[level][b], size, ratio)
    return out


def _pool_one(roi: Tensor, feature: Tensor, size: int, sampling_ratio: int) -> Tensor:
    """Average of bilinear samples in each of size*size bins; `roi` in level pixels, [C, H, W]."""
    feature = feature.to(torch.float64 if feature.dtype == torch.float64 else torch.float32)
    x1, y1, x2, y2 = (float(v) for v in roi)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return feature.new_zeros(feature.shape[0], size, size)
    rows = _samples(y1, y2, size, sampling_ratio, feature.shape[1])
    columns = _samples(x1, x2, size, sampling_ratio, feature.shape[2])
    if rows is None or columns is None:
        return feature.new_zeros(feature.shape[0], size, size)
    # Bilinear interpolation is separable, and a sample outside is zero on both axes.
    rows, columns = rows.to(feature), columns.to(feature)
    return torch.einsum("yh,chw,xw->cyx", rows, feature, columns)


def _samples(
    start: float, stop: float, size: int, sampling_ratio: int, length: int
) -> Tensor | None:
    """Weights [size, length] that average one axis' samples into bins; None without samples."""
    extent = stop - start
    count = sampling_ratio if sampling_ratio > 0 else math.ceil(extent / size)
    if count <= 0:
        return None
    bins = torch.arange(size, dtype=torch.float64).view(-1, 1)
    offsets = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    at = start + (bins + offsets) * (extent / size)  # [size, count]
    inside = (at >= -1.0) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor().clamp(max=max(length - 2, 0))
    weights = torch.zeros(size, length, dtype=torch.float64)
    for corner, share in ((low, 1 - (at - low)), (low + 1, at - low)):
        valid = inside & (corner <= length - 1)
        weights.scatter_add_(1, corner.clamp(max=length - 1).long(), share * valid / count)
    return weights


def _check(
    rois: Tensor, features: Maps, size: int, ratio: int, strides: Sequence[int], finest: int
) -> None:
    if rois.dim() != 3 or rois.shape[2] != 4:
        raise ValueError(f"rois has shape {tuple(rois.shape)}, expected [B, K, 4]")
    if rois.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rois is {rois.dtype}, expected float32 whatever the features' dtype")
    if not features or len(features) != len(strides):
        raise ValueError(
            f"{len(features)} feature maps for {len(strides)} strides, expected one each"
        )
    if size < 1 or ratio < 0 or finest < 1 or min(strides) < 1:
        raise ValueError(
            f"output_size {size}, sampling_ratio {ratio}, finest_scale "
            f"{finest}, strides {list(strides)}: only sampling_ratio may be zero"
        )
    first = features[0]
    for level, feature in enumerate(features):
        if feature.dim() != 4 or not feature.is_floating_point():
            raise ValueError(
                f"feature map {level} is {feature.dtype} of shape {tuple(feature.shape)}, "
                "expected floating point [B, C, H, W]"
            )
        if feature.dtype != first.dtype or feature.device != rois.device:
            raise ValueError(
                f"feature map {level} is {feature.dtype} on {feature.device}, expected "
                f"{first.dtype} on {rois.device}"
            )
        if feature.shape[0] != rois.shape[0] or feature.shape[1] != first.shape[1]:
            raise ValueError(
                f"feature map {level} has batch and channels {tuple(feature.shape[:2])}, expected "
                f"{(rois.shape[0], first.shape[1])}"
            )


# --- torch operator ------------------------------------------------------------------------------


def _multilevel_roi_align(
    rois: Tensor, features: Maps, size: int, ratio: int, strides: Sequence[int], finest: int
) -> Tensor:
    _check(rois, features, size, ratio, strides, finest)
    batch, count, _ = rois.shape
    library = _kernels.library_for(features[0])
    if library is not None and rois.dtype == torch.float32 and len(features) <= MAX_LEVELS:
        out = _by_kernels(library, rois, features, size, ratio, strides, finest)
    else:
        out = _by_torchvision(rois, features, size, ratio, strides, finest)
    return out.view(batch, count, out.shape[1], size, size)


def _by_kernels(
    library: KernelLibrary,
    rois: Tensor,
    features: Maps,
    size: int,
    ratio: int,
    strides: Sequence[int],
    finest: int,
) -> Tensor:
    """MultilevelRoiAlign in the layout of the finest map: [B*K, C, S, S]."""
    memory_format = _kernels.memory_format_of(features[0])
    maps = [feature.contiguous(memory_format=memory_format) for feature in features]
    rois = rois.contiguous()
    batch, count, _ = rois.shape
    channels = maps[0].shape[1]
    out = _kernels.empty_in_layout_of(maps[0], batch * count, channels, size, size)
    params = RoiAlignParams(
        dtype=_kernels.KERNEL_DTYPES[maps[0].dtype],
        layout=_kernels.layout_of(memory_format),
        batch=batch,
        rois=count,
        channels=channels,
        levels=len(maps),
        output_size=size,
        sampling_ratio=ratio,
        finest_scale=finest,
        heights=tuple(feature.shape[2] for feature in maps),
        widths=tuple(feature.shape[3] for feature in maps),
        strides=tuple(strides),
        feature_pitch=channels,
        out_pitch=channels,
    )
    with _kernels.launching_on(rois) as where:
        addresses = [feature.data_ptr() for feature in maps]
        library.multilevel_roi_align(params, rois.data_ptr(), addresses, out.data_ptr(), **where)
    return out


def _by_torchvision(
    rois: Tensor, features: Maps, size: int, ratio: int, strides: Sequence[int], finest: int
) -> Tensor:
    """One call of torchvision's operator a level: [B*K, C, S, S]."""
    from torchvision.ops import roi_align  # takes seconds, which the kernels spare

    batch, count, _ = rois.shape
    channels, dtype = features[0].shape[1], features[0].dtype
    # float32 RoIs need float32 features in torchvision; nothing is lost for the half types.
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (batch * count, channels, size, size)
    out = _kernels.empty_in_layout_of(features[0], *shape).zero_()
    levels = assign_levels(rois.float(), len(features), finest).flatten()
    image = torch.arange(batch, device=rois.device).repeat_interleave(count)
    boxes = torch.cat((image.unsqueeze(1).to(compute), rois.reshape(-1, 4).to(compute)), dim=1)
    has_samples = boxes.isfinite().all(dim=1)  # torchvision reads out of bounds for others
    if ratio == 0:
        has_samples &= (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 4] > boxes[:, 2])
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (has_samples & (levels == level)).nonzero().squeeze(1)
        if chosen.numel() and feature.numel():  # torchvision reads an empty map
            pooled = roi_align(
                feature.to(compute),
                boxes[chosen],
                size,
                spatial_scale=1.0 / stride,
                sampling_ratio=ratio,
                aligned=True,
            )
            out[chosen] = pooled.to(dtype)
    return out


def _fake(
    rois: Tensor, features: Maps, size: int, ratio: int, strides: Sequence[int], finest: int
) -> Tensor:
    _check(rois, features, size, ratio, strides, finest)
    (batch, count, _), channels = rois.shape, features[0].shape[1]
    shape = (batch * count, channels, size, size)
    out = _kernels.empty_in_layout_of(features[0], *shape)
    return out.view(batch, count, channels, size, size)


# --- ONNX ----------------------------------------------------------------------------------------


def _body(attributes: Attributes, shapes: Sequence[Shape | None], opset: int) -> FunctionProto:
    from carafe_deploy.ops._body_roi_align import multilevel_roi_align_body

    ratio, finest = attributes["sampling_ratio"], attributes["finest_scale"]
    strides = tuple(attributes["strides"])
    return multilevel_roi_align_body(
        num_levels=len(strides),
        sampling_ratio=ratio,
        strides=strides,
        finest_scale=finest,
        opset=opset,
        overload=f"r{ratio}_f{finest}_l{'_'.join(map(str, strides))}",
    )


IMPLEMENTATIONS = {
    "multilevel_roi_align": Implementation(
        forward=_multilevel_roi_align,
        fake=_fake,
        reference=multilevel_roi_align_reference,
        body=_body,
        has_kernels=True,
    )
}
