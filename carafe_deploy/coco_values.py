"""Values of COCO's formats: what is a number, a box, a mask there, before pycocotools sees it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import AnnotationError

#: Longest side of an image in pixels, JPEG's; pycocotools counts pixels in 32 bits.
LONGEST = 65535
#: Largest coordinate and score. It is beyond any image, and pycocotools keeps coordinates times
#: five in 32 bits.
FARTHEST = 1e5
#: COCO's own limit of an area: larger objects belong to no range of sizes.
LARGEST_AREA = 1e10
#: Longest outline of a polygon in pixels, since pycocotools needs 100 bytes for each.
_LONGEST_OUTLINE = 1 << 22
#: Characters of one number of a compressed run-length encoding: seven have 35 bits.
_LONGEST_COUNT = 7


def fault(owner: tuple[str, int], field: str, value: Any, remedy: str) -> AnnotationError:
    """What is wrong with a field of an entry, ``("annotation", 7)`` for one."""
    return AnnotationError(f"{owner[0]} {owner[1]} has {field} {short(value)}: {remedy}")


def short(value: Any) -> str:
    """A value in a few words, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge number"


def is_number(value: Any, low: float, high: float) -> bool:
    """A real number, no bool, in a range, as NaN never is."""
    real = isinstance(value, (int, float, np.integer, np.floating))
    return real and not isinstance(value, bool) and bool(low <= value <= high)


def check_box(owner: tuple[str, int], box: Any) -> None:
    """Four numbers: x, y, width, height. Boxes without an area are found in real files."""
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or not all(is_number(value, -FARTHEST, FARTHEST) for value in box)
        or min(box[2:]) < 0
    ):
        remedy = (
            "give x, y, width and height, four finite numbers of at most "
            f"{FARTHEST:.0f} pixels, width and height not negative"
        )
        raise fault(owner, "bbox", box, remedy)


def check_shape(owner: tuple[str, int], segmentation: Any) -> None:
    """A run-length encoding (see :func:`check_encoding`), polygons, or nothing."""
    if isinstance(segmentation, dict):
        valid = "size" in segmentation and "counts" in segmentation
    else:
        valid = segmentation is None or (
            isinstance(segmentation, list) and all(isinstance(one, list) for one in segmentation)
        )
    if not valid:
        remedy = "give polygons, lists of x and y, or a run-length encoding with size and counts"
        raise fault(owner, "segmentation", segmentation, remedy)


def check_polygons(owner: tuple[str, int], polygons: Sequence[Sequence[Any]]) -> None:
    """Those of three points and more; shorter ones enclose nothing and are left out."""
    for polygon in polygons:
        if len(polygon) >= 6 and not _is_polygon(polygon):
            remedy = (
                "give a polygon as x and y in turn, an even count of finite numbers of at most "
                f"{FARTHEST:.0f} pixels, {_LONGEST_OUTLINE} pixels around at most"
            )
            raise fault(owner, "segmentation", polygon, remedy)


def _is_polygon(polygon: Sequence[Any]) -> bool:
    """x and y in turn, finite, not too far, and no outline that takes all memory."""
    if (
        len(polygon) % 2
        or not {int, float}.issuperset(map(type, polygon))
        or not all(-FARTHEST <= value <= FARTHEST for value in polygon)
    ):
        return False
    # No side is longer than the spread of the numbers: few need a closer look.
    if len(polygon) / 2 * (max(polygon) - min(polygon)) <= _LONGEST_OUTLINE:
        return True
    points = np.array(polygon, np.float64).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    return bool(steps.sum() <= _LONGEST_OUTLINE)


def check_encoding(
    owner: tuple[str, int], encoding: Mapping[str, Any], size: tuple[Any, Any]
) -> None:
    """Run lengths cover their image to the last pixel, or pycocotools runs on beyond them."""
    given, counts = encoding.get("size"), encoding.get("counts")
    if not isinstance(given, (list, tuple)) or tuple(given) != size:
        remedy = f"give the image's height and width, {list(size)}, and a mask of that size"
        raise fault(owner, "segmentation size", given, remedy)
    total = _covered(counts)
    if total != size[0] * size[1]:
        wrong = f"counts {short(counts)}"
        if total is not None:
            wrong += f", which add up to {short(total)}"
        raise AnnotationError(
            f"{owner[0]} {owner[1]} has segmentation {wrong}: give run lengths, integers from 0, "
            f"that add up to the image's {size[0]} x {size[1]} pixels, or COCO's compressed string"
        )


def _covered(counts: Any) -> int | None:
    """Pixels that run lengths cover, compressed or not; None where there is a malformed one."""
    if isinstance(counts, (str, bytes)):
        lengths = _decoded(counts)
        return None if lengths is None or lengths.min() < 0 else int(lengths.sum())
    if isinstance(counts, list) and all(type(length) is int and length >= 0 for length in counts):
        return sum(counts)
    return None


def _decoded(text: str | bytes) -> npt.NDArray[np.int64] | None:
    """Run lengths of a compressed encoding; None if it is not one.

    Numbers of two's complement in groups of five bits, low ones first, a character each from "0"
    on; 32 says that the number goes on. From the fourth on each is the difference to the last but
    one.
    """
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    groups = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups & 32 == 0)
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        return None
    starts = np.append(0, ends[:-1] + 1)
    if (ends - starts).max() >= _LONGEST_COUNT:
        return None
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, ends - starts + 1))
    numbers = np.add.reduceat((groups & 31) << shifts, starts)
    negative = groups[ends] & 16 != 0
    if (negative & (shifts[ends] >= 30)).any():  # pycocotools shifts 32 bits by 35
        return None
    numbers -= np.where(negative, 32 << shifts[ends], 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return np.asarray(numbers, np.int64)


def has_mask(annotation: Mapping[str, Any]) -> bool:
    """An annotation says what its object covers, by run lengths or polygons of three points."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return True
    return any(len(polygon) >= 6 for polygon in segmentation or ())
