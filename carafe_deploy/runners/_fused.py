"""Whether torch runners let convolutions do what follows them: where, and what is asked first."""

from __future__ import annotations

import warnings

import torch

from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.ops.convolutions import refusal
from carafe_deploy.runners._precision import float32_products
from carafe_deploy.types import DTYPES

__all__ = ["fuses"]


def fuses(wanted: bool | None, device: torch.device, precision: str, tf32: bool) -> bool:
    """See :mod:`carafe_deploy.ops.convolutions`.

    Args:
        wanted: None for where it can be.
        device: that computes.
        precision: of the model.
        tf32: float32 is computed with it.

    Raises:
        BackendUnavailableError: it is wanted, and the device does not.
    Warns:
        UserWarning: it is a GPU that does not.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return False
    dtype = getattr(torch, DTYPES[precision])
    with torch.inference_mode(), float32_products(tf32):
        reason = refusal(device, dtype)
    if not reason:
        return True
    text = f"{device} computes no {precision} convolution with its shortcut and ReLU ({reason})"
    if wanted:
        raise BackendUnavailableError(f"{text}: leave out fused")
    warnings.warn(f"{text}: they take kernels of their own, which is slower", stacklevel=3)
    return False
