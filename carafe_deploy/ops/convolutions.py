"""Convolutions and matrix products in one kernel with what follows: bias, shortcut and ReLU.

A network calls :func:`conv_relu`, :func:`conv_add_relu` and :func:`linear_relu` for what it means.
They are PyTorch's own operators, one after the other, until :func:`fuse_epilogues` has prepared the
network for a GPU. There PyTorch launches one kernel for a convolution and others for its bias,
shortcut and ReLU, which read and write the whole map again; cuDNN and cuBLAS can do all of it as
they write their result. What they offer:

- a convolution with ReLU, and a shortcut before that: ``torch.cudnn_convolution_relu`` and
  ``torch.cudnn_convolution_add_relu``. Half types are accumulated, added and rectified in float32
  and rounded once. Of PyTorch's settings they follow ``torch.backends.cudnn.allow_tf32`` and
  ``benchmark``, not ``deterministic``.
- a 1x1 convolution with bias on a channels-last map: a matrix product with bias, cuBLAS's.
- a matrix product with bias and ReLU: ``torch._addmm_activation``, cuBLAS's.

There is no such kernel for a bias without ReLU after any other convolution. Nothing here
differentiates: an input that requires gradients takes the usual operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carafe_deploy.ops._kernels import memory_format_of
from carafe_deploy.types import DOMAIN

__all__ = [
    "FusedConv2d",
    "FusedLinear",
    "conv_add_relu",
    "conv_relu",
    "fuse_epilogues",
    "linear_relu",
    "refusal",
]


# --- what networks call --------------------------------------------------------------------------


def conv_relu(x: Tensor, conv: nn.Module, norm: nn.Module | None = None) -> Tensor:
    """``relu(norm(conv(x)))``; a convolution that is fused has its norm folded into it."""
    if isinstance(conv, FusedConv2d):
        return conv(x, relu=True)
    out: Tensor = conv(x) if norm is None else norm(conv(x))
    return out.relu_()


def conv_add_relu(
    x: Tensor, conv: nn.Module, norm: nn.Module, shortcut: nn.Module, source: Tensor
) -> Tensor:
    """``relu(norm(conv(x)) + shortcut(source))``."""
    if isinstance(conv, FusedConv2d):
        return conv(x, shortcut=shortcut(source), relu=True)
    out: Tensor = norm(conv(x))
    out += shortcut(source)
    return out.relu_()


def linear_relu(x: Tensor, linear: nn.Module) -> Tensor:
    """``relu(linear(x))``."""
    if isinstance(linear, FusedLinear):
        return linear(x, relu=True)
    out: Tensor = linear(x)
    return out.relu_()


# --- prepared for a GPU --------------------------------------------------------------------------


def fuse_epilogues(network: nn.Module) -> None:
    """Let a network's convolutions and linear layers take what follows them, in place.

    They keep parameters and names. On other devices than a GPU they compute as before.
    """
    for owner in list(network.modules()):
        for name, part in owner.named_children():
            if type(part) is nn.Linear:
                setattr(owner, name, FusedLinear.of(part))
            elif type(part) is nn.Conv2d and _fits(part):
                setattr(owner, name, FusedConv2d.of(part))


def _fits(conv: nn.Conv2d) -> bool:
    """One group and numbers of zeros around the map: what this module computes."""
    return conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def refusal(device: torch.device, dtype: torch.dtype) -> str:
    """Why a device does not compute a convolution with shortcut, bias and ReLU; empty if it does.

    cuDNN finds its kernels when it is called; where there is none for a type (under the settings
    of the moment), the call fails.
    """
    x, weight, bias = (
        torch.ones(shape, device=device, dtype=dtype)
        for shape in ((1, 64, 8, 8), (64, 64, 3, 3), (64,))
    )
    try:
        _by_cudnn(x, weight, bias, x.clone(), (1, 1), (1, 1), (1, 1))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


class FusedConv2d(nn.Conv2d):
    """A convolution that adds a shortcut and applies ReLU in its own kernel."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> FusedConv2d:
        """The same convolution, over the same parameters."""
        fused = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=False,
            device="meta",
        )
        fused.weight, fused.bias = conv.weight, conv.bias
        return fused.train(conv.training)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """[N, C, H, W] and the result's shape -> [N, O, H', W']; no shortcut without ReLU."""
        if not _fuses(x):
            out = super().forward(x)
            if shortcut is not None:
                out += shortcut
            return out.relu_() if relu else out
        if relu:
            assert not isinstance(self.padding, str)
            geometry = (self.stride, self.padding, self.dilation)
            return _convolution_relu(x, self.weight, self.bias, shortcut, *geometry)
        if self._is_product and x.is_contiguous(memory_format=torch.channels_last):
            return _product(x, self.weight, self.bias)
        return super().forward(x)

    @property
    def _is_product(self) -> bool:
        is_pointwise = self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)
        return is_pointwise and self.bias is not None


class FusedLinear(nn.Linear):
    """A linear layer that applies ReLU in its own kernel."""

    @classmethod
    def of(cls, linear: nn.Linear) -> FusedLinear:
        """The same layer, over the same parameters."""
        fused = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        fused.weight, fused.bias = linear.weight, linear.bias
        return fused.train(linear.training)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """[..., in] -> [..., out]."""
        if not relu:
            return super().forward(x)
        if not _fuses(x) or self.bias is None:
            return super().forward(x).relu_()
        rows = torch._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t())
        return rows.unflatten(0, x.shape[:-1])


def _fuses(x: Tensor) -> bool:
    return x.is_cuda and not x.requires_grad


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution with bias of a channels-last map, and the result is one, too."""
    assert bias is not None
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    out = torch.addmm(bias, pixels, weight.flatten(1).t())  # [N*H*W, O]
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


# --- the convolution with shortcut, bias and ReLU ------------------------------------------------

_Pair = Sequence[int]


def _convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
) -> Tensor:
    """By cuDNN at once; by the operator below where PyTorch is to see it: traced, or without GPU.

    An operator in Python costs the host several times what cuDNN's own does.
    """
    is_traced = torch.compiler.is_compiling() or type(x) is not Tensor
    if x.is_cuda and not is_traced:
        return _by_cudnn(x, weight, bias, shortcut, stride, padding, dilation)
    out: Tensor = torch.ops.carafe.convolution_relu(
        x, weight, bias, shortcut, stride, padding, dilation
    )
    return out


def _by_cudnn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
) -> Tensor:
    geometry = (stride, padding, dilation, 1)
    if shortcut is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, shortcut, 1, bias, *geometry)


def _in_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
) -> Tensor:
    """The same by PyTorch's own operators."""
    out = F.conv2d(x, weight, bias, stride, padding, dilation)
    if shortcut is not None:
        out += shortcut
    return out.relu_().contiguous(memory_format=_layout(x, weight))


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
) -> Tensor:
    shape = F.conv2d(x, weight, bias, stride, padding, dilation).shape
    layout = _layout(x, weight)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Of cuDNN's result: channels-last where the map or the weights are."""
    layouts = {memory_format_of(x), memory_format_of(weight)}
    return torch.channels_last if torch.channels_last in layouts else torch.contiguous_format


#: Holds the operator for as long as the process lives. It is none of the domain's own: no file
#: contains it.
_LIBRARY = torch.library.Library(DOMAIN, "FRAGMENT")
_LIBRARY.define(
    "convolution_relu(Tensor x, Tensor weight, Tensor? bias, Tensor? shortcut, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation) -> Tensor",
    tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag),
)
_LIBRARY.impl("convolution_relu", _by_cudnn, "CUDA")
_LIBRARY.impl("convolution_relu", _in_steps, "CPU")
torch.library.register_fake(f"{DOMAIN}::convolution_relu", _fake, lib=_LIBRARY)
