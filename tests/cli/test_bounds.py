"""Sizes as typed."""

from __future__ import annotations

import pytest

from carafe_deploy.cli.bounds import Bounds, parse_batch, parse_size
from carafe_deploy.cli.common import UsageError
from carafe_deploy.models.config import DetectorConfig

# Scale (1333, 800), padded to multiples of 64: the long edge becomes 1344.
CONFIG = DetectorConfig()


@pytest.mark.parametrize("text", ["832x1344", "832X1344", " 832×1344 "])
def test_size_is_height_by_width(text: str) -> None:
    assert parse_size(text, "--size") == (832, 1344)


@pytest.mark.parametrize("text", ["832", "832x", "ax64", "-64x64", "64x64x3", ""])
def test_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"--min-size is .*: give height x width in pixels"):
        parse_size(text, "--min-size")


@pytest.mark.parametrize(("text", "expected"), [("4", (4, 4)), ("1-8", (1, 8))])
def test_batch_is_a_number_or_bounds(text: str, expected: tuple[int, int]) -> None:
    assert parse_batch(text) == expected


@pytest.mark.parametrize("text", ["", "-4", "1-", "a", "1-2-3", "1.5"])
def test_no_batch(text: str) -> None:
    with pytest.raises(UsageError, match=r"--batch is .*: give a number \(4\) or bounds"):
        parse_batch(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None, None), ((1, 8), (64, 1344), (64, 1344))),
        (("832x1216", None, None, None), ((1, 1), (832, 832), (1216, 1216))),
        (("832x1216", None, None, "1-4"), ((1, 4), (832, 832), (1216, 1216))),
        ((None, "128x192", None, "2"), ((2, 2), (128, 1344), (192, 1344))),
        ((None, None, "640x768", None), ((1, 8), (64, 640), (64, 768))),
        ((None, "1408x64", None, None), ((1, 8), (1408, 1408), (64, 1344))),
        ((None, "64x64", "64x64", None), ((1, 1), (64, 64), (64, 64))),
    ],
)
def test_what_is_not_given_follows_from_the_config(
    given: tuple[str | None, ...], expected: tuple[tuple[int, int], ...]
) -> None:
    assert Bounds.parse(*given).ranges(CONFIG) == expected


@pytest.mark.parametrize("bound", [("64x64", None), (None, "64x64")])
def test_a_static_size_has_no_bounds(bound: tuple[str | None, str | None]) -> None:
    with pytest.raises(UsageError, match="--size makes the size static: drop it, or --min-size"):
        Bounds.parse("64x64", *bound, None)
