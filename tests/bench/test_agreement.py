"""Detections of two subjects beside each other."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.bench.agreement import agreement
from carafe_deploy.types import Detections
from tests.bench.fakes import INFO


def _found(*scores: float) -> Detections:
    """Boxes beside each other."""
    left = 20 * np.arange(len(scores), dtype=np.float32)
    boxes = np.stack((left, 0 * left, left + 10, 0 * left + 10), axis=1)
    labels = np.zeros(len(scores), np.int64)
    return Detections(boxes, np.array(scores, np.float32), labels, (64, 256))


@pytest.mark.parametrize(
    ("ours", "theirs", "state", "text"),
    [
        ((0.9, 0.8), (0.9, 0.8), "passed", "2 of 2"),
        ((0.9, 0.8), (0.9,), "failed", "1 of 2"),
        ((0.9,), (), "failed", "0 of 1"),
        ((), (), "nothing compared", "nothing compared"),
    ],
)
def test_what_nobody_found_is_no_agreement(
    ours: tuple[float, ...], theirs: tuple[float, ...], state: str, text: str
) -> None:
    found = agreement((INFO, INFO), [_found(*ours)], [_found(*theirs)])
    assert (found.state, found.found_again) == (state, text)
    assert (found.min_iou is None) == (found.matched == 0)
