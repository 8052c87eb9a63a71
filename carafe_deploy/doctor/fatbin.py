"""Which GPUs a shared library has code for, read from the file; nothing is loaded.

nvcc puts CUDA code into the ELF section ``.nv_fatbin``: a row of fat binaries, each a row of
entries, each with a header that names kind and architecture and is never compressed. NVIDIA does
not document the format; what is read here agrees with cuobjdump on code of CUDA 13.0 in all its
modes of compression. Anything else is unknown, not an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SECTION = b".nv_fatbin"
_MAGIC = 0xBA55ED50
_PTX, _MACHINE_CODE = 1, 2
#: Flag of an entry's header -> what nvcc writes behind the number.
_SUFFIXES = {0x100000: "a", 0x200000: "f"}
#: Systems on a chip, whose machine code is not exchangeable with that of other GPUs.
_TEGRA = ((5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0))


@dataclass(frozen=True, order=True)
class GpuCode:
    """One kind of code.

    Attributes:
        capability: compute capability that it was compiled for, e.g. (8, 9).
        suffix: ``"a"`` for that GPU alone, ``"f"`` for its family, else empty.
        ptx: is compiled once more by the driver, for the GPU at hand; else machine code.
    """

    capability: tuple[int, int]
    suffix: str
    ptx: bool

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability can take it; a driver may be too old for PTX."""
        if self.suffix == "a" or (not self.ptx and {capability, self.capability} & set(_TEGRA)):
            return capability == self.capability
        if self.ptx and not self.suffix:
            return capability >= self.capability
        return capability[0] == self.capability[0] and capability >= self.capability

    def __str__(self) -> str:
        return "{}.{}".format(*self.capability) + self.suffix


def read_gpu_code(path: Path) -> tuple[GpuCode, ...] | None:
    """Every kind of code in a library, sorted; empty without any.

    Returns:
        None when the code is laid out in a way not known here.

    Raises:
        ValueError: the file is no little-endian ELF file of 64 bits, or damaged.
        OSError: it cannot be read.
    """
    try:
        section = _section(path.read_bytes())
    except (IndexError, struct.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error
    try:
        return tuple(sorted(set(_entries(section))))
    except (struct.error, ValueError):
        return None


def _section(data: bytes) -> bytes:
    """What CUDA put into the file."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no little-endian ELF file of 64 bits")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<II4Q", data, table + size * index) for index in range(count)]
    for header in headers:
        name = headers[names][4] + header[0]
        if data[name : name + len(_SECTION) + 1] == _SECTION + b"\0":
            return data[header[4] : header[4] + header[5]]
    return b""


def _entries(section: bytes) -> Iterator[GpuCode]:
    position = 0
    while position < len(section):
        magic, _, header, size = struct.unpack_from("<IHHQ", section, position)
        if magic != _MAGIC or header < 16:
            raise ValueError(f"a fat binary begins with {magic:#x}, {header} bytes")
        position += header
        end = position + size
        while position < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", section, position)
            architecture, _, _, flags = struct.unpack_from("<4I", section, position + 28)
            if kind not in (_PTX, _MACHINE_CODE) or header < 44 or not 50 <= architecture < 1000:
                raise ValueError(f"kind {kind} of code, architecture {architecture}")
            suffix = next((text for flag, text in _SUFFIXES.items() if flags & flag), "")
            yield GpuCode(divmod(architecture, 10), suffix, kind == _PTX)
            position += header + size
        position = end + -end % 8
