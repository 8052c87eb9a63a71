"""Drawing detections."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.masks import paste_masks
from carafe_deploy.types import Detections
from carafe_deploy.visualize import class_colour, draw_detections

GREY = 90


def detections(*boxes, size=(200, 300), scores=None, masks=False) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(array)
    return Detections(
        boxes=array,
        scores=np.linspace(0.9, 0.8, count, dtype=np.float32)
        if scores is None
        else np.array(scores, np.float32),
        labels=np.arange(count),
        image_size=size,
        masks=paste_masks(np.ones((count, 28, 28), np.float32), array, size) if masks else None,
    )


def drawn(found: Detections, classes=("cat", "dog", "emu"), **options) -> np.ndarray:
    """Where the picture changed, [H, W] bool."""
    image = np.full((*found.image_size, 3), GREY, np.uint8)
    return (draw_detections(image, found, classes, **options) != GREY).any(axis=2)


def test_nothing_detected_leaves_the_picture():
    assert not drawn(detections(masks=True)).any()


def test_the_given_picture_is_not_drawn_on():
    image = np.full((200, 300, 3), GREY, np.uint8)
    draw_detections(image, detections((50, 50, 100, 100)), ("cat",))
    assert (image == GREY).all()


def test_box_has_the_colour_of_its_class():
    image = np.full((200, 300, 3), GREY, np.uint8)
    picture = draw_detections(image, detections((50, 60, 150, 160)), ("cat",))
    assert picture[100, 50].tolist() == list(class_colour(0))
    assert picture[160, 100].tolist() == list(class_colour(0))
    assert picture[100, 100].tolist() == [GREY] * 3


def test_masks_tint_the_inside():
    image = np.full((200, 300, 3), GREY, np.uint8)
    picture = draw_detections(image, detections((50, 60, 150, 160), masks=True), ("cat",))
    inside, colour = picture[100, 100].astype(int), np.array(class_colour(0))
    assert not (inside == GREY).all()
    # Translucent: strictly between the picture and the colour.
    assert ((inside - GREY) * (colour - inside) >= 0).all()


def test_label_is_above_the_box():
    changed = drawn(detections((50, 60, 150, 160)))
    assert changed[50:58, 60:80].all() or changed[45:58, 55:90].mean() > 0.9
    assert not changed[:30].any()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 40, 40), (260, 0, 300, 40), (0, 160, 40, 200), (260, 160, 300, 200)],
)
def test_label_stays_inside_the_picture(box):
    def colour_pixels(found):
        image = np.full((*found.image_size, 3), GREY, np.uint8)
        picture = draw_detections(image, found, ("cat",))
        return int((picture == class_colour(0)).all(axis=2).sum())

    # The label's ground is most of it; a label cut by the border would lose a good part.
    reference = colour_pixels(detections((120, 90, 160, 130)))
    assert reference > 400
    assert colour_pixels(detections(box)) == pytest.approx(reference, rel=0.2)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    one = drawn(detections((100, 80, 200, 140)))
    two = drawn(detections((100, 80, 200, 140), (100, 80, 200, 140)))
    assert two.sum() > one.sum() + 300


def test_low_scores_are_left_out():
    found = detections((50, 50, 100, 100), scores=[0.29])
    assert not drawn(found).any()
    assert drawn(found, score_threshold=0.29 - 1e-6).any()


@pytest.mark.parametrize("score", [0.3, 0.5, 0.1])
def test_a_score_at_the_threshold_is_drawn(score):
    assert drawn(detections((50, 50, 100, 100), scores=[score]), score_threshold=score).any()


def test_better_detections_lie_on_top():
    image = np.full((200, 300, 3), GREY, np.uint8)
    found = detections((50, 60, 150, 160), (50, 60, 150, 160))
    picture = draw_detections(image, found, ("cat", "dog"))
    assert picture[100, 50].tolist() == list(class_colour(0))


def test_lines_grow_with_the_picture():
    def line_width(factor):
        size = (200 * factor, 300 * factor)
        box = np.array([50, 60, 150, 160]) * factor
        return drawn(detections(box, size=size))[100 * factor, : 100 * factor].sum()

    assert line_width(1) <= 3
    assert line_width(10) >= 3 * line_width(1)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3)])
def test_tiny_pictures(size):
    box = (0, 0, size[1], size[0])
    assert drawn(detections(box, size=size, masks=True)).any()


def test_box_outside_the_picture():
    assert drawn(detections((-50, -50, 400, 300))).shape == (200, 300)


def test_names_that_are_not_ascii():
    found = detections((50, 60, 150, 160))
    np.testing.assert_array_equal(
        drawn(found, classes=("größe",)), drawn(found, classes=("gr??e",))
    )


def test_colours_of_80_classes_are_distinct_and_stable():
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    assert colours == [class_colour(label) for label in range(80)]
    first = np.array(colours[:8], int)
    distances = np.abs(first[:, None] - first[None]).sum(axis=2) + 1000 * np.eye(8, dtype=int)
    assert distances.min() > 80
