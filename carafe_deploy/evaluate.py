"""COCO average precision and recall by pycocotools, the reference implementation."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.coco import category_ids, load_annotations, to_results
from carafe_deploy.errors import AnnotationError, BackendUnavailableError
from carafe_deploy.pipeline import Pipeline, Progress
from carafe_deploy.runners.base import Runner
from carafe_deploy.types import Detections

__all__ = ["COCO_MAX_DETS", "EvalResult", "evaluate", "evaluate_results", "evaluate_runner"]

#: Detections an image that count, as in COCO's own table.
COCO_MAX_DETS = (1, 10, 100)

# Where pycocotools' `summarize` puts which number.
_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True, repr=False)
class EvalResult(OneLine):
    """What an evaluation found; 0..1, None where the annotations hold no object to average over.

    Attributes:
        numbers: by ``"bbox"`` and ``"segm"``: COCO's twelve, AP, AP50, AP75, APs, APm, APl, then
            AR at each of ``max_dets``, ARs, ARm, ARl.
        per_class: by ``"bbox"`` and ``"segm"``: AP by class name.
        images: how many were evaluated.
        detections: how many were scored.
        max_dets: detections an image that count.
        ignored_categories: annotated categories that the detector does not know.
    """

    numbers: Mapping[str, Mapping[str, float | None]]
    per_class: Mapping[str, Mapping[str, float | None]]
    images: int
    detections: int
    max_dets: tuple[int, int, int]
    ignored_categories: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable content."""
        return asdict(self)


def evaluate(
    detections: Mapping[int, Detections],
    ann_file: str | os.PathLike[str],
    classes: Sequence[str],
    iou_types: Sequence[str] = ("bbox",),
    *,
    image_ids: Iterable[int] | None = None,
    max_dets: tuple[int, int, int] = COCO_MAX_DETS,
) -> EvalResult:
    """Score detections against a COCO annotation file.

    Args:
        detections: by image id; an image without an entry counts as one without detections.
        ann_file: its categories are matched to ``classes`` by name.
        classes: class names by label.
        iou_types: ``"bbox"`` and, when the detections have masks, ``"segm"``.
        image_ids: evaluate on these images only; None for all.
        max_dets: see :func:`evaluate_results`.

    Raises:
        AnnotationError: see :func:`carafe_deploy.coco.load_annotations` and
            :func:`evaluate_results`.
        BackendUnavailableError: pycocotools is not installed.
    """
    annotations = load_annotations(ann_file, with_masks="segm" in iou_types)
    ids = category_ids(annotations, classes)
    results = [
        result
        for image_id, found in detections.items()
        for result in to_results(image_id, found, ids)
    ]
    return evaluate_results(
        results, annotations, classes, iou_types, image_ids=image_ids, max_dets=max_dets
    )


def evaluate_results(
    results: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any],
    classes: Sequence[str],
    iou_types: Sequence[str] = ("bbox",),
    *,
    image_ids: Iterable[int] | None = None,
    max_dets: tuple[int, int, int] = COCO_MAX_DETS,
) -> EvalResult:
    """Score entries of COCO's result format.

    Args:
        results: with ``bbox`` and, for ``"segm"``, ``segmentation``; may be empty.
        annotations: as :func:`carafe_deploy.coco.load_annotations` returns them.
        classes: class names by label; only their categories are evaluated.
        iou_types: ``"bbox"``, ``"segm"`` or both. Sizes small, medium and large are those of the
            boxes for the former and of the masks for the latter, as in mmdetection 3.3.
        image_ids: evaluate on these images only; None for all.
        max_dets: detections an image that count, the last at least 100. AP is at 100; AP50 to APl
            and ARs to ARl are at the last one (mmdetection 3.3 uses 100, 300, 1000).

    Raises:
        AnnotationError: a result or one of ``image_ids`` refers to no annotated image, a result
            lacks a mask, or a class has no category of its name.
        BackendUnavailableError: pycocotools is not installed.
        ValueError: ``iou_types`` or ``max_dets`` is not as above.
    """
    if not iou_types or any(kind not in ("bbox", "segm") for kind in iou_types):
        raise ValueError(f"iou_types is {list(iou_types)}, expected 'bbox', 'segm' or both")
    if 100 not in max_dets or len(max_dets) != 3 or list(max_dets) != sorted(max_dets):
        raise ValueError(f"max_dets is {list(max_dets)}, expected three ascending with 100 in them")
    ids = category_ids(annotations, classes)
    known = {image["id"] for image in annotations["images"]}
    chosen = known if image_ids is None else set(image_ids)
    for image_id in chosen | {result["image_id"] for result in results}:
        if image_id not in known:
            raise AnnotationError(
                f"image_id {image_id} is not in the annotations: evaluate detections of the "
                "annotated images"
            )
    scored = [
        result
        for result in results
        if result["image_id"] in chosen and result["category_id"] in ids
    ]
    numbers: dict[str, dict[str, float | None]] = {}
    per_class: dict[str, dict[str, float | None]] = {}
    for kind in iou_types:
        stats, precision = _run_cocoeval(scored, annotations, ids, sorted(chosen), kind, max_dets)
        recalls = (*(f"AR{count}" for count in max_dets), "ARs", "ARm", "ARl")
        numbers[kind] = dict(
            zip((*_NUMBERS, *recalls), (_present(value) for value in stats), strict=True)
        )
        # pycocotools orders categories by id; [IoU, recall, category, size, max_dets]
        order = sorted(ids)
        per_class[kind] = {
            name: _mean(precision[:, :, order.index(category), 0, -1])
            for name, category in zip(classes, ids, strict=True)
        }
    return EvalResult(
        numbers=numbers,
        per_class=per_class,
        images=len(chosen),
        detections=len(scored),
        max_dets=max_dets,
        ignored_categories=tuple(
            entry["name"] for entry in annotations["categories"] if entry["id"] not in ids
        ),
    )


def _present(value: float) -> float | None:
    # pycocotools says -1 where there is nothing to average over.
    return None if value < 0 else float(value)


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


def _run_cocoeval(
    results: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any],
    ids: Sequence[int],
    image_ids: Sequence[int],
    kind: str,
    max_dets: tuple[int, int, int],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The twelve numbers, and precision [IoU, recall, category, size, max_dets]."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise BackendUnavailableError(
            f"evaluation needs pycocotools ({error}): pip install 'carafe-deploy[eval]'"
        ) from error

    def index(entries: list[dict[str, Any]]) -> Any:
        coco = COCO()
        # Ids from 1, since pycocotools takes a match with annotation 0 for none.
        numbered = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]
        coco.dataset = {**annotations, "annotations": numbered}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        # COCO.loadRes would do for the results, but fails on none.
        truth = index(annotations["annotations"])
        found = index([_scorable(result, kind) for result in results])
        scorer = COCOeval(truth, found, kind)
        scorer.params.imgIds = list(image_ids)
        scorer.params.catIds = list(ids)
        scorer.params.maxDets = list(max_dets)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer.stats, scorer.eval["precision"]


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


def evaluate_runner(
    runner: Runner,
    ann_file: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    limit: int | None = None,
    batch_size: int = 1,
    mixed_sizes: bool = False,
    max_dets: tuple[int, int, int] = COCO_MAX_DETS,
    progress: Progress | None = None,
) -> tuple[EvalResult, dict[int, Detections]]:
    """Detect in the annotated images and score boxes and, for Mask R-CNN, masks.

    Args:
        runner: stays open.
        ann_file: COCO annotations.
        image_dir: folder to which the annotations' ``file_name`` are relative.
        limit: evaluate on the first images of the file only.
        batch_size: images a run.
        mixed_sizes: of different padded sizes too, which changes what is found; see
            :class:`carafe_deploy.pipeline.Pipeline`.
        max_dets: see :func:`evaluate_results`.
        progress: called with images done and their total.

    Returns:
        The result, and the detections by image id.

    Raises:
        AnnotationError: the annotations are broken, an annotated image is missing or has another
            size than annotated, ``limit`` is below 1, or the classes differ.
        ImageError: an image cannot be read.
    """
    if limit is not None and limit < 1:
        raise AnnotationError(f"limit {limit} leaves no image to evaluate: choose at least 1")
    iou_types = ("bbox", "segm") if runner.info.has_masks else ("bbox",)
    annotations = load_annotations(ann_file, with_masks=runner.info.has_masks)
    ids = category_ids(annotations, runner.info.classes)
    images = annotations["images"][:limit]
    paths = [Path(image_dir) / image["file_name"] for image in images]
    # All at once and first: nobody wants to learn of it after an hour.
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise AnnotationError(
            f"{len(missing)} of {len(paths)} annotated images are missing, {missing[0]} first: "
            "check the image folder"
        )
    detections: dict[int, Detections] = {}
    results: list[dict[str, Any]] = []
    pipeline = Pipeline(runner, batch_size, mixed_sizes=mixed_sizes)
    found = pipeline.detect_paths(paths, progress)
    with contextlib.closing(found):
        for image, (path, detected) in zip(images, found, strict=True):
            _check_size(path, detected.image_size, image)
            detections[image["id"]] = detected
            results += to_results(image["id"], detected, ids)
    result = evaluate_results(
        results,
        annotations,
        runner.info.classes,
        iou_types,
        image_ids=list(detections),
        max_dets=max_dets,
    )
    return result, detections


def _check_size(path: Path, size: tuple[int, int], image: Mapping[str, Any]) -> None:
    height, width = image.get("height", size[0]), image.get("width", size[1])
    if size != (height, width):
        raise AnnotationError(
            f"image {path} has {size[1]}x{size[0]} pixels, the annotations say {width}x{height}: "
            "use the images that were annotated"
        )
