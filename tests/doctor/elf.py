"""Shared libraries of a few hundred bytes: an ELF file with CUDA code that is none."""

from __future__ import annotations

import struct

PTX, MACHINE_CODE = 1, 2
A, F = 0x100000, 0x200000


def fat_binary(*entries: tuple[int, int, int], size: int = 24) -> bytes:
    """Entries are kind, architecture and flags, each with so many bytes of code."""
    body = b""
    for kind, architecture, flags in entries:
        header = struct.pack("<HHIQ", kind, 0x101, 64, size)
        header += struct.pack("<7I", 0, 0, 0x10008, architecture, 0, 0, flags | 0x11)
        body += header.ljust(64, b"\0") + b"\x55" * size
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def elf(code: bytes | None, section: str = ".nv_fatbin") -> bytes:
    """A library with that section; without one for None."""
    names = b"\0.shstrtab\0" + section.encode() + b"\0"
    content = names + (code or b"")
    table = 64 + len(content)
    sections = [(0, 0, 0), (1, 64, len(names))]
    if code is not None:
        sections.append((11, 64 + len(names), len(code)))
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQI", 3, 62, 1, 0, 0, table, 0)
    header += struct.pack("<6H", 64, 0, 0, 64, len(sections), 1)
    rows = (
        struct.pack("<II4QIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
        for name, offset, size in sections
    )
    return header + content + b"".join(rows)
