"""CARAFE: Content-Aware ReAssembly of FEatures (Wang et al., ICCV 2019, arXiv:1905.02188).

Two entries share one reassembly. ``carafe`` takes normalised masks and is mmcv's operator;
``carafe_encoded`` takes what CARAFEPack's content encoder puts out, so that pixel shuffle and
softmax need no pass over memory of their own. Both differentiate once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carafe_deploy.ops import _kernels
from carafe_deploy.ops._registry import PLUGIN_ATTRIBUTES, define, onnx_operator

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


def _carafe(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    _check(features, masks, kernel_size, group_size, scale_factor, encoded=False)
    library = _kernels.library_for(features, float64_on_cpu=True)
    if library is not None:
        return _kernels.carafe(
            library, features, masks, kernel_size, group_size, scale_factor, encoded=False
        )
    return _in_layout_of(
        features, _reassemble(features, _taps(masks, kernel_size, group_size, scale_factor))
    )


def _carafe_encoded(
    features: Tensor, encoded: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    _check(features, encoded, kernel_size, group_size, scale_factor, encoded=True)
    library = _kernels.library_for(features, float64_on_cpu=True)
    if library is not None:
        return _kernels.carafe(
            library, features, encoded, kernel_size, group_size, scale_factor, encoded=True
        )
    taps = _encoded_taps(encoded, kernel_size, group_size, scale_factor)
    return _in_layout_of(features, _reassemble(features, taps))


def _in_layout_of(features: Tensor, out: Tensor) -> Tensor:
    return out.contiguous(memory_format=_kernels.memory_format_of(features))


def _carafe_backward(
    grad: Tensor,
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> tuple[Tensor, Tensor]:
    taps = _taps(masks, kernel_size, group_size, scale_factor)
    grad_features, grad_taps = _reassemble_backward(grad, features, taps)
    return grad_features, grad_taps.reshape(masks.shape).to(masks.dtype)


def _carafe_encoded_backward(
    grad: Tensor,
    features: Tensor,
    encoded: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> tuple[Tensor, Tensor]:
    taps = _encoded_taps(encoded, kernel_size, group_size, scale_factor)
    grad_features, grad_taps = _reassemble_backward(grad, features, taps)
    grad_taps = taps * (grad_taps - (taps * grad_taps).sum(dim=2, keepdim=True))  # softmax
    grad_encoded = grad_taps.permute(0, 1, 2, 4, 6, 3, 5).reshape(encoded.shape)
    return grad_features, grad_encoded.to(encoded.dtype)


_carafe_op = define("carafe", _carafe)
_carafe_encoded_op = define("carafe_encoded", _carafe_encoded)
_carafe_backward_op = define("carafe_backward", _carafe_backward)
_carafe_encoded_backward_op = define("carafe_encoded_backward", _carafe_encoded_backward)


def _fake(features: Tensor, k: int, weights: Tensor, groups: int, s: int, encoded: bool) -> Tensor:
    _check(features, weights, k, groups, s, encoded=encoded)
    n, c, h, w = features.shape
    return _kernels.empty_in_layout_of(features, n, c, h * s, w * s)


@_carafe_op.register_fake
def _(features: Tensor, masks: Tensor, k: int, groups: int, s: int) -> Tensor:
    return _fake(features, k, masks, groups, s, encoded=False)


@_carafe_encoded_op.register_fake
def _(features: Tensor, encoded: Tensor, k: int, groups: int, s: int) -> Tensor:
    return _fake(features, k, encoded, groups, s, encoded=True)


def _fake_backward(
    grad: Tensor, features: Tensor, weights: Tensor, k: int, groups: int, s: int
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), weights.new_empty(weights.shape)


_carafe_backward_op.register_fake(_fake_backward)
_carafe_encoded_backward_op.register_fake(_fake_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weights, *ctx.geometry = inputs
    ctx.save_for_backward(features, weights)


def _differentiate(operator: Any, backward: Any) -> None:
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = backward(grad, *ctx.saved_tensors, *ctx.geometry)
        return (*grads, None, None, None)

    operator.register_autograd(gradients, setup_context=_setup_context)


_differentiate(_carafe_op, _carafe_backward_op)
_differentiate(_carafe_encoded_op, _carafe_encoded_backward_op)


# --- ONNX ----------------------------------------------------------------------------------------

_ATTRIBUTES = ("kernel_size", "group_size", "scale_factor")


def _dynamo(onnx_name: str, weights_name: str) -> Any:
    operator = onnx_operator(
        onnx_name,
        inputs=(("features", "T"), (weights_name, "T")),
        outputs=(("out", "T"),),
        attributes=tuple((name, "INT") for name in _ATTRIBUTES),
    )

    def translate(features: Any, weights: Any, k: int, groups: int, s: int) -> Any:
        return operator(
            features,
            weights,
            kernel_size=k,
            group_size=groups,
            scale_factor=s,
            **PLUGIN_ATTRIBUTES,
        )

    return translate


def dynamo_translations() -> dict[Any, Any]:
    """Entries for ``torch.onnx.export(dynamo=True, custom_translation_table=...)``."""
    return {
        torch.ops.carafe.carafe.default: _dynamo("Carafe", "masks"),
        torch.ops.carafe.carafe_encoded.default: _dynamo("CarafeEncoded", "encoded"),
    }


def torchscript_symbolics() -> dict[str, Any]:
    """Symbolic functions for the TorchScript exporter, by qualified torch name."""
    from torch.onnx import symbolic_helper

    def symbolic(onnx_name: str) -> Any:
        @symbolic_helper.parse_args("v", "v", "i", "i", "i")
        def build(g: Any, features: Any, weights: Any, k: int, groups: int, s: int) -> Any:
            plugin = {f"{name}_s": value for name, value in PLUGIN_ATTRIBUTES.items()}
            out = g.op(
                f"carafe::{onnx_name}",
                features,
                weights,
                kernel_size_i=k,
                group_size_i=groups,
                scale_factor_i=s,
                **plugin,
            )
            sizes = symbolic_helper._get_tensor_sizes(features)
            if sizes is not None:
                scaled = [size and size * s for size in sizes[2:]]
                out.setType(features.type().with_sizes([*sizes[:2], *scaled]))
            return out

        return build

    return {
        "carafe::carafe": symbolic("Carafe"),
        "carafe::carafe_encoded": symbolic("CarafeEncoded"),
    }
