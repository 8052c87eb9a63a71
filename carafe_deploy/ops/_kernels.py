"""The operators on torch tensors by libcarafe_kernels.so: where it serves, and how it is called.

Tensors have passed the operators' own checks. The library is loaded at the first call that could
use it; ``CARAFE_DEPLOY_KERNELS=off`` keeps everything in PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.libraries import find_library, missing
from carafe_deploy.ops._library import (
    CarafeParams,
    Device,
    DType,
    KernelLibrary,
    Layout,
    MaskSource,
    NmsParams,
    RoiAlignParams,
)

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "batched_nms",
    "carafe",
    "empty_in_layout_of",
    "kernel_library",
    "library_for",
    "memory_format_of",
    "multilevel_roi_align",
    "plain_operators",
]

#: ``off`` keeps the operators in PyTorch, to compare the two; unset or ``auto`` takes the kernels.
ENVIRONMENT_VARIABLE = "CARAFE_DEPLOY_KERNELS"

_DTYPES = {
    torch.float32: DType.FLOAT32,
    torch.float16: DType.FLOAT16,
    torch.bfloat16: DType.BFLOAT16,
    torch.float64: DType.FLOAT64,
}


_plain: ContextVar[bool] = ContextVar("plain", default=False)


# --- which library -------------------------------------------------------------------------------


@functools.cache
def kernel_library() -> KernelLibrary | None:
    """The library, loaded once; None where there is none or it is switched off.

    Warns:
        UserWarning: once, when there is no library.
    Raises:
        BackendUnavailableError: a library is there but cannot be used, or a variable is wrong.
    """
    choice = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if choice not in ("auto", "off"):
        raise BackendUnavailableError(
            f"{ENVIRONMENT_VARIABLE} is {choice!r}, expected 'auto' or 'off'"
        )
    if choice == "off":
        return None
    path = find_library("carafe_kernels")
    if path is None:
        warnings.warn(
            "carafe_deploy computes its operators in plain PyTorch, which is slower: "
            f"{missing('carafe_kernels')}; {ENVIRONMENT_VARIABLE}=off silences this",
            stacklevel=2,
        )
        return None
    return KernelLibrary(path)


def library_for(tensor: Tensor, *, float64_on_cpu: bool = False) -> KernelLibrary | None:
    """The library, if it computes on the tensor's device and in its dtype."""
    if _plain.get() or tensor.device.type not in ("cpu", "cuda") or tensor.dtype not in _DTYPES:
        return None
    on_cuda = tensor.device.type == "cuda"
    if tensor.dtype == torch.float64 and (on_cuda or not float64_on_cpu):
        return None
    library = kernel_library()
    if library is None or (on_cuda and not library.has_cuda):
        return None
    return library


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Inside, the operators are computed by PyTorch itself, to hold the kernels against it."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


# --- layouts -------------------------------------------------------------------------------------


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Channels-last for [N, C, H, W] that is dense that way and no other; else contiguous.

    Results take their layout from here, whoever computes them, so that a graph traced with or
    without the library is the same.
    """
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def empty_in_layout_of(tensor: Tensor, *shape: int) -> Tensor:
    """Uninitialised, of the given four sizes; dtype, device and layout of ``tensor``."""
    return torch.empty(
        shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format_of(tensor)
    )


def _layout(memory_format: torch.memory_format) -> Layout:
    return Layout.NHWC if memory_format == torch.channels_last else Layout.NCHW


# --- calls ---------------------------------------------------------------------------------------


def _guard(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one, where the library launches."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def _stream(tensor: Tensor) -> int:
    """The stream that PyTorch's own kernels would take now."""
    if tensor.device.type == "cuda":
        stream: int = torch.cuda.current_stream(tensor.device).cuda_stream
        return stream
    return 0


def _device(tensor: Tensor) -> Device:
    return Device.CUDA if tensor.device.type == "cuda" else Device.CPU


def carafe(
    library: KernelLibrary,
    features: Tensor,
    weights: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    *,
    encoded: bool,
) -> Tensor:
    """Carafe, or CarafeEncoded; channels-last features are read and written as they are.

    A single channel lies in memory alike in either layout, so there the weights have the say and
    are not copied.
    """
    batch, channels, height, width = features.shape
    out = empty_in_layout_of(features, batch, channels, height * scale, width * scale)
    memory_format = memory_format_of(weights if channels == 1 else features)
    features = features.contiguous(memory_format=memory_format)
    weights = weights.contiguous(memory_format=memory_format)
    params = CarafeParams(
        dtype=_DTYPES[features.dtype],
        layout=_layout(memory_format),
        source=MaskSource.ENCODED if encoded else MaskSource.NORMALIZED,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=kernel_size,
        groups=groups,
        scale=scale,
        feature_pitch=channels,
        mask_pitch=weights.shape[1],
        out_pitch=channels,
    )
    with _guard(features):
        library.carafe(
            params,
            features.data_ptr(),
            weights.data_ptr(),
            out.data_ptr(),
            device=_device(features),
            stream=_stream(features),
            threads=torch.get_num_threads(),
        )
    return out


def multilevel_roi_align(
    library: KernelLibrary,
    rois: Tensor,
    features: Sequence[Tensor],
    output_size: int,
    sampling_ratio: int,
    strides: Sequence[int],
    finest_scale: int,
) -> Tensor:
    """MultilevelRoiAlign in the layout of the finest map: [B*K, C, S, S]."""
    memory_format = memory_format_of(features[0])
    maps = [feature.contiguous(memory_format=memory_format) for feature in features]
    rois = rois.contiguous()
    batch, count, _ = rois.shape
    channels = maps[0].shape[1]
    out = empty_in_layout_of(maps[0], batch * count, channels, output_size, output_size)
    params = RoiAlignParams(
        dtype=_DTYPES[maps[0].dtype],
        layout=_layout(memory_format),
        batch=batch,
        rois=count,
        channels=channels,
        levels=len(maps),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        finest_scale=finest_scale,
        heights=tuple(feature.shape[2] for feature in maps),
        widths=tuple(feature.shape[3] for feature in maps),
        strides=tuple(strides),
        feature_pitch=channels,
        out_pitch=channels,
    )
    with _guard(rois):
        library.multilevel_roi_align(
            params,
            rois.data_ptr(),
            [feature.data_ptr() for feature in maps],
            out.data_ptr(),
            device=_device(rois),
            stream=_stream(rois),
            threads=torch.get_num_threads(),
        )
    return out


def _float_at_most(value: float) -> float:
    """The largest float32 that is not above ``value``: a float32 exceeds both or neither."""
    rounded = np.float32(value)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded if float(rounded) <= value else below)


def batched_nms(
    library: KernelLibrary,
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """BatchedNms; boxes are float32."""
    boxes, scores = boxes.contiguous(), scores.contiguous()
    batch, labels, candidates = scores.shape
    params = NmsParams(
        batch=batch,
        labels=labels,
        candidates=candidates,
        max_output=max_output,
        iou_threshold=_float_at_most(iou_threshold),
        score_threshold=score_threshold,
    )
    num_dets = boxes.new_empty((batch, 1), dtype=torch.int32)
    indices = boxes.new_empty((batch, max_output), dtype=torch.int64)
    on_cuda = boxes.device.type == "cuda"
    size = library.batched_nms_workspace(params) if on_cuda else 0
    workspace = boxes.new_empty(size, dtype=torch.uint8)
    with _guard(boxes):
        library.batched_nms(
            params,
            boxes.data_ptr(),
            scores.data_ptr(),
            num_dets.data_ptr(),
            indices.data_ptr(),
            workspace=workspace.data_ptr(),
            device=_device(boxes),
            stream=_stream(boxes),
            threads=torch.get_num_threads(),
        )
    return num_dets, indices
