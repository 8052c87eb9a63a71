"""Drawn detections for a report: enlarged, and side by side on one sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from carafe_deploy.images import Image
from carafe_deploy.masks import decode_mask
from carafe_deploy.types import Detections
from carafe_deploy.visualize import draw_detections

__all__ = ["contact_sheet", "draw_enlarged", "enlarge_detections", "enlarge_image"]


def enlarge_image(image: Image, factor: int) -> Image:
    """[H, W, 3] uint8 to [factor*H, factor*W, 3], bicubic."""
    size = image.shape[1] * factor, image.shape[0] * factor
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)


def enlarge_detections(detections: Detections, factor: int) -> Detections:
    """The same detections in an image `factor` times as large; masks get smooth outlines."""
    height, width = (edge * factor for edge in detections.image_size)
    masks = None
    if detections.masks is not None:
        planes = (decode_mask(mask).astype(np.float32) for mask in detections.masks)
        masks = tuple(
            coco_mask.encode(
                np.asfortranarray(cv2.resize(plane, (width, height)) >= 0.5, dtype=np.uint8)
            )
            for plane in planes
        )
    return dataclasses.replace(
        detections,
        boxes=detections.boxes * np.float32(factor),
        image_size=(height, width),
        masks=masks,
    )


def draw_enlarged(
    image: Image,
    detections: Detections,
    classes: Sequence[str],
    factor: int,
    score_threshold: float,
) -> Image:
    """Draw on the enlarged image, so that names and scores of small images can be read."""
    return draw_detections(
        enlarge_image(image, factor),
        enlarge_detections(detections, factor),
        classes,
        score_threshold=score_threshold,
    )


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """Pictures in a grid with a title above each row.

    Args:
        rows: title and pictures, [H, W, 3] uint8 BGR of any sizes; each is centred in its cell.

    Returns:
        [H, W, 3] uint8, BGR.
    """
    gap, title_height = 16, 48
    cell_height = max(picture.shape[0] for _, pictures in rows for picture in pictures) + gap
    cell_width = max(picture.shape[1] for _, pictures in rows for picture in pictures) + gap
    columns = max(len(pictures) for _, pictures in rows)
    row_height = title_height + cell_height
    sheet = np.full((row_height * len(rows), columns * cell_width + gap, 3), 255, np.uint8)
    for index, (title, pictures) in enumerate(rows):
        top = index * row_height
        baseline = (gap, top + title_height - 14)
        cv2.putText(
            sheet, title, baseline, cv2.FONT_HERSHEY_SIMPLEX, 1.0, (40, 40, 40), 2, cv2.LINE_AA
        )
        for column, picture in enumerate(pictures):
            height, width = picture.shape[:2]
            y = top + title_height + (cell_height - gap - height) // 2
            x = gap + column * cell_width + (cell_width - gap - width) // 2
            sheet[y : y + height, x : x + width] = picture
    return sheet
