"""Average precision by pycocotools' COCOeval, the reference implementation; nothing is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.coco_values import has_mask
from carafe_deploy.errors import AnnotationError, BackendUnavailableError

#: COCOeval's area ranges, by index.
_SIZES = {"": 0, "s": 1, "m": 2, "l": 3}


@dataclass(frozen=True, repr=False)
class Scores(OneLine):
    """COCO's twelve by name, and AP at the last limit of detections by category id.

    0..1, None where there is no object to average over.
    """

    numbers: dict[str, float | None]
    by_category: dict[int, float | None]


def run_cocoeval(
    results: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any],
    category_ids: Sequence[int],
    image_ids: Sequence[int],
    kind: str,
    max_dets: tuple[int, int, int],
) -> Scores:
    """Run COCOeval and average its arrays as its ``summarize`` does, to the last digit.

    Args:
        results: entries of COCO's result format; may be empty.
        annotations: COCO's. For ``"segm"``, one without a mask is treated as a crowd: detections
            inside its box count neither as right nor as wrong.
        category_ids: evaluate these.
        image_ids: likewise.
        kind: ``"bbox"`` or ``"segm"``.
        max_dets: three ascending limits of detections an image, 100 among them.

    Raises:
        AnnotationError: a result has no mask, and ``kind`` is ``"segm"``.
        BackendUnavailableError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise BackendUnavailableError(
            f"evaluation needs pycocotools ({error}): pip install 'carafe-deploy[eval]'"
        ) from error

    def index(entries: Sequence[Mapping[str, Any]]) -> Any:
        coco = COCO()
        # Ids from 1, since pycocotools takes a match with annotation 0 for none.
        numbered = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]
        coco.dataset = {**annotations, "annotations": numbered}
        _silent(COCO.createIndex)(coco)
        return coco

    truth = annotations["annotations"]
    # COCO.loadRes would do for the results, but fails on none.
    scorer = COCOeval(
        index([_masked(entry) for entry in truth] if kind == "segm" else truth),
        index([_scorable(result, kind) for result in results]),
        kind,
    )
    scorer.params.imgIds = list(image_ids)
    scorer.params.catIds = list(category_ids)
    scorer.params.maxDets = list(max_dets)
    _silent(COCOeval.evaluate)(scorer)
    _silent(COCOeval.accumulate)(scorer)
    return _averaged(scorer, max_dets)


def _silent(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a ``print`` of its own, which does nothing.

    A replaced ``sys.stdout`` would swallow what other threads print meanwhile, and two threads
    that replace it at a time may put each other's back.
    """
    assert isinstance(function, FunctionType)
    names = {**function.__globals__, "print": lambda *_, **__: None}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__)


def _averaged(scorer: Any, max_dets: tuple[int, int, int]) -> Scores:
    # precision [IoU, recall, category, size, limit] and recall [IoU, category, size, limit]
    precision, recall = scorer.eval["precision"], scorer.eval["recall"]
    thresholds = scorer.params.iouThrs
    last, at_100 = len(max_dets) - 1, max_dets.index(100)
    numbers = {"AP": _mean(precision[:, :, :, 0, at_100])}
    for iou in (0.5, 0.75):
        numbers[f"AP{100 * iou:.0f}"] = _mean(precision[thresholds == iou][:, :, :, 0, last])
    for size in ("s", "m", "l"):
        numbers[f"AP{size}"] = _mean(precision[:, :, :, _SIZES[size], last])
    for limit, count in enumerate(max_dets):
        numbers[f"AR{count}"] = _mean(recall[:, :, 0, limit])
    for size in ("s", "m", "l"):
        numbers[f"AR{size}"] = _mean(recall[:, :, _SIZES[size], last])
    # It has sorted the categories.
    by_category = {
        int(category): _mean(precision[:, :, place, 0, last])
        for place, category in enumerate(scorer.params.catIds)
    }
    return Scores(numbers, by_category)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    # pycocotools says -1 where there is nothing to average over.
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else None


def _masked(annotation: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a mask that pycocotools can read: the box of one that has none, to be ignored."""
    segmentation = annotation.get("segmentation")
    if not has_mask(annotation):
        x, y, width, height = annotation["bbox"]
        box = [x, y, x + width, y, x + width, y + height, x, y + height]
        return {**annotation, "segmentation": [box], "iscrowd": 1}
    if isinstance(segmentation, dict):
        return annotation
    # Two points enclose nothing, and pycocotools takes their four numbers for a box.
    polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
    return {**annotation, "segmentation": polygons}


def _scorable(result: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A result with the fields that pycocotools derives in ``COCO.loadRes``."""
    from pycocotools import mask as coco_mask

    if kind == "bbox":
        area = result["bbox"][2] * result["bbox"][3]
    elif "segmentation" in result:
        area = float(coco_mask.area(result["segmentation"]))
    else:
        raise AnnotationError(
            f"a result of image {result['image_id']} has no mask: evaluate boxes only (bbox)"
        )
    return {**result, "area": area, "iscrowd": 0}
