"""Detections drawn on their image: masks, boxes, names and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from carafe_deploy.images import Image
from carafe_deploy.masks import decode_mask, mask_box
from carafe_deploy.types import Detections

__all__ = ["class_colour", "draw_detections"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MASK_OPACITY = 0.45

Colour = tuple[int, int, int]


def class_colour(label: int) -> Colour:
    """Colour of a class as (B, G, R) in 0..255: the same in every picture and for every model."""
    # Steps of the golden ratio keep neighbouring labels far apart on the colour wheel, however
    # many there are; two saturations and three values part those that come close again.
    hue = (0.02 + label * 0.618033988749895) % 1.0
    saturation = (0.85, 0.6)[label // 3 % 2]
    value = (0.95, 0.75, 0.85)[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_detections(
    image: Image,
    detections: Detections,
    classes: Sequence[str],
    *,
    score_threshold: float = 0.3,
) -> Image:
    """Draw detections on a copy of the image; lines and letters grow with its size.

    The better a detection, the later it is drawn, so that it lies on top. OpenCV's letters are
    ASCII: others appear as "?".

    Args:
        image: [H, W, 3] uint8, BGR, of ``detections.image_size``; so is what is returned.
        detections: masks are drawn where there are any.
        classes: names by label.
        score_threshold: leave out detections with a lower score.
    """
    canvas = np.array(image, np.uint8, order="C")
    style = _Style.of(image)
    shown = [i for i in range(len(detections)) if detections.scores[i] >= score_threshold][::-1]
    colours = [class_colour(int(label)) for label in detections.labels]
    if detections.masks is not None:
        for i in shown:
            _draw_mask(canvas, detections.masks[i], colours[i], style)
    for i in shown:
        x1, y1, x2, y2 = _corners(detections.boxes[i], canvas)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colours[i], style.line)
    # Better detections choose the place of their label first, and are written last.
    labels: list[_Label] = []
    for i in reversed(shown):
        text = f"{classes[int(detections.labels[i])]} {detections.scores[i]:.2f}"
        text = text.encode("ascii", "replace").decode("ascii")
        corners = _corners(detections.boxes[i], canvas)
        labels.append(_place_label(text, colours[i], corners, labels, canvas, style))
    for label in reversed(labels):
        _draw_label(canvas, label, style)
    return canvas


@dataclass(frozen=True)
class _Style:
    line: int
    font_scale: float
    font_line: int

    @classmethod
    def of(cls, image: Image) -> _Style:
        """Two-pixel lines and letters 11 pixels high on a picture of 800 x 800."""
        edge = float(np.sqrt(image.shape[0] * image.shape[1]))
        scale = max(0.35, edge / 1600)
        return cls(max(1, round(edge / 400)), scale, max(1, round(scale * 1.5)))

    @property
    def margin(self) -> int:
        """Pixels between a label's letters and its border."""
        return self.font_line + 1


@dataclass(frozen=True)
class _Label:
    """A line of text and the rectangle behind it, in pixels; ``ascent`` is down to the baseline."""

    text: str
    colour: Colour
    left: int
    top: int
    width: int
    height: int
    ascent: int

    def overlaps(self, other: _Label) -> bool:
        """The two rectangles share a pixel."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


def _corners(box: np.ndarray, canvas: Image) -> tuple[int, int, int, int]:
    """Box edges as pixels inside the picture."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    x1, x2 = (min(max(x, 0), width - 1) for x in (x1, x2))
    y1, y2 = (min(max(y, 0), height - 1) for y in (y1, y2))
    return x1, y1, x2, y2


def _draw_mask(canvas: Image, encoding: dict[str, Any], colour: Colour, style: _Style) -> None:
    """Tint the pixels of one mask and outline it."""
    x, y, width, height = mask_box(encoding)
    if width == 0 or height == 0:
        return
    part = np.ascontiguousarray(decode_mask(encoding)[y : y + height, x : x + width])
    window = canvas[y : y + height, x : x + width]
    tint = np.array(colour, np.float32) * _MASK_OPACITY
    levels = np.arange(256)[:, None] * (1 - _MASK_OPACITY)
    tinted = cv2.LUT(window, (levels + tint).astype(np.uint8)[:, None])
    cv2.copyTo(tinted, part, window)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, colour, style.line, cv2.LINE_AA, offset=(x, y))


def _place_label(
    text: str,
    colour: Colour,
    corners: tuple[int, int, int, int],
    placed: Sequence[_Label],
    canvas: Image,
    style: _Style,
) -> _Label:
    """Above the box, else below, else inside; inside the picture, and apart from other labels."""
    (text_width, ascent), descent = cv2.getTextSize(text, _FONT, style.font_scale, style.font_line)
    width = text_width + 2 * style.margin
    height = ascent + descent + 2 * style.margin
    x1, y1, _, y2 = corners
    lowest = canvas.shape[0] - height
    left = max(0, min(x1, canvas.shape[1] - width))
    tops = [top for top in (y1 - height, y2 + 1, y1, y2 - height) if 0 <= top <= lowest]
    candidates = [_Label(text, colour, left, top, width, height, ascent) for top in tops]
    for candidate in candidates:
        if not any(candidate.overlaps(other) for other in placed):
            return candidate
    # A picture lower than a line of text shows its upper part.
    return (candidates or [_Label(text, colour, left, max(0, lowest), width, height, ascent)])[0]


def _draw_label(canvas: Image, label: _Label, style: _Style) -> None:
    """Write on a filled ground, black on light colours and white on dark ones."""
    right, bottom = label.left + label.width - 1, label.top + label.height - 1
    cv2.rectangle(canvas, (label.left, label.top), (right, bottom), label.colour, cv2.FILLED)
    blue, green, red = label.colour
    light = 0.114 * blue + 0.587 * green + 0.299 * red > 140  # luma, ITU-R BT.601
    cv2.putText(
        canvas,
        label.text,
        (label.left + style.margin, label.top + style.margin + label.ascent),
        _FONT,
        style.font_scale,
        (0, 0, 0) if light else (255, 255, 255),
        style.font_line,
        cv2.LINE_AA,
    )
