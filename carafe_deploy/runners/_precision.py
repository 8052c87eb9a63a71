"""PyTorch's precision of float32 products: what a run asks for, and afterwards what it was before.

The settings are the process's, not a thread's. While a run holds them, whatever else computes with
PyTorch in this process does so under them, too. Runs that ask for the same share them; a run that
asks for the other waits until no one holds them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.backends import cuda, cudnn, mkldnn

from carafe_deploy.errors import CarafeDeployError

__all__ = ["float32_products"]

#: What has a setting for cuDNN and cuBLAS. Each takes over its library's, the first, while it has
#: none of its own.
_CUDA: tuple[Any, ...] = (cudnn, cudnn.conv, cudnn.rnn, cuda.matmul)  # type: ignore[attr-defined]
#: The same on the CPU, where float32 may be computed in bfloat16. (Setting the library's own sets
#: the default of all libraries in some versions.)
_CPU: tuple[Any, ...] = (mkldnn.conv, mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """Inside, convolutions and matrix products of float32 are computed in float32.

    PyTorch has two interfaces for this, one of which refuses to answer once the other has been
    used differently. Inside, both say the same, on all versions. Afterwards every setting reads as
    before, in both.

    Args:
        tf32: on a GPU, let them round their factors to TF32's 10 bits of mantissa instead.

    Raises:
        CarafeDeployError: a thread that is inside asks for the other.
    """
    settings = _SETTINGS
    mine = settings.hold(tf32)
    try:
        yield
    finally:
        if settings is _SETTINGS:  # not in a fork from inside
            settings.release(mine)


class _Settings:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._holders = 0
        self._tf32 = False
        self._before: _Saved | None = None

    def hold(self, tf32: bool) -> list[None]:
        """What this thread holds, for :meth:`release`, whichever thread calls that."""
        mine: list[None] = self._mine.__dict__.setdefault("held", [])
        with self._changed:
            if mine and self._tf32 != tf32:
                raise CarafeDeployError(
                    "a run with TF32 and one without are inside each other in one thread: run one "
                    "after the other"
                )
            self._changed.wait_for(lambda: not self._holders or self._tf32 == tf32)
            if not self._holders:
                self._tf32, self._before = tf32, _Saved()
                _set(tf32)
            self._holders += 1
            mine.append(None)
        return mine

    def release(self, mine: list[None]) -> None:
        with self._changed:
            mine.pop()
            self._holders -= 1
            if not self._holders:
                assert self._before is not None
                self._before.restore()
                self._changed.notify_all()


class _Saved:
    """The settings as they are. Reading changes the new interface where the old contradicts."""

    def __init__(self) -> None:
        self._values = [(part, part.fp32_precision) for part in (*_CUDA, *_CPU)]
        allow_tf32, products = _old_interface()
        if allow_tf32 is None or products is None:
            _set_each(tf32=False)
            # It contradicts float32, too, if it says yes.
            again, products = _old_interface()
            allow_tf32 = again is not False if allow_tf32 is None else allow_tf32
        assert products is not None
        self._allow_tf32, self._products = allow_tf32, products

    def restore(self) -> None:
        cudnn.allow_tf32 = self._allow_tf32
        torch.set_float32_matmul_precision(self._products)
        for part, value in self._values:
            if part.fp32_precision == value:
                continue
            # What had no setting of its own shall follow its library's again.
            part.fp32_precision = "none"
            if part.fp32_precision != value:
                part.fp32_precision = value


def _old_interface() -> tuple[bool | None, str | None]:
    """What it says of convolutions and of products; None where it refuses, which takes 0.2 ms."""
    allow_tf32 = products = None
    with suppress(RuntimeError):
        allow_tf32 = bool(cudnn.allow_tf32)
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    return allow_tf32, products


def _set(tf32: bool) -> None:
    cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    _set_each(tf32)


def _set_each(tf32: bool) -> None:
    for parts, rounds in ((_CUDA, tf32), (_CPU, False)):
        for part in parts:
            if part.fp32_precision not in (("tf32",) if rounds else ("ieee", "none")):
                part.fp32_precision = "tf32" if rounds else "ieee"


_SETTINGS = _Settings()


def _forked() -> None:
    """Other threads are not in a fork, so nobody holds the settings there."""
    global _SETTINGS
    before, _SETTINGS = _SETTINGS, _Settings()
    if before._holders and before._before is not None:
        before._before.restore()


os.register_at_fork(after_in_child=_forked)
