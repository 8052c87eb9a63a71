"""Memory in which a kernel's access outside its arrays is seen.

An array lies against a page that cannot be touched: one that ends where the array ends, or starts
where it starts. What remains of the array's own pages holds poison.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

#: Bytes that cannot be touched, on either side.
GUARD = 1 << 20
#: Of addresses that are not misaligned on purpose; the most that a kernel's accesses ask for.
ALIGNMENT = 16

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Buffer:
    """An array, the poison around it, and the pages around that.

    Args:
        shape: of the array.
        dtype: of its elements.
        poison: of the array and around it, at first.
        offset: elements by which the address misses its alignment.
        first: the array starts, rather than ends, at the border of its pages.
        alignment: of the address, in bytes.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        poison: float = math.nan,
        offset: int = 0,
        first: bool = False,
        alignment: int = ALIGNMENT,
    ) -> None:
        size, shift = math.prod(shape) * dtype.itemsize, offset * dtype.itemsize
        room = -(-(size + shift) // alignment) * alignment
        pages = max(1, -(-room // mmap.PAGESIZE)) * mmap.PAGESIZE
        start = _map(pages)
        weakref.finalize(self, _libc.munmap, start - GUARD, pages + 2 * GUARD)
        before = (0 if first else pages - room) + shift
        self.address = start + before
        self._pages = torch.frombuffer((ctypes.c_byte * pages).from_address(start), dtype=dtype)
        self._pages.fill_(poison)
        begin = before // dtype.itemsize
        self._inside = slice(begin, begin + math.prod(shape))
        self.array = self._pages[self._inside].view(*shape)
        self._seen = self._bits().clone()

    def _bits(self) -> Tensor:
        return self._pages.view(_BITS[self._pages.dtype.itemsize])

    def fill(self, values: Tensor) -> Buffer:
        """Set the array, broadcast from ``values``."""
        self.array.copy_(values)
        self._seen = self._bits().clone()
        return self

    def assert_guards_untouched(self, name: str) -> None:
        """Nothing outside the array was written."""
        changed = self._bits() != self._seen
        changed[self._inside] = False
        assert not changed.any(), f"wrote outside {name}: {changed.nonzero().flatten().tolist()}"

    def assert_untouched(self, name: str) -> None:
        """Nothing at all was written."""
        changed = self._bits() != self._seen
        assert not changed.any(), f"wrote to {name}: {changed.nonzero().flatten().tolist()}"


def _map(size: int) -> int:
    """Address of ``size`` bytes between two guards."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start: int = _libc.mmap(None, size + 2 * GUARD, 0, flags, -1, 0)
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if start == 2**64 - 1 or _libc.mprotect(start + GUARD, size, access) != 0:
        raise MemoryError(f"no {size} bytes: {ctypes.get_errno()}")
    return start + GUARD
