"""Pairing detections and proposals: one behaviour a case, boxes small enough to check by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from carafe_deploy.errors import ArtefactError
from carafe_deploy.parity.matching import (
    MatchResult,
    box_iou,
    combined,
    match_detections,
    match_proposals,
)
from carafe_deploy.types import Detections

SIZE = (100, 200)
#: x1, y1, x2, y2, score, label; far apart, and 0.5 occurs twice.
BASE = (
    (10, 10, 30, 30, 0.9, 0),
    (50, 10, 90, 50, 0.5, 1),
    (110, 10, 130, 30, 0.5, 1),
    (150, 50, 190, 90, 0.3, 2),
)
Row = tuple[float, ...]


def _detections(*rows: Row, masks: bool = False) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(
        boxes=table[:, :4],
        scores=table[:, 4],
        labels=table[:, 5].astype(np.int64),
        image_size=SIZE,
        masks=tuple(_mask(*row[:4]) for row in rows) if masks else None,
    )


def _mask(x1: float, y1: float, x2: float, y2: float) -> dict[str, object]:
    pixels = np.zeros(SIZE, np.uint8, order="F")
    pixels[int(y1) : int(y2), int(x1) : int(x2)] = 1
    return coco_mask.encode(pixels)


def _changed(index: int, **values: float) -> tuple[Row, ...]:
    """BASE with one row's values replaced."""
    names = ("x1", "y1", "x2", "y2", "score", "label")
    row = dict(zip(names, BASE[index], strict=True)) | values
    return (*BASE[:index], tuple(row[name] for name in names), *BASE[index + 1 :])


def _match(*rows: Row, reference: tuple[Row, ...] = BASE, **borders: float) -> MatchResult:
    return match_detections(
        _detections(*reference), _detections(*rows), iou=0.9, score=0.01, **borders
    )


CASES = {
    # candidate rows -> matched, only in the reference, only in the candidate
    "equal": (BASE, (4, 0, 0)),
    "other order": (BASE[::-1], (4, 0, 0)),
    "score within the tolerance": (_changed(0, score=0.895), (4, 0, 0)),
    "score beyond the tolerance": (_changed(0, score=0.88), (3, 1, 1)),
    "box within the tolerance": (_changed(1, x1=51), (4, 0, 0)),
    "box beyond the tolerance": (_changed(1, x1=55), (3, 1, 1)),
    "wrong class": (_changed(1, label=2), (3, 1, 1)),
    "one missing": (BASE[:2] + BASE[3:], (3, 1, 0)),
    "one more": ((*BASE, (10, 60, 30, 80, 0.7, 0)), (4, 0, 1)),
    "one twice": ((*BASE, BASE[0]), (4, 0, 1)),
    "nothing found": ((), (0, 4, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_detections_match_by_class_box_and_score(name: str) -> None:
    rows, expected = CASES[name]
    found = _match(*rows)
    assert (found.matched, found.only_in_reference, found.only_in_candidate) == expected
    assert found.borderline == 0


#: Boxes of 8 by 8 pixels, the second shifted by 1: IoU 56 / 72; masks of the same size.
LIMIT = ((0, 0, 8, 8, 0.5, 0), (1, 0, 9, 8, 0.25, 0))


@pytest.mark.parametrize(
    ("name", "at", "beyond"),
    [
        ("iou", 56 / 72, np.nextafter(56 / 72, 1)),
        ("mask_iou", 56 / 72, np.nextafter(56 / 72, 1)),
        ("score", 0.25, np.nextafter(0.25, 0)),
    ],
)
def test_what_reaches_a_limit_exactly_is_accepted(name: str, at: float, beyond: float) -> None:
    reference, candidate = (_detections(row, masks=True) for row in LIMIT)

    def matched(limit: float) -> int:
        limits = {"iou": 0.5, "score": 0.5, "mask_iou": 0.5, name: limit}
        return match_detections(reference, candidate, **limits).matched

    assert (matched(at), matched(beyond)) == (1, 0)


@pytest.mark.parametrize(
    ("borders", "score", "excused"),
    [
        ({"score_threshold": 0.25}, 0.5, True),  # 0.25 + 0.25
        ({"score_threshold": 0.25}, 0.515625, False),
        ({"max_detections": 1}, 0.75, True),  # the worst of the full side has 0.5
        ({"max_detections": 1}, 0.765625, False),
        ({"max_detections": 2}, 0.75, False),  # the other side has room for one more
    ],
)
def test_a_border_includes_its_end(borders: dict[str, float], score: float, excused: bool) -> None:
    found = match_detections(
        _detections((0, 0, 8, 8, 0.5, 0), (50, 50, 60, 60, score, 0)),
        _detections((0, 0, 8, 8, 0.5, 0)),
        iou=0.5,
        score=0.25,
        **borders,
    )
    assert (found.matched, found.borderline) == (1, excused)


def test_two_empty_images_match() -> None:
    found = _match(reference=())
    assert (found.matched, found.total, found.fraction) == (0, 0, 1.0)


def test_errors_are_those_of_the_pairs() -> None:
    found = _match(*_changed(1, x1=51, score=0.495))
    assert found.max_box_error == 1.0
    assert found.min_iou == 39 / 40
    assert found.max_score_error == pytest.approx(0.005, abs=1e-7)
    assert found.pairs == ((0, 0), (1, 1), (2, 2), (3, 3))


def test_each_detection_is_used_once_and_the_nearest_wins() -> None:
    reference = (BASE[0], (10.5, 10, 30.5, 30, 0.9, 0))
    found = _match(reference[1], reference[0], reference=reference)
    assert found.pairs == ((0, 1), (1, 0))
    assert found.max_box_error == 0.0


@given(st.permutations(range(len(BASE))))
@settings(max_examples=24)
def test_the_order_of_the_candidate_has_no_influence(order: list[int]) -> None:
    found = _match(*(BASE[index] for index in order))
    assert found.matched == found.total == len(BASE)
    assert [order[column] for _, column in found.pairs] == [row for row, _ in found.pairs]


BORDERS = {
    # a row that only one side has, the borders -> is it excused?
    "at the threshold": (0.059, {"score_threshold": 0.05}, True),
    "above the threshold": (0.061, {"score_threshold": 0.05}, False),
    "at the last rank": (0.309, {"max_detections": 4}, True),
    "above the last rank": (0.311, {"max_detections": 4}, False),
    "other side not full": (0.309, {"max_detections": 5}, False),
    "no borders": (0.059, {}, False),
}


@pytest.mark.parametrize("extra_in", ["reference", "candidate"])
@pytest.mark.parametrize("name", BORDERS)
def test_a_row_may_be_missing_within_the_tolerance_of_a_border(name: str, extra_in: str) -> None:
    score, borders, excused = BORDERS[name]
    sides = {"reference": BASE, "candidate": BASE}
    sides[extra_in] = (*BASE, (10, 60, 30, 80, score, 0))
    found = _match(*sides["candidate"], reference=sides["reference"], **borders)
    assert found.matched == 4
    assert found.borderline == excused
    assert getattr(found, f"only_in_{extra_in}") == (not excused)


def test_masks_are_compared_where_asked() -> None:
    reference = _detections(*BASE, masks=True)
    masks = (*reference.masks[:3], _mask(150, 50, 190, 80))  # a quarter is missing
    candidate = dataclasses.replace(reference, masks=masks)

    def matched(mask_iou: float | None) -> MatchResult:
        return match_detections(reference, candidate, iou=0.9, score=0.01, mask_iou=mask_iou)

    assert (matched(0.8).matched, matched(0.8).min_mask_iou) == (3, 1.0)
    assert (matched(0.7).matched, matched(0.7).min_mask_iou) == (4, 0.75)
    assert (matched(None).matched, matched(None).min_mask_iou) == (4, None)


def test_two_empty_masks_agree() -> None:
    detections = dataclasses.replace(_detections(BASE[0]), masks=(_mask(0, 0, 0, 0),))
    found = match_detections(detections, detections, iou=0.9, score=0.01, mask_iou=0.9)
    assert found.matched == 1


def test_masks_on_one_side_only_are_an_error() -> None:
    with pytest.raises(ArtefactError, match="the candidate has no masks to compare"):
        match_detections(
            _detections(*BASE, masks=True), _detections(*BASE), iou=0.9, score=0.1, mask_iou=0.9
        )


def test_detections_of_another_image_are_an_error() -> None:
    other = dataclasses.replace(_detections(*BASE), image_size=(200, 100))
    with pytest.raises(ArtefactError, match=r"an image of \(100, 200\) and the .* \(200, 100\)"):
        match_detections(_detections(*BASE), other, iou=0.9, score=0.1)


def test_results_of_images_add_up() -> None:
    total = combined([_match(*_changed(1, x1=51)), _match(*BASE[:3]), _match(*BASE)])
    assert (total.matched, total.only_in_reference, total.total) == (11, 1, 12)
    assert total.max_box_error == 1.0
    assert total.fraction == 11 / 12
    assert combined([]) == MatchResult()


def test_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [5, 5, 5, 5]], np.float32)
    others = np.array([[1, 0, 3, 2], [5, 5, 5, 5], [0, 0, 2, 2], [9, 9, 8, 8]], np.float32)
    expected = [[1 / 3, 0, 1, 0], [0, 1, 0, 0]]
    np.testing.assert_allclose(box_iou(boxes, others), expected)


# --- proposals -----------------------------------------------------------------------------------

#: Two levels may propose the very same box; the last row is padding.
BOXES = np.array(
    [[0, 0, 64, 64], [0, 0, 64, 64], [100, 0, 140, 20], [0, 0, 0, 0]],
    np.float32,
)
SCORES = np.array([0.9, 0.4, 0.001, 0.0], np.float32)


def _pair(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[int, int]]:
    found = match_proposals((BOXES, SCORES), (boxes, scores), shift=0.01, logit=0.1)
    return list(zip(found.rows.tolist(), found.columns.tolist(), strict=True))


def test_proposals_match_by_box_and_score_in_any_order() -> None:
    order = [2, 1, 0, 3]
    assert _pair(BOXES[order], SCORES[order]) == [(0, 2), (1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("row", "column", "shift", "rows"),
    [
        (0, 0, 0.63, [0, 1, 2]),  # 0.01 of 64 px
        (0, 0, 0.65, [1, 2]),
        (2, 3, 0.39, [0, 1, 2]),  # of the longer side, 40 px
        (2, 3, 0.41, [0, 1]),
    ],
)
def test_proposals_may_shift_in_proportion_to_their_size(
    row: int, column: int, shift: float, rows: list[int]
) -> None:
    boxes = BOXES.copy()
    boxes[row, column] += shift
    assert [pair[0] for pair in _pair(boxes, SCORES)] == rows


@pytest.mark.parametrize(
    ("row", "score", "rows"),
    [
        (1, 0.42, [0, 1, 2]),  # 0.1 * 0.4 * 0.6 = 0.024
        (1, 0.43, [0, 2]),
        (2, 0.00109, [0, 1, 2]),  # 0.1 * 0.001
        (2, 0.00112, [0, 1]),
    ],
)
def test_scores_may_differ_as_a_sigmoid_lets_them(row: int, score: float, rows: list[int]) -> None:
    scores = SCORES.copy()
    scores[row] = score
    assert [pair[0] for pair in _pair(BOXES, scores)] == rows


@pytest.mark.parametrize(("limit", "count"), [(0.25, 1), (np.nextafter(0.25, 0), 0)])
def test_a_shift_that_reaches_its_limit_is_accepted(limit: float, count: int) -> None:
    boxes = np.array([[0, 0, 64, 64]], np.float32)
    scores = np.array([0.5], np.float32)
    found = match_proposals((boxes, scores), (boxes + 16, scores), shift=limit, logit=0.1)
    assert len(found.rows) == count


def test_scores_that_differ_by_exactly_what_is_allowed_are_accepted() -> None:
    boxes = np.array([[0, 0, 64, 64]], np.float32)
    ours, theirs = np.array([0.5], np.float32), np.array([0.25], np.float32)
    exact = (0.25 - 1e-6) / 0.25  # times s (1 - s), and 1e-6 for the sigmoid
    assert exact * 0.25 + 1e-6 == 0.25
    for logit, count in ((exact, 1), (exact - 1e-9, 0)):
        found = match_proposals((boxes, ours), (boxes, theirs), shift=0.01, logit=logit)
        assert len(found.rows) == count


def test_padding_is_left_out_and_counts() -> None:
    found = match_proposals((BOXES, SCORES), (BOXES[:2], SCORES[:2]), shift=0.01, logit=0.1)
    assert found.counts == (3, 2)
    # The candidate is full, and ends at 0.4: what scores less may be missing.
    assert (len(found.rows), found.borderline, found.total) == (2, 1, 2)


def test_a_missing_proposal_that_is_not_the_worst_counts() -> None:
    found = match_proposals((BOXES, SCORES), (BOXES[1:3], SCORES[1:3]), shift=0.01, logit=0.1)
    assert (len(found.rows), found.borderline, found.total) == (2, 0, 3)


def test_no_proposals_at_all() -> None:
    nothing = (BOXES[3:], SCORES[3:])
    found = match_proposals(nothing, nothing, shift=0.01, logit=0.1)
    assert (found.total, found.max_box_error, found.max_score_error) == (0, 0.0, 0.0)
