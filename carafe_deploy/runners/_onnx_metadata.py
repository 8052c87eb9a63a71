"""The metadata of an ONNX file, read without the onnx package and without the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from carafe_deploy.types import METADATA_KEY

__all__ = ["read_metadata"]

#: Fields of ONNX's messages ModelProto and StringStringEntryProto.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: A model has one for each function, property and operator set, not one for each node or weight.
_MOST_FIELDS = 1 << 16


def read_metadata(path: str | os.PathLike[str]) -> bytes | None:
    """What the file holds in ``metadata_props`` under our key, if it can be read that far.

    Graph and weights are skipped, not read; a runtime says what is wrong with them.

    Raises:
        OSError: the file cannot be opened.
    """
    found = None
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
                    if parts.get(_KEY) == METADATA_KEY.encode():
                        found = parts.get(_VALUE, b"")
        except EOFError:
            pass
    return found


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int | None]]:
    """Number of each field of a message, and its size where it is a string or message.

    The file stands at the field's content, which need not be read.
    """
    for _ in range(_MOST_FIELDS):
        if file.tell() >= end:
            return
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
