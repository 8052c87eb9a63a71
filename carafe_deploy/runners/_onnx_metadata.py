"""The metadata of an ONNX file, read without the onnx package and without the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["read_metadata"]

#: Fields of ONNX's messages ModelProto and StringStringEntryProto.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """``metadata_props``, as far as the file can be read; a runtime says what is wrong with it.

    Graph and weights are skipped, not read.

    Raises:
        OSError: the file cannot be opened.
    """
    found: dict[str, str] = {}
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            for number, size in _fields(file, end):
                if number == _METADATA_PROPS and size is not None:
                    parts = {
                        inner: file.read(length)
                        for inner, length in _fields(file, file.tell() + size)
                        if length is not None
                    }
                    found[parts[_KEY].decode()] = parts[_VALUE].decode()
        except (EOFError, KeyError, UnicodeDecodeError):
            pass
    return found


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int | None]]:
    """Number of each field of a message, and its size where it is a string or message.

    The file stands at the field's content, which need not be read.
    """
    while file.tell() < end:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _varint(file)
            yield number, None
        elif kind in (_FIXED64, _FIXED32):
            file.seek(8 if kind == _FIXED64 else 4, os.SEEK_CUR)
            yield number, None
        elif kind == _BYTES:
            size = _varint(file)
            after = file.tell() + size
            if after > end:
                raise EOFError
            yield number, size
            file.seek(after)
        else:
            raise EOFError


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 64:
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    raise EOFError
