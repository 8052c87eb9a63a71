"""Arrays that may only be read, for packages that know no such thing. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def writable(array: Array) -> Array:
    """The same memory as an array that may be written; who asks for it must not.

    PyTorch has no tensors that may only be read, and warns of every array that is.
    """
    return array if array.flags.writeable else np.asarray(_Alias(array))


class _Alias:
    """Keeps the array, and with it the memory, alive."""

    def __init__(self, array: Array) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
