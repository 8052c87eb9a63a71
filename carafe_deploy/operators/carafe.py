"""Carafe and CarafeEncoded: what they are; computed by :mod:`carafe_deploy.ops.carafe`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from carafe_deploy.operators.specification import (
    CHANNELS,
    MAPS,
    Argument,
    Array,
    Attributes,
    Operator,
    Peer,
    Shape,
    normal,
)
from carafe_deploy.types import OperatorCall

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CARAFE", "CARAFE_ENCODED", "CarafeCall", "with_masks"]

_ATTRIBUTES = {"kernel_size": "INT", "group_size": "INT", "scale_factor": "INT"}


def _shapes(inputs: Sequence[Shape], attributes: Attributes) -> tuple[Shape, ...]:
    n, c, *sizes = inputs[0]
    return ([n, c, *(size and size * attributes["scale_factor"] for size in sizes)],)


# --- random inputs -------------------------------------------------------------------------------


def _encoded_and_features(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    """Feature maps are normal, encoder outputs normal with deviation 2."""
    features, encoded = call.shapes
    return normal(generator, features), normal(generator, encoded) * 2


def _masks_and_features(call: OperatorCall, generator: np.random.Generator) -> Sequence[Array]:
    """Feature maps are normal, masks normalised over the taps."""
    features, masks = call.shapes
    taps = int(call.attributes["kernel_size"]) ** 2
    weights = np.exp(normal(generator, masks) * 2).reshape(masks[0], -1, taps, *masks[2:])
    weights /= weights.sum(axis=2, keepdims=True)
    return normal(generator, features), weights.reshape(masks)


# --- for the benchmark ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CarafeCall:
    """One call of CARAFE; its inputs are features and encoded, see :mod:`carafe_deploy.ops.carafe`.

    With masks in place of encoded it moves as many bytes.
    """

    entry: ClassVar[str] = "carafe_encoded"

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: int = 5
    group_size: int = 1
    scale_factor: int = 2

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Keyword arguments of the operator."""
        return {
            "kernel_size": self.kernel_size,
            "group_size": self.group_size,
            "scale_factor": self.scale_factor,
        }

    @property
    def elements(self) -> tuple[int, int, int]:
        """Of features, encoder output and result."""
        pixels = self.batch * self.height * self.width
        phases = self.scale_factor**2
        weights = phases * self.group_size * self.kernel_size**2
        return pixels * self.channels, pixels * weights, pixels * phases * self.channels

    def num_bytes(self, item_size: int) -> int:
        """Inputs and results once each, with elements of ``item_size`` bytes."""
        return item_size * sum(self.elements)

    @property
    def flops(self) -> int:
        """A multiplication and an addition a tap of every output; the softmax is not counted."""
        return 2 * self.kernel_size**2 * self.elements[2]

    def inputs(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Features [N, C, H, W] and encoded [N, s*s*G*k*k, H, W], float32."""
        import torch

        pixels = self.batch * self.height * self.width
        shapes = (
            (self.batch, count // pixels, self.height, self.width) for count in self.elements[:2]
        )
        features, encoded = (torch.randn(shape, generator=generator) for shape in shapes)
        return features, encoded * 2


def _workloads() -> tuple[tuple[str, tuple[CarafeCall, ...], bool], ...]:
    # Coarsest first: P6 to P5, ..., P3 to P2.
    neck = {
        f"neck P{level} to P{level - 1}, {CHANNELS}x{height}x{width}": CarafeCall(
            1, CHANNELS, height, width
        )
        for level, (height, width) in reversed(tuple(zip((3, 4, 5, 6), MAPS[1:], strict=True)))
    }
    head = {
        f"mask head, 100 RoIs, {channels}x14x14": CarafeCall(100, channels, 14, 14)
        for channels in (CHANNELS, 1)
    }
    height, width = MAPS[2]
    kernels = {
        f"k {k}, G {groups}, {CHANNELS}x{height}x{width}": CarafeCall(
            1, CHANNELS, height, width, kernel_size=k, group_size=groups
        )
        for groups in (1, 4)
        for k in (3, 5, 7)
    }
    return (
        ("neck, all four", tuple(neck.values()), True),
        *(
            # One channel is what the detectors reassemble, see carafe_deploy/models/roi_heads.py.
            (name, (call,), call.channels == 1)
            for name, call in (neck | head | kernels).items()
        ),
    )


def with_masks(
    features: Tensor, encoded: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> tuple[Tensor, Tensor]:
    """Inputs of CARAFE from those of CarafeEncoded, as mmcv's CARAFEPack does it: one pass each."""
    import torch.nn.functional as F

    masks = F.pixel_shuffle(encoded, scale_factor)
    n, channels, height, width = masks.shape
    taps = masks.reshape(n, group_size, kernel_size**2, height, width)
    return features, taps.softmax(dim=2).reshape(n, channels, height, width)


@cache
def _mmcv_missing() -> str:
    from carafe_deploy.requirements import is_installed

    if not is_installed("mmcv"):
        return "mmcv is not installed"
    try:
        importlib.import_module("mmcv.ops")
    except Exception as error:  # its extension fits one version of torch and CUDA
        return f"mmcv.ops cannot be imported ({type(error).__name__}: {error})"
    return ""


def _mmcv_lacks(device: str, dtype: str) -> str:
    if reason := _mmcv_missing():
        return reason
    if device != "cuda":
        return "mmcv has no CARAFE for the CPU"
    return "mmcv's CARAFE has no bfloat16" if dtype == "bfloat16" else ""


def _mmcv_carafe(
    features: Tensor, masks: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> Any:
    """It reads memory as NCHW, whatever the strides."""
    function = importlib.import_module("mmcv.ops").carafe
    return function(
        features.contiguous(), masks.contiguous(), kernel_size, group_size, scale_factor
    )


# --- the operators -------------------------------------------------------------------------------

#: Inputs: features and masks normalised over the taps.
CARAFE = Operator(
    name="carafe",
    inputs=(Argument("features", "NCHW"), Argument("masks", "NCHW")),
    outputs=(Argument("out", "NCHW"),),
    attributes=_ATTRIBUTES,
    shapes=_shapes,
    module="carafe_deploy.ops.carafe",
    tolerance="carafe",
    family="carafe",
    title="CARAFE",
    random_inputs=_masks_and_features,
    peers=(Peer("mmcv", _mmcv_carafe, _mmcv_lacks, in_all_variants=True),),
    structure=tuple(_ATTRIBUTES),
)
#: Inputs: features and what the content encoder puts out.
CARAFE_ENCODED = Operator(
    name="carafe_encoded",
    inputs=(Argument("features", "NCHW"), Argument("encoded", "NCHW")),
    outputs=(Argument("out", "NCHW"),),
    attributes=_ATTRIBUTES,
    shapes=_shapes,
    module="carafe_deploy.ops.carafe",
    tolerance="carafe_encoded",
    family="carafe",
    title="CARAFE",
    random_inputs=_encoded_and_features,
    workloads=_workloads(),
    unfused=("carafe", with_masks),
    structure=tuple(_ATTRIBUTES),
)
