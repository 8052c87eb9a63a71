"""What is closed at the end of a with block."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager by its :meth:`close`."""

    def close(self) -> None:
        """Give everything back; calling it twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
