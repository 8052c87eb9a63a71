"""Enlarged pictures and contact sheets."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from carafe_deploy.masks import decode_mask
from carafe_deploy.pictures import contact_sheet, draw_enlarged, enlarge_image, resize_detections
from carafe_deploy.types import Detections


def detections(mask: np.ndarray | None = None) -> Detections:
    """One detection, rows 2 to 5 and columns 4 to 9 of a 10 x 20 image."""
    return Detections(
        boxes=np.array([[4, 2, 10, 6]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.array([0]),
        image_size=(10, 20),
        masks=None if mask is None else (coco_mask.encode(np.asfortranarray(mask)),),
    )


def test_boxes_and_masks_grow_with_the_image() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:6, 4:10] = 1
    enlarged = resize_detections(detections(mask), width=60, height=30)
    assert enlarged.image_size == (30, 60)
    assert enlarged.boxes.tolist() == [[12, 6, 30, 18]]
    assert enlarged.boxes.dtype == np.float32
    assert enlarged.masks is not None
    grown = decode_mask(enlarged.masks[0])
    assert grown.shape == (30, 60)
    # Corners are rounded off, edges stay where they were.
    assert (grown[6:18, 15:27] == 1).all()
    assert (grown[9:15, 12:30] == 1).all()
    assert grown.sum() <= 12 * 18


def test_without_masks_there_are_none() -> None:
    assert resize_detections(detections(), 40, 20).masks is None


def test_a_picture_is_enlarged_and_drawn_on() -> None:
    image = np.full((10, 20, 3), 100, np.uint8)
    plain = enlarge_image(image, 4)
    drawn = draw_enlarged(image, detections(), ["thing"], 4, score_threshold=0.5)
    assert plain.shape == drawn.shape == (40, 80, 3)
    assert (plain != drawn).any()
    unseen = draw_enlarged(image, detections(), ["thing"], 4, score_threshold=0.95)
    assert (plain == unseen).all()


def test_every_picture_is_on_the_sheet_once() -> None:
    sizes = [(30, 40), (40, 30), (20, 20), (30, 40)]
    # Titles are grey, pictures are not.
    pictures = [np.full((*size, 3), (50 * i, 7, 200), np.uint8) for i, size in enumerate(sizes)]
    sheet = contact_sheet([("first", pictures[:3]), ("second", pictures[3:])])
    for picture in pictures:
        rows, columns = np.nonzero((sheet == picture[0, 0]).all(axis=-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == picture.shape[:2]
        assert len(rows) == picture.shape[0] * picture.shape[1]


def test_rows_have_titles() -> None:
    picture = np.full((8, 200, 3), 255, np.uint8)
    sheet = contact_sheet([("title", [picture])])
    assert (sheet < 100).any()
    assert (contact_sheet([("", [picture])]) == 255).all()
