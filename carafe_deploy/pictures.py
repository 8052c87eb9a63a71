"""Drawn detections for a report: enlarged, and side by side on one sheet."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from carafe_deploy.images import Image
from carafe_deploy.masks import decode_mask
from carafe_deploy.types import Detections
from carafe_deploy.visualize import draw_detections

__all__ = ["contact_sheet", "draw_enlarged", "enlarge_image", "jpeg_text", "resize_detections"]


def enlarge_image(image: Image, factor: int) -> Image:
    """[H, W, 3] uint8 to [factor*H, factor*W, 3], bicubic."""
    size = image.shape[1] * factor, image.shape[0] * factor
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)


def resize_detections(detections: Detections, width: int, height: int) -> Detections:
    """The same detections in an image of another size; masks get smooth outlines."""
    across, down = width / detections.image_size[1], height / detections.image_size[0]
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
        boxes=detections.boxes * np.array((across, down, across, down), np.float32),
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
    height, width = (edge * factor for edge in detections.image_size)
    return draw_detections(
        enlarge_image(image, factor),
        resize_detections(detections, width, height),
        classes,
        score_threshold=score_threshold,
    )


def jpeg_text(image: Image, quality: int) -> str:
    """A JPEG file in base64."""
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return base64.b64encode(content.tobytes()).decode("ascii")


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """Titles, and below each a row of pictures of any sizes, centred in their cells of a grid."""
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
