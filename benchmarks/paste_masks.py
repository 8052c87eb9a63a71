"""Time pasting 100 masks of 28x28 into an image of 800x1216 as run-length encodings.

    python benchmarks/paste_masks.py

Three sets of boxes: sides log-uniform in 16..512 pixels, as in everyday pictures; every box half
the image wide and high; every box the whole image, the worst there is.

"paste_masks" is what detectors take, by libcarafe_kernels.so in one thread; "without_kernels" is
NumPy and pycocotools, where there is no library. Both give the same bytes.

For comparison the straightforward way: sample every pixel of the box by two matrix products
("pixels"), then lay it into a byte array of the image's size, one mask at a time, and let
pycocotools encode that ("pixels_and_encoding"). Pixels in which the two ways differ are counted:
their probability is the threshold up to rounding. The pixel IoU is with the masks that
mmdetection pasted (tests/data/units.npz).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
from _common import RESULTS, argument_parser, time_ms, write_result
from pycocotools import mask as coco_mask

from carafe_deploy import masks
from carafe_deploy.kernels import installed_kernels
from carafe_deploy.libraries import missing
from carafe_deploy.masks import decode_mask, paste_masks

SIZE = (800, 1216)
COUNT = 100
VECTORS = Path(__file__).parents[1] / "tests" / "data" / "units.npz"

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def blobs(rng: np.random.Generator) -> Floats:
    """[COUNT, 28, 28] probabilities: wobbly discs with soft edges, as mask heads return."""
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    angle = np.arctan2(y, x)
    waves = rng.uniform(0, 0.12, (COUNT, 5, 1, 1)), rng.uniform(0, 2 * np.pi, (COUNT, 5, 1, 1))
    order = np.arange(1, 6).reshape(5, 1, 1)
    radius = 0.8 + (waves[0] * np.cos(order * angle + waves[1])).sum(axis=1)
    return (1 / (1 + np.exp((np.hypot(x, y) - radius) * 12))).astype(np.float32)


def everyday_boxes(rng: np.random.Generator) -> Floats:
    """[COUNT, 4] boxes inside the image, sides log-uniform in 16..512 pixels."""
    sides = np.exp(rng.uniform(np.log(16), np.log(512), (COUNT, 2)))
    corners = rng.uniform(0, 1, (COUNT, 2)) * (np.array(SIZE[::-1]) - sides)
    return np.hstack((corners, corners + sides)).astype(np.float32)


def equal_boxes(fraction: float) -> Floats:
    """[COUNT, 4] boxes of ``fraction`` of the image's height and width, in its middle."""
    half = np.array(SIZE[::-1]) * fraction / 2
    middle = np.array(SIZE[::-1]) / 2
    return np.tile(np.concatenate((middle - half, middle + half)), (COUNT, 1)).astype(np.float32)


def weights(low: np.float32, high: np.float32, edge: int) -> tuple[int, Floats]:
    """First pixel inside [low, high] and bilinear weights [P, 28] of it and those after it."""
    first, last = max(0, int(low)), min(edge, int(np.ceil(high)))
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    position = (centres - low) / (high - low) * np.float32(28) - np.float32(0.5)
    return first, np.maximum(0, 1 - np.abs(position[:, None] - np.arange(28, dtype=np.float32)))


def pixels(probabilities: Floats, boxes: Floats) -> Iterator[tuple[int, int, Bools]]:
    """First column, first row and [H', W'] pixels of every mask."""
    for probability, (x1, y1, x2, y2) in zip(probabilities, boxes, strict=True):
        left, across = weights(x1, x2, SIZE[1])
        top, down = weights(y1, y2, SIZE[0])
        yield left, top, down @ probability @ across.T >= np.float32(0.5)


def pixels_and_encoding(probabilities: Floats, boxes: Floats) -> list[dict[str, object]]:
    """Encode with pycocotools, from one [H, W] array a mask."""
    encodings = []
    for left, top, region in pixels(probabilities, boxes):
        mask = np.zeros(SIZE, np.uint8, order="F")
        mask[top : top + region.shape[0], left : left + region.shape[1]] = region
        encodings.append(coco_mask.encode(mask))
    return encodings


def differing_pixels(probabilities: Floats, boxes: Floats) -> int:
    """Between the two ways, over all masks."""
    ours = paste_masks(probabilities, boxes, SIZE)
    theirs = pixels_and_encoding(probabilities, boxes)
    return sum(
        int((decode_mask(a) != decode_mask(b)).sum()) for a, b in zip(ours, theirs, strict=True)
    )


def without_kernels(probabilities: Floats, boxes: Floats) -> tuple[dict[str, object], ...]:
    """As where there is no library."""
    with mock.patch.object(masks, "installed_kernels", return_value=None):
        return paste_masks(probabilities, boxes, SIZE)


def sample_pixels(probabilities: Floats, boxes: Floats) -> None:
    """Make every region of :func:`pixels` and drop it."""
    for _ in pixels(probabilities, boxes):
        pass


def smallest_iou() -> float:
    """With mmdetection's pasted masks."""
    vectors = np.load(VECTORS)
    expected = vectors["paste/img_bool_thr0.5"]
    encodings = paste_masks(
        vectors["paste/probs"][:, 0], vectors["paste/boxes"], expected.shape[1:]
    )
    pasted = [decode_mask(encoding) > 0 for encoding in encodings]
    return min(float((a & b).sum() / (a | b).sum()) for a, b in zip(pasted, expected, strict=True))


def main() -> None:
    """Run all cases and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "paste_masks.json")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()

    if installed_kernels() is None:
        raise SystemExit(missing("carafe_kernels"))
    rng = np.random.default_rng(0)
    probabilities = blobs(rng)
    cases = {
        "sides 16..512": everyday_boxes(rng),
        "half the image": equal_boxes(0.5),
        "whole image": equal_boxes(1.0),
    }
    measured = {}
    for name, boxes in cases.items():
        ways: dict[str, Callable[[], object]] = {
            "paste_masks": partial(paste_masks, probabilities, boxes, SIZE),
            "without_kernels": partial(without_kernels, probabilities, boxes),
            "pixels": partial(sample_pixels, probabilities, boxes),
            "pixels_and_encoding": partial(pixels_and_encoding, probabilities, boxes),
        }
        times = {way: time_ms(call, repeats=arguments.repeats) for way, call in ways.items()}
        if paste_masks(probabilities, boxes, SIZE) != without_kernels(probabilities, boxes):
            raise SystemExit(f"{name}: the two ways give different bytes")
        differing = differing_pixels(probabilities, boxes)
        measured[name] = {**times, "differing_pixels": differing}
        print(name, {way: f"{time['median_ms']:.1f} ms" for way, time in times.items()}, differing)
    iou = smallest_iou()
    print(f"smallest pixel IoU with mmdetection's masks: {iou:.4f}")
    write_result(
        arguments.output,
        {
            "image_size": SIZE,
            "masks": COUNT,
            "target_ms": 5,
            "smallest_iou_with_mmdetection": iou,
            "cases": measured,
        },
    )


if __name__ == "__main__":
    main()
