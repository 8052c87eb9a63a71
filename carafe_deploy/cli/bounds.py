"""Input sizes as typed: ``832x1344``, ``1-8``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from carafe_deploy.cli.common import UsageError

if TYPE_CHECKING:
    from carafe_deploy.graph.options import Range
    from carafe_deploy.models.config import DetectorConfig


def parse_size(text: str, option: str) -> tuple[int, int]:
    """``"832x1344"`` as (height, width).

    Raises:
        UsageError: it is something else; the message names `option`.
    """
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if match is None:
        raise UsageError(f"{option} is {text!r}: give height x width in pixels, e.g. 832x1344")
    return int(match[1]), int(match[2])


def parse_batch(text: str) -> tuple[int, int]:
    """``"4"`` as (4, 4), ``"1-8"`` as (1, 8).

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if match is None:
        raise UsageError(f"--batch is {text!r}: give a number (4) or bounds (1-8)")
    return int(match[1]), int(match[2] or match[1])


class Bounds:
    """Sizes as given; what was not given follows from the detector's config."""

    def __init__(
        self, batch: Range | None, smallest: tuple[int, int] | None, largest: tuple[int, int] | None
    ) -> None:
        self._static = smallest is not None and smallest == largest
        self._batch = batch
        self._smallest = smallest
        self._largest = largest

    @classmethod
    def parse(
        cls, size: str | None, min_size: str | None, max_size: str | None, batch: str | None
    ) -> Bounds:
        """Read the options.

        Raises:
            UsageError: a value cannot be read, or options contradict each other.
        """
        if size is not None and (min_size is not None or max_size is not None):
            raise UsageError("--size makes the size static: drop it, or --min-size and --max-size")
        chosen = None if batch is None else parse_batch(batch)
        if size is not None:
            static = parse_size(size, "--size")
            return cls(chosen, static, static)
        return cls(
            chosen,
            None if min_size is None else parse_size(min_size, "--min-size"),
            None if max_size is None else parse_size(max_size, "--max-size"),
        )

    def ranges(self, config: DetectorConfig) -> tuple[Range, Range, Range]:
        """Bounds of batch, height and width."""
        from carafe_deploy.graph.options import ExportOptions, padded_limits

        divisor, long_edge = config.preprocessing.pad_size_divisor, max(padded_limits(config))
        low = self._smallest or (divisor, divisor)
        high = self._largest or (max(long_edge, low[0]), max(long_edge, low[1]))
        batch = self._batch or ((1, 1) if self._static else ExportOptions().batch)
        return batch, (low[0], high[0]), (low[1], high[1])
