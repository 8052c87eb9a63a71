"""CARAFE: Content-Aware ReAssembly of FEatures (Wang et al., ICCV 2019, arXiv:1905.02188).

Two entries share one reassembly. ``carafe`` takes normalised masks and is mmcv's operator;
``carafe_encoded`` takes what CARAFEPack's content encoder puts out, so that pixel shuffle and
softmax need no pass over memory of their own. Both differentiate once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from carafe_deploy.kernels import CarafeParams, KernelLibrary, MaskSource
from carafe_deploy.operators.specification import Attributes, Implementation, Shape
from carafe_deploy.ops import _kernels

if TYPE_CHECKING:
    from onnx import FunctionProto

__all__ = ["carafe", "carafe_encoded", "carafe_encoded_reference", "carafe_reference"]


def carafe(
    features: Tensor, masks: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """Reassemble features with content-aware kernels (arXiv:1905.02188, section 3.2).

    ``out[n,c,i,j] = sum_uv masks[n,(g*k+u)*k+v,i,j] * features[n,c,i//s+u-k//2,j//s+v-k//2]``
    with ``g = c // (C/group_size)``; taps outside the map are zero and nothing is renormalised.
    Equal to mmcv 2.1's CARAFE. Half types are accumulated in float32. Channels-last features give
    a channels-last result.

    Args:
        features: [N, C, H, W], floating.
        masks: [N, group_size * kernel_size**2, scale_factor*H, scale_factor*W], same dtype.
        kernel_size: odd side of a reassembly kernel, in source pixels.
        group_size: number of channel groups with kernels of their own; divides C.
        scale_factor: integer upsampling ratio.

    Returns:
        [N, C, scale_factor*H, scale_factor*W], dtype of ``features``.

    Raises:
        ValueError: a shape, dtype or argument does not fit; the message names it.
    """
    out: Tensor = torch.ops.carafe.carafe(features, masks, kernel_size, group_size, scale_factor)
    return out


def carafe_encoded(
    features: Tensor, encoded: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """Reassemble features with kernels normalised on the fly (section 3.2, equations 2 to 4).

    Equal to ``carafe(features, softmax(pixel_shuffle(encoded, s), over k*k))`` with the softmax
    in float32 (mmcv's CARAFEPack: normaliser and reassembly).

    Args:
        features: [N, C, H, W], floating.
        encoded: [N, scale_factor**2 * group_size * kernel_size**2, H, W], same dtype: channel
            ``((g*k + u)*k + v)*s*s + dy*s + dx``.
        kernel_size: see :func:`carafe`.
        group_size: see :func:`carafe`.
        scale_factor: see :func:`carafe`.

    Returns:
        [N, C, scale_factor*H, scale_factor*W], dtype of ``features``.

    Raises:
        ValueError: a shape, dtype or argument does not fit; the message names it.
    """
    out: Tensor = torch.ops.carafe.carafe_encoded(
        features, encoded, kernel_size, group_size, scale_factor
    )
    return out


# --- reference -----------------------------------------------------------------------------------


def carafe_reference(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """:func:`carafe` in plain PyTorch; float64 inputs are computed in float64."""
    _check(features, masks, kernel_size, group_size, scale_factor, encoded=False)
    return _reassemble(features, _taps(masks, kernel_size, group_size, scale_factor))


def carafe_encoded_reference(
    features: Tensor, encoded: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """:func:`carafe_encoded` in plain PyTorch; float64 inputs are computed in float64."""
    _check(features, encoded, kernel_size, group_size, scale_factor, encoded=True)
    return _reassemble(features, _encoded_taps(encoded, kernel_size, group_size, scale_factor))


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _taps(masks: Tensor, k: int, groups: int, s: int) -> Tensor:
    """View masks as one plane of weights a tap: [N, G, k*k, H, s, W, s]."""
    n, _, height, width = masks.shape
    masks = masks.to(_accumulation_dtype(masks.dtype))
    return masks.reshape(n, groups, k * k, height // s, s, width // s, s)


def _encoded_taps(encoded: Tensor, k: int, groups: int, s: int) -> Tensor:
    """Normalise over the taps, then shuffle: [N, G, k*k, H, s, W, s]."""
    n, _, h, w = encoded.shape
    encoded = encoded.to(_accumulation_dtype(encoded.dtype))
    weights = encoded.reshape(n, groups, k * k, s, s, h, w).softmax(dim=2)
    return weights.permute(0, 1, 2, 5, 3, 6, 4)


def _reassemble(features: Tensor, taps: Tensor) -> Tensor:
    """Sum over taps at source resolution; the s*s outputs of a pixel are two broadcast axes."""
    n, c, h, w = features.shape
    groups, k, s = taps.shape[1], _kernel_size(taps), taps.shape[4]
    out = taps.new_zeros(n, groups, c // groups, h, s, w, s)
    padded = F.pad(features.to(taps.dtype), (k // 2,) * 4)
    for tap in range(k * k):
        u, v = divmod(tap, k)
        source = padded[:, :, u : u + h, v : v + w]
        source = source.reshape(n, groups, c // groups, h, 1, w, 1)
        out.addcmul_(source, taps[:, :, tap].unsqueeze(2))  # [N, G, 1, H, s, W, s]
    return out.reshape(n, c, h * s, w * s).to(features.dtype)


def _reassemble_backward(grad: Tensor, features: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`_reassemble` for features [N, C, H, W] and taps (shape of `taps`)."""
    n, c, h, w = features.shape
    groups, k, s = taps.shape[1], _kernel_size(taps), taps.shape[4]
    r = k // 2
    grad = grad.to(taps.dtype).reshape(n, groups, c // groups, h, s, w, s)
    padded = F.pad(features.to(taps.dtype), (r,) * 4)
    grad_padded = torch.zeros_like(padded)
    grad_taps = torch.empty_like(taps, memory_format=torch.contiguous_format)
    for tap in range(k * k):
        u, v = divmod(tap, k)
        source = padded[:, :, u : u + h, v : v + w].reshape(n, groups, c // groups, h, 1, w, 1)
        grad_taps[:, :, tap] = (grad * source).sum(dim=2)
        pulled = (grad * taps[:, :, tap].unsqueeze(2)).sum(dim=(4, 6))  # [N, G, C/G, H, W]
        grad_padded[:, :, u : u + h, v : v + w] += pulled.reshape(n, c, h, w)
    return grad_padded[:, :, r : r + h, r : r + w].to(features.dtype).contiguous(), grad_taps


def _kernel_size(taps: Tensor) -> int:
    return math.isqrt(taps.shape[2])


def _check(
    features: Tensor, weights: Tensor, k: int, groups: int, s: int, *, encoded: bool
) -> None:
    name = "encoded" if encoded else "masks"
    if k < 1 or k % 2 == 0:
        raise ValueError(f"kernel_size is {k}, expected an odd number of at least 1")
    if groups < 1 or s < 1:
        raise ValueError(f"group_size is {groups}, scale_factor {s}, expected at least 1 each")
    if features.dim() != 4 or weights.dim() != 4:
        raise ValueError(
            f"features has {features.dim()} and {name} {weights.dim()} dimensions, expected 4 each"
        )
    if features.dtype != weights.dtype or not features.is_floating_point():
        raise ValueError(
            f"features is {features.dtype} and {name} {weights.dtype}, "
            "expected one floating-point dtype for both"
        )
    if features.device != weights.device:
        raise ValueError(
            f"features is on {features.device} and {name} on {weights.device}, expected one device"
        )
    n, c, h, w = features.shape
    if c % groups:
        raise ValueError(f"features has {c} channels, not divisible by group_size = {groups}")
    channels, formula, scale = groups * k * k, "group_size*kernel_size**2", s
    if encoded:
        channels, formula, scale = channels * s * s, f"scale_factor**2*{formula}", 1
    if weights.shape[1] != channels:
        raise ValueError(f"{name} has {weights.shape[1]} channels, expected {formula} = {channels}")
    expected = (n, h * scale, w * scale)
    found = (weights.shape[0], weights.shape[2], weights.shape[3])
    if any(a != b for a, b in zip(found, expected, strict=True)):
        raise ValueError(
            f"{name} has batch, height and width {tuple(found)}, expected {tuple(expected)} "
            f"for features {tuple(features.shape)} and scale_factor {s}"
        )


# --- torch operators -----------------------------------------------------------------------------


def _forward(
    features: Tensor, weights: Tensor, k: int, groups: int, s: int, *, encoded: bool
) -> Tensor:
    _check(features, weights, k, groups, s, encoded=encoded)
    library = _kernels.library_for(features, float64_on_cpu=True)
    if library is not None:
        return _by_kernels(library, features, weights, k, groups, s, encoded=encoded)
    taps = (_encoded_taps if encoded else _taps)(weights, k, groups, s)
    out = _reassemble(features, taps)
    return out.contiguous(memory_format=_kernels.memory_format_of(features))


def _by_kernels(
    library: KernelLibrary,
    features: Tensor,
    weights: Tensor,
    k: int,
    groups: int,
    s: int,
    *,
    encoded: bool,
) -> Tensor:
    """Carafe, or CarafeEncoded; channels-last features are read and written as they are.

    A single channel lies in memory alike in either layout, so there the weights have the say and
    are not copied.
    """
    batch, channels, height, width = features.shape
    out = _kernels.empty_in_layout_of(features, batch, channels, height * s, width * s)
    memory_format = _kernels.memory_format_of(weights if channels == 1 else features)
    features = features.contiguous(memory_format=memory_format)
    weights = weights.contiguous(memory_format=memory_format)
    params = CarafeParams(
        dtype=_kernels.KERNEL_DTYPES[features.dtype],
        layout=_kernels.layout_of(memory_format),
        source=MaskSource.ENCODED if encoded else MaskSource.NORMALIZED,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=k,
        groups=groups,
        scale=s,
        feature_pitch=channels,
        mask_pitch=weights.shape[1],
        out_pitch=channels,
    )
    with _kernels.launching_on(features) as where:
        addresses = (tensor.data_ptr() for tensor in (features, weights, out))
        library.carafe(params, *addresses, **where)
    return out


def _carafe_backward(
    grad: Tensor, features: Tensor, masks: Tensor, k: int, groups: int, s: int
) -> tuple[Tensor, Tensor]:
    taps = _taps(masks, k, groups, s)
    grad_features, grad_taps = _reassemble_backward(grad, features, taps)
    return grad_features, grad_taps.reshape(masks.shape).to(masks.dtype)


def _carafe_encoded_backward(
    grad: Tensor, features: Tensor, encoded: Tensor, k: int, groups: int, s: int
) -> tuple[Tensor, Tensor]:
    taps = _encoded_taps(encoded, k, groups, s)
    grad_features, grad_taps = _reassemble_backward(grad, features, taps)
    grad_taps = taps * (grad_taps - (taps * grad_taps).sum(dim=2, keepdim=True))  # softmax
    grad_encoded = grad_taps.permute(0, 1, 2, 4, 6, 3, 5).reshape(encoded.shape)
    return grad_features, grad_encoded.to(encoded.dtype)


def _fake(
    features: Tensor, weights: Tensor, k: int, groups: int, s: int, *, encoded: bool
) -> Tensor:
    _check(features, weights, k, groups, s, encoded=encoded)
    n, c, h, w = features.shape
    return _kernels.empty_in_layout_of(features, n, c, h * s, w * s)


# --- ONNX ----------------------------------------------------------------------------------------


def _body(
    attributes: Attributes, shapes: Sequence[Shape | None], opset: int, *, encoded: bool
) -> FunctionProto:
    """The number of channels decides the decomposition, where it is known."""
    from carafe_deploy.ops._body_carafe import carafe_body, choose_carafe_variant

    k, groups, s = (attributes[name] for name in ("kernel_size", "group_size", "scale_factor"))
    variant = choose_carafe_variant(shapes[0][1] if shapes[0] else None)
    return carafe_body(
        kernel_size=k,
        group_size=groups,
        scale_factor=s,
        encoded=encoded,
        opset=opset,
        overload=f"k{k}_g{groups}_s{s}_{variant}",
        variant=variant,
    )


IMPLEMENTATIONS = {
    "carafe": Implementation(
        forward=partial(_forward, encoded=False),
        fake=partial(_fake, encoded=False),
        reference=carafe_reference,
        body=partial(_body, encoded=False),
        gradients=_carafe_backward,
        has_kernels=True,
    ),
    "carafe_encoded": Implementation(
        forward=partial(_forward, encoded=True),
        fake=partial(_fake, encoded=True),
        reference=carafe_encoded_reference,
        body=partial(_body, encoded=True),
        gradients=_carafe_encoded_backward,
        has_kernels=True,
    ),
}
