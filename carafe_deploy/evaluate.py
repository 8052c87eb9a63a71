"""COCO average precision and recall by pycocotools, the reference implementation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from carafe_deploy.brief import OneLine
from carafe_deploy.coco import (
    category_ids,
    category_names,
    check_results,
    image_sizes,
    load_annotations,
    some,
    to_results,
)
from carafe_deploy.coco_values import has_mask
from carafe_deploy.cocoeval import run_cocoeval
from carafe_deploy.errors import AnnotationError, CarafeDeployError, ImageError
from carafe_deploy.images import load_image
from carafe_deploy.pipeline import Pipeline, Progress
from carafe_deploy.runners.base import Runner
from carafe_deploy.types import Detections

#: Detections an image that count, as in COCO's own table.
COCO_MAX_DETS = (1, 10, 100)
#: Threads that check images.
_CHECKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, repr=False)
class EvalResult(OneLine):
    """What an evaluation found; 0..1, None where the annotations hold no object to average over.

    Attributes:
        numbers: by ``"bbox"`` and ``"segm"``: COCO's twelve, AP, AP50, AP75, APs, APm, APl, then
            AR at each of ``max_dets``, ARs, ARm, ARl; no ``"segm"`` where no object has a mask.
        per_class: likewise: AP by class name.
        images: how many were evaluated.
        detections: how many were scored.
        max_dets: detections an image that count.
        ignored_categories: annotated categories that the detector does not know.
        objects: annotated objects that were to be found, crowds left out.
        missing_classes: the detector's classes that the annotations lack; they do not count.
        skipped: what is wrong with each image that was left out.
        notes: what else was left out or assumed, one sentence each.
    """

    numbers: Mapping[str, Mapping[str, float | None]]
    per_class: Mapping[str, Mapping[str, float | None]]
    images: int
    detections: int
    max_dets: tuple[int, int, int]
    ignored_categories: tuple[str, ...] = ()
    objects: int = 0
    missing_classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
    """Score detections against a COCO annotation file; all else as :func:`evaluate_results`.

    Args:
        detections: by image id; an image without an entry counts as one without detections.
        ann_file: see :func:`carafe_deploy.coco.load_annotations`, which raises, too.
        classes: class names by label.
        iou_types: ``"bbox"`` and, when the detections have masks, ``"segm"``.
        image_ids: evaluate on these images only; None for all.
        max_dets: detections an image that count.
    """
    if isinstance(classes, str):
        raise AnnotationError(f"classes is {classes!r}: give the names of classes by label")
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
        iou_types: ``"bbox"``, ``"segm"`` or both. Sizes small, medium and large are those of boxes
            or masks, as in mmdetection 3.3. Detections on an object without a mask count neither
            as right nor as wrong for masks. Where no object has one, ``"segm"`` is left out.
        image_ids: evaluate on these images only; None for all.
        max_dets: detections an image that count, the last at least 100. AP is at 100; AP50 to APl
            and ARs to ARl are at the last one (mmdetection 3.3 uses 100, 300, 1000).

    Raises:
        AnnotationError: a result or one of ``image_ids`` refers to no annotated image, a result
            lacks a mask or has a value out of range (:func:`carafe_deploy.coco.check_results`), no
            object has a mask for ``"segm"`` alone, or no class has a category of its name.
        BackendUnavailableError: pycocotools is not installed.
        ValueError: ``iou_types`` or ``max_dets`` is not as above.
    """
    if not iou_types or any(kind not in ("bbox", "segm") for kind in iou_types):
        raise ValueError(f"iou_types is {list(iou_types)}, expected 'bbox', 'segm' or both")
    if 100 not in max_dets or len(max_dets) != 3 or list(max_dets) != sorted(max_dets):
        raise ValueError(f"max_dets is {list(max_dets)}, expected three ascending with 100 in them")
    ids = category_ids(annotations, classes)
    check_results(results, image_sizes(annotations), with_masks="segm" in iou_types)
    known = {image["id"] for image in annotations["images"]}
    chosen = known if image_ids is None else set(image_ids)
    for image_id in chosen | {result["image_id"] for result in results}:
        if image_id not in known:
            raise AnnotationError(
                f"image_id {image_id} is not in the annotations: evaluate detections of the "
                "annotated images"
            )
    annotated = {category for category in ids if category is not None}
    scored, entries = (
        [one for one in group if one["image_id"] in chosen and one["category_id"] in annotated]
        for group in (results, annotations["annotations"])
    )
    objects = [entry for entry in entries if not entry["iscrowd"]]
    missing = tuple(name for name, category in zip(classes, ids, strict=True) if category is None)
    notes = _notes(annotations, classes, missing, objects)
    kinds = list(iou_types)
    if "segm" in kinds:
        without = sum(not has_mask(entry) for entry in objects)
        if 0 < without < len(objects):
            notes.append(
                f"{without} of {len(objects)} annotated objects have no mask: detections on them "
                "count for boxes only"
            )
        elif without:
            kinds.remove("segm")
            notes.append("no annotated object has a mask: only boxes are evaluated")
        if not kinds:
            raise AnnotationError("no annotated object has a mask: evaluate boxes (bbox)")
    scores = {
        kind: run_cocoeval(scored, annotations, sorted(annotated), sorted(chosen), kind, max_dets)
        for kind in kinds
    }
    return EvalResult(
        numbers={kind: found.numbers for kind, found in scores.items()},
        per_class={
            kind: {
                name: None if category is None else found.by_category[category]
                for name, category in zip(classes, ids, strict=True)
            }
            for kind, found in scores.items()
        },
        images=len(chosen),
        detections=len(scored),
        max_dets=max_dets,
        ignored_categories=tuple(n for n in category_names(annotations) if n not in classes),
        objects=len(objects),
        missing_classes=missing,
        notes=tuple(notes),
    )


def _notes(
    annotations: Mapping[str, Any],
    classes: Sequence[str],
    missing: Sequence[str],
    objects: Sequence[Any],
) -> list[str]:
    notes = []
    if missing:
        notes.append(
            f"the annotations have {len(classes) - len(missing)} of the detector's "
            f"{len(classes)} classes, AP is theirs; not annotated, and left out of the results: "
            f"{some(missing)}"
        )
    counting = set(category_names(annotations).values())
    notes += [
        f"category {entry['id']} is ignored: no annotation uses it, and another one is called "
        f"{entry['name']!r} too"
        for entry in annotations["categories"]
        if entry["id"] not in counting
    ]
    if not objects:
        notes.append("no object of the detector's classes is annotated: there is no AP")
    return notes


def evaluate_runner(
    runner: Runner,
    ann_file: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    limit: int | None = None,
    batch_size: int = 1,
    mixed_sizes: bool = False,
    max_dets: tuple[int, int, int] = COCO_MAX_DETS,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> tuple[EvalResult, dict[int, Detections]]:
    """Detect in the annotated images and score boxes and, for Mask R-CNN, masks.

    All images are read and checked before the first one is run.

    Args:
        runner: stays open.
        ann_file: COCO annotations; of a test set, which has none, there is no AP.
        image_dir: folder to which the annotations' ``file_name`` are relative.
        limit: evaluate on the first images of the file only.
        batch_size: see :class:`carafe_deploy.pipeline.Pipeline`.
        mixed_sizes: likewise.
        max_dets: see :func:`evaluate_results`.
        skip_broken: leave out images that are missing, cannot be read or have another size than
            annotated, together with what is annotated in them.
        progress: called with images done and their total.

    Returns:
        The result, and the detections by image id.

    Raises:
        AnnotationError: the annotations are broken, ``limit`` is below 1, no class is shared, or an
            image is missing or has another size than annotated (``skip_broken``: all of them).
        ImageError: an image cannot be read.
    """
    if limit is not None and limit < 1:
        raise AnnotationError(f"limit {limit} leaves no image to evaluate: choose at least 1")
    iou_types = ("bbox", "segm") if runner.info.has_masks else ("bbox",)
    annotations = load_annotations(ann_file, with_masks=runner.info.has_masks)
    ids = category_ids(annotations, runner.info.classes)
    images, skipped = _usable(annotations["images"][:limit], Path(image_dir), skip_broken)
    paths = [Path(image_dir) / image["file_name"] for image in images]
    detections: dict[int, Detections] = {}
    results: list[dict[str, Any]] = []
    pipeline = Pipeline(runner, batch_size, mixed_sizes=mixed_sizes)
    found = pipeline.detect_paths(paths, progress)
    with contextlib.closing(found):
        for image, (_, detected) in zip(images, found, strict=True):
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
    return replace(result, skipped=skipped), detections


def _usable(
    images: Sequence[Mapping[str, Any]], folder: Path, skip_broken: bool
) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """Images that can be evaluated, and what is wrong with the others.

    All of them and first: nobody wants to learn of it after an hour.
    """
    paths = [folder / image["file_name"] for image in images]
    # os.path, not Path.is_file: the latter raises on over-long names.
    missing = [path for path in paths if not os.path.isfile(path)]
    remedy = "or leave such images out with skip_broken (--skip-broken)"
    if missing and (len(missing) == len(paths) or not skip_broken):
        raise AnnotationError(
            f"{len(missing)} of {len(paths)} annotated images are missing, {missing[0]} first: "
            "check the image folder" + ("" if skip_broken else f", {remedy}")
        )
    with ThreadPoolExecutor(_CHECKERS) as pool:
        faults = list(pool.map(_fault, paths, images))
    broken = [fault for fault in faults if fault is not None]
    if broken and (len(broken) == len(faults) or not skip_broken):
        raise type(broken[0])(
            f"{len(broken)} of {len(faults)} annotated images cannot be evaluated: {broken[0]}"
            + ("" if skip_broken else f", {remedy}")
        )
    usable = [image for image, fault in zip(images, faults, strict=True) if fault is None]
    return usable, tuple(map(str, broken))


def _fault(path: Path, image: Mapping[str, Any]) -> CarafeDeployError | None:
    try:
        height, width = load_image(path).shape[:2]
    except ImageError as error:
        return error
    except ValueError as error:  # a zero byte in the name
        return ImageError(f"cannot read image {path}: {error}: correct its file_name")
    annotated = image.get("height", height), image.get("width", width)
    if (height, width) == annotated:
        return None
    return AnnotationError(
        f"image {path} has {width}x{height} pixels, the annotations say "
        f"{annotated[1]}x{annotated[0]}: use the images that were annotated"
    )
