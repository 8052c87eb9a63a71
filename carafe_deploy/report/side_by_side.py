"""Detections of all subjects in the same image side by side, differences marked."""

from __future__ import annotations

import base64
import dataclasses
import itertools

import cv2
import numpy as np
import numpy.typing as npt

from carafe_deploy.bench.record import BenchResult, Sample, SampleDetections
from carafe_deploy.errors import ArtefactError
from carafe_deploy.images import Image
from carafe_deploy.masks import decode_mask
from carafe_deploy.parity.matching import limits_of, match_detections
from carafe_deploy.pictures import jpeg_text, resize_detections
from carafe_deploy.report.document import Comparison, Tile
from carafe_deploy.tolerances import coarsest
from carafe_deploy.types import Detections
from carafe_deploy.visualize import draw_detections

__all__ = ["comparisons"]

#: Pictures in a row -> their longer edge in pixels, so that a page shows them as they are drawn.
EDGES = {2: 508, 3: 336}
#: Numbers of pictures that look better two in a row.
TWO = (1, 2, 4)
QUALITY = 85
#: Partners are drawn from this score on, differences from the lower one.
SCORE, DIFFERENT_SCORE = 0.5, 0.3


def comparisons(result: BenchResult) -> tuple[Comparison, ...]:
    """The sample images with the detections of every subject, the reference's first.

    Raises:
        ArtefactError: a stored image or mask is damaged.
    """
    made = []
    for sample in result.samples:
        names = [subject.name for subject in result.subjects if subject.name in sample.found]
        if names:
            columns = 2 if len(names) in TWO else 3
            title = f"{sample.name}, {sample.width}×{sample.height} pixels"
            tiles = _tiles(_Picture(sample, result.classes, EDGES[columns]), result, names)
            made.append(Comparison(title, tiles, columns))
    return tuple(made)


def _tiles(picture: _Picture, result: BenchResult, names: list[str]) -> tuple[Tile, ...]:
    first = names[0]
    precisions = {subject.name: subject.precision for subject in result.subjects}
    tiles = [picture.tile(first)]
    for name in names[1:]:
        precision = coarsest(precisions[first], precisions[name])
        difference = _difference(picture.found(first), picture.found(name), precision)
        tiles.append(picture.tile(name, difference, first))
    return tuple(tiles)


@dataclasses.dataclass(frozen=True)
class _Difference:
    """Rows of the candidate with and without partners, and of the reference without."""

    paired: tuple[int, ...]
    only_here: tuple[int, ...]
    missing: tuple[int, ...]


def _difference(reference: Detections, candidate: Detections, precision: str) -> _Difference:
    """Pair as the benchmark does, see :mod:`carafe_deploy.bench.agreement`."""
    with_masks = reference.masks is not None and candidate.masks is not None
    limits = limits_of(precision, masks=with_masks)
    pairs = match_detections(reference, candidate, **limits).pairs
    ours, theirs = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    return _Difference(
        tuple(sorted(theirs)),
        tuple(row for row in range(len(candidate)) if row not in theirs),
        tuple(row for row in range(len(reference)) if row not in ours),
    )


class _Picture:
    """One image at the size at which it is shown."""

    def __init__(self, sample: Sample, classes: tuple[str, ...], edge: int) -> None:
        self._sample, self._classes = sample, classes
        data = np.frombuffer(base64.b64decode(sample.jpeg), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if image is None:
            raise ArtefactError(f"sample {sample.name} holds no JPEG image: measure again")
        scale = edge / max(sample.height, sample.width)
        self._size = round(sample.width * scale), round(sample.height * scale)
        enlarges = self._size[0] > image.shape[1]
        how = cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA
        self._image: Image = cv2.resize(image, self._size, interpolation=how).astype(np.uint8)

    def found(self, name: str) -> Detections:
        """What a subject found, in pixels of the original image."""
        found, size = self._sample.found[name], (self._sample.height, self._sample.width)
        return Detections(
            boxes=np.array(found.boxes, np.float32).reshape(-1, 4),
            scores=np.array(found.scores, np.float32),
            labels=np.array(found.labels, np.int64),
            image_size=size,
            masks=_masks(found, size),
        )

    def tile(self, name: str, difference: _Difference | None = None, reference: str = "") -> Tile:
        """Draw one subject's detections, and how they differ from the reference's."""
        found = resize_detections(self.found(name), *self._size)
        partners = found if difference is None else _rows(found, difference.paired)
        image = draw_detections(self._image, partners, self._classes, score_threshold=SCORE)
        verdict, tone = f"{len(found)} found", ""
        if difference is not None:
            others = found
            if difference.missing:
                others = resize_detections(self.found(reference), *self._size)
            marks = (
                *self._marks(others, difference.missing, MISSING),
                *self._marks(found, difference.only_here, ONLY_HERE),
            )
            for mark in marks:
                mark.frame(image)
            for mark in marks:
                mark.label(image)
            hidden = len(difference.missing) + len(difference.only_here) - len(marks)
            verdict, tone = _verdict(difference, hidden)
        return Tile(name, verdict, tone, jpeg_text(image, QUALITY), *self._size)

    def _marks(self, found: Detections, rows: tuple[int, ...], kind: _Kind) -> list[_Mark]:
        """Detections without partners that are not too weak to be shown."""
        return [
            _Mark(
                kind,
                found.boxes[row],
                None if found.masks is None else decode_mask(found.masks[row]),
                f"{kind.word}: {self._classes[int(found.labels[row])]} {found.scores[row]:.2f}",
            )
            for row in rows
            if found.scores[row] >= DIFFERENT_SCORE
        ]


def _masks(found: SampleDetections, size: tuple[int, int]) -> tuple[dict[str, object], ...] | None:
    if not found.masks:
        return None
    return tuple(
        {"size": list(size), "counts": counts.encode("ascii", "replace")} for counts in found.masks
    )


def _rows(found: Detections, rows: tuple[int, ...]) -> Detections:
    """Some of the detections, best first."""
    order = sorted(rows)
    masks = None if found.masks is None else tuple(found.masks[row] for row in order)
    return dataclasses.replace(
        found,
        boxes=found.boxes[order],
        scores=found.scores[order],
        labels=found.labels[order],
        masks=masks,
    )


def _verdict(difference: _Difference, hidden: int) -> tuple[str, str]:
    """What differs in words, and their tone."""
    parts = [f"{len(difference.paired)} found again"]
    if difference.missing:
        parts.append(f"{len(difference.missing)} missing")
    if difference.only_here:
        parts.append(f"{len(difference.only_here)} only here")
    if hidden:
        parts.append(f"{hidden} of them below {DIFFERENT_SCORE:g} and not drawn")
    differs = difference.missing or difference.only_here
    return ", ".join(parts), "warn" if differs else "good"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Why a detection has no partner, and its looks: colours are (B, G, R)."""

    word: str
    colour: tuple[int, int, int]
    ink: tuple[int, int, int]
    dashed: bool


ONLY_HERE = _Kind("only here", (190, 0, 215), (255, 255, 255), dashed=False)
MISSING = _Kind("missing", (0, 215, 255), (0, 0, 0), dashed=True)
_SHADOW = (20, 20, 20)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.38


@dataclasses.dataclass(frozen=True)
class _Mark:
    """One detection without partner."""

    kind: _Kind
    box: npt.NDArray[np.float32]
    mask: npt.NDArray[np.uint8] | None
    text: str

    def frame(self, image: Image) -> None:
        """Box, inside darker lines so that it shows on any ground, and outline of the mask."""
        x1, y1, x2, y2 = self._corners(image)
        sides = itertools.pairwise([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
        lines = [
            line for side in sides for line in (_dashes(*side) if self.kind.dashed else [side])
        ]
        for colour, width in ((_SHADOW, 4), (self.kind.colour, 2)):
            for start, end in lines:
                cv2.line(image, start, end, colour, width, cv2.LINE_AA)
        if self.mask is not None:
            outlines, _ = cv2.findContours(self.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(image, outlines, -1, self.kind.colour, 1, cv2.LINE_AA)

    def label(self, image: Image) -> None:
        """At the head of what is missing, at the foot of what is only here."""
        text = self.text.encode("ascii", "replace").decode("ascii")
        (width, ascent), descent = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
        height = ascent + descent + 3
        x1, y1, _, y2 = self._corners(image)
        left = max(0, min(x1 - 2, image.shape[1] - width - 6))
        top = y1 - height if self.kind.dashed else y2
        top = max(0, min(top, image.shape[0] - height - 1))
        corner = left + width + 5, top + height
        cv2.rectangle(image, (left, top), corner, self.kind.colour, cv2.FILLED)
        place = left + 3, top + ascent + 2
        cv2.putText(image, text, place, _FONT, _FONT_SCALE, self.kind.ink, 1, cv2.LINE_AA)

    def _corners(self, image: Image) -> tuple[int, int, int, int]:
        """Pixels that leave room for the lines."""
        height, width = image.shape[:2]
        x1, x2 = (int(np.clip(round(float(x)), 2, width - 3)) for x in self.box[[0, 2]])
        y1, y2 = (int(np.clip(round(float(y)), 2, height - 3)) for y in self.box[[1, 3]])
        return x1, y1, x2, y2


def _dashes(
    start: tuple[int, int], end: tuple[int, int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Pieces of a line, ten pixels each with six between."""
    a, b = np.array(start, float), np.array(end, float)
    length = float(np.hypot(*(b - a)))
    pieces = []
    for begin in np.arange(0, length, 16):
        stop = min(begin + 10, length)
        ends = (a + (b - a) * (t / length) for t in (begin, stop))
        p, q = ((round(float(x)), round(float(y))) for x, y in ends)
        pieces.append((p, q))
    return pieces
