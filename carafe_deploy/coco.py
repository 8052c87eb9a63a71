"""COCO's file formats: annotations read and checked, detections written and read back."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carafe_deploy.coco_values import (
    FARTHEST,
    LARGEST_AREA,
    LONGEST,
    check_box,
    check_encoding,
    check_polygons,
    check_shape,
    fault,
    has_mask,
    is_number,
    short,
)
from carafe_deploy.errors import AnnotationError
from carafe_deploy.files import atomic_write_text
from carafe_deploy.types import Detections

_ENTRIES = ("images", "annotations", "categories")
_KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str},
    "annotations": dict(
        id=int, image_id=int, category_id=int, bbox=list, area=(int, float), iscrowd=int
    ),
    "categories": {"id": int, "name": str},
}
#: Ids end up in arrays of int64.
_LARGEST_ID = (1 << 63) - 1
#: What exporters write as ``supercategory`` of a category that has none.
_NO_PARENT = (None, "", "none", "None")


def load_annotations(path: str | os.PathLike[str], *, with_masks: bool = False) -> dict[str, Any]:
    """Read a COCO annotation file and check what an evaluation relies on.

    Args:
        path: JSON with ``images``, ``categories`` and, unless of a test set, ``annotations``.
        with_masks: also check each ``segmentation`` that is there and, if one is, the images'
            ``height`` and ``width``.

    Returns:
        The file's content; ``annotations`` is empty where the file has none.

    Raises:
        AnnotationError: the file is missing or no JSON, lacks a key, has a value of another type
            or out of range (NaN and infinity are), uses an id twice, or a name (see
            :func:`category_names`), an annotation refers to no image or no category, or a
            run-length encoding does not cover its image exactly.
    """
    data = _read_json(path, "annotation file")
    if isinstance(data, dict):
        data = {"annotations": [], **data}
    if not isinstance(data, dict) or any(not isinstance(data.get(k), list) for k in _ENTRIES):
        raise AnnotationError(
            f"annotation file {path} lacks one of the lists {', '.join(_ENTRIES)}: "
            "give an annotation file in COCO's format (instances_*.json)"
        )
    if not data["images"]:
        raise AnnotationError(f"annotation file {path} has no images: nothing to evaluate on")
    try:
        for group in _ENTRIES:
            _check_keys(data, group)
        images, categories = _unique(data, "images"), _unique(data, "categories")
        for entry in data["annotations"]:
            for key, group, known in (
                ("image_id", "images", images),
                ("category_id", "categories", categories),
            ):
                if entry[key] not in known:
                    raise AnnotationError(
                        f"annotation {entry['id']} has {key} {entry[key]}, which is not in "
                        f"{group}: correct it"
                    )
        category_names(data)
        _check_annotations(data, with_masks)
    except AnnotationError as error:
        raise AnnotationError(f"annotation file {path}: {error}") from error
    return data


def _check_keys(data: Mapping[str, Any], group: str) -> None:
    for index, entry in enumerate(data[group]):
        for key, kind in _KEYS[group].items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or (kind is int and abs(value) > _LARGEST_ID):
                raise AnnotationError(
                    f"{group}[{index}] has no valid {key!r}"
                    + (": add it" if value is None else f" ({short(value)}): correct it")
                )


def _check_annotations(data: Mapping[str, Any], with_masks: bool) -> None:
    """Values that pycocotools would take for others, or would crash or hang on."""
    for entry in data["annotations"]:
        owner = "annotation", entry["id"]
        check_box(owner, entry["bbox"])
        if not is_number(entry["area"], 0, LARGEST_AREA):
            remedy = f"give pixels, a finite number from 0 to {LARGEST_AREA:.0e}"
            raise fault(owner, "area", entry["area"], remedy)
        if entry["iscrowd"] not in (0, 1):
            raise fault(owner, "iscrowd", entry["iscrowd"], "give 0 or 1")
        if with_masks:
            check_shape(owner, entry.get("segmentation"))
    if not with_masks or not any(map(has_mask, data["annotations"])):
        return
    for index, image in enumerate(data["images"]):
        for key in ("height", "width"):
            if not is_number(image.get(key), 1, LONGEST) or not isinstance(image[key], int):
                raise AnnotationError(
                    f"images[{index}] has no valid {key!r} ({short(image.get(key))}), which masks "
                    f"need: give an integer from 1 to {LONGEST}"
                )
    sizes = image_sizes(data)
    for entry in data["annotations"]:
        owner, segmentation = ("annotation", entry["id"]), entry.get("segmentation")
        if isinstance(segmentation, dict):
            check_encoding(owner, segmentation, sizes[entry["image_id"]])
        else:
            check_polygons(owner, segmentation or ())


def check_results(
    results: Sequence[Mapping[str, Any]],
    sizes: Mapping[int, tuple[Any, Any]],
    *,
    with_masks: bool = False,
) -> None:
    """Check the values of COCO's result format, see :func:`from_results`.

    Args:
        results: of any images.
        sizes: height and width by image id; results of other images are left to the caller.
        with_masks: also check each ``segmentation`` that is there.

    Raises:
        AnnotationError: an entry lacks a key, has a value that is no finite number or is out of
            range, or a mask that is no compressed run-length encoding of its image's size.
    """
    for index, result in enumerate(results):
        owner = "result", index
        if not isinstance(result, Mapping):
            raise AnnotationError(
                f"result {index} is {short(result)}: give an object with image_id, category_id, "
                "bbox and score"
            )
        for key in ("image_id", "category_id"):
            value = result.get(key)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise fault(owner, key, value, "give the integer id of the annotation file")
        check_box(owner, result.get("bbox"))
        if not is_number(result.get("score"), -FARTHEST, FARTHEST):
            raise fault(owner, "score", result.get("score"), "give a finite number, 0 to 1")
        if with_masks and "segmentation" in result:
            mask = result["segmentation"]
            if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), (str, bytes)):
                remedy = "give a compressed run-length encoding with size and counts"
                raise fault(owner, "segmentation", mask, remedy)
            if result["image_id"] in sizes:
                check_encoding(owner, mask, sizes[result["image_id"]])


def image_sizes(annotations: Mapping[str, Any]) -> dict[int, tuple[Any, Any]]:
    """Height and width by image id, None where the annotations do not tell."""
    return {
        image["id"]: (image.get("height"), image.get("width")) for image in annotations["images"]
    }


def _read_json(path: str | os.PathLike[str], what: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise AnnotationError(f"{what} {path} does not exist: check the path") from error
    except OSError as error:
        raise AnnotationError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise AnnotationError(
            f"{what} {path} is nested too deeply: give a file in COCO's format"
        ) from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise AnnotationError(
            f"{what} {path} is not JSON ({error}): it may be truncated, copy it again"
        ) from error


def _unique(data: Mapping[str, Any], group: str) -> set[int]:
    seen: set[int] = set()
    for entry in data[group]:
        if entry["id"] in seen:
            raise AnnotationError(f"{group} use id {entry['id']!r} twice: make it unique")
        seen.add(entry["id"])
    return seen


def category_names(annotations: Mapping[str, Any]) -> dict[str, int]:
    """COCO category id of every name.

    Some exporters add a root category with the name of a class. Of two categories of one name, that
    which annotations use counts; where none is used, that which has a ``supercategory``.

    Raises:
        AnnotationError: this leaves more than one.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in annotations["categories"]:
        by_name[entry["name"]].append(entry)
    twice = any(len(entries) > 1 for entries in by_name.values())
    used = {entry["category_id"] for entry in annotations["annotations"]} if twice else set()
    return {name: _one_of(name, entries, used) for name, entries in by_name.items()}


def _one_of(name: str, entries: Sequence[Mapping[str, Any]], used: set[int]) -> int:
    left = [entry for entry in entries if len(entries) == 1 or entry["id"] in used]
    if not left:
        left = [entry for entry in entries if entry.get("supercategory") not in _NO_PARENT]
    if len(left) != 1:
        ids = " and ".join(str(entry["id"]) for entry in left or entries)
        raise AnnotationError(
            f"categories use name {name!r} twice (ids {ids}), and nothing tells which one counts: "
            "make it unique"
        )
    found: int = left[0]["id"]
    return found


def category_ids(annotations: Mapping[str, Any], classes: Sequence[str]) -> tuple[int | None, ...]:
    """COCO category id of every label, matched by name as mmdetection 3.3's CocoDataset does.

    None for a class without a category of its name. Categories that the detector does not know are
    left out.

    Raises:
        AnnotationError: no class has one; or see :func:`category_names`.
    """
    by_name = category_names(annotations)
    if not any(name in by_name for name in classes):
        raise AnnotationError(
            f"the annotations have none of the detector's classes: they have "
            f"{some(list(by_name))}, the detector knows {some(classes)}: evaluate on annotations "
            "of the detector's own classes"
        )
    return tuple(by_name.get(name) for name in classes)


def some(names: Sequence[str]) -> str:
    """The first names of a list, for messages."""
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"


def to_results(
    image_id: int, detections: Detections, category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Detections of one image as entries of COCO's result format, best first, ready for JSON.

    Args:
        image_id: of the annotation file.
        detections: boxes become x, y, width, height in pixels, masks ``segmentation``.
        category_ids: by label, see :func:`category_ids`; detections without one are left out.
    """
    x1, y1, x2, y2 = detections.boxes.T.astype(np.float64)
    boxes = np.stack((x1, y1, x2 - x1, y2 - y1), axis=1).tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(
            boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]
    if detections.masks is not None:
        for result, mask in zip(results, detections.masks, strict=True):
            result["segmentation"] = {
                "size": list(mask["size"]),
                "counts": mask["counts"].decode("ascii"),
            }
    return [result for result in results if result["category_id"] is not None]


def write_results(path: str | os.PathLike[str], results: Iterable[Mapping[str, Any]]) -> None:
    """Write a COCO result file, atomically; CarafeDeployError if the path is not writable."""
    atomic_write_text(path, json.dumps(list(results)) + "\n")


def from_results(
    path: str | os.PathLike[str], annotations: Mapping[str, Any], classes: Sequence[str]
) -> dict[int, Detections]:
    """Read a COCO result file, mmdetection's ``*.bbox.json`` and ``*.segm.json`` included.

    Args:
        path: JSON list of results with ``image_id``, ``category_id``, ``bbox``, ``score`` and
            optionally ``segmentation`` (compressed run-length encoding).
        annotations: of the same images, with ``height`` and ``width``.
        classes: class names by label.

    Returns:
        Detections of every annotated image, best first, empty ones included; masks are None unless
        every result has one.

    Raises:
        AnnotationError: the file is missing, no JSON or no list of results, a result refers to no
            image or class, or see :func:`check_results`.
    """
    results = _read_json(path, "result file")
    if not isinstance(results, list):
        raise AnnotationError(
            f"result file {path} is no list: give results of these images and classes in COCO's "
            "format"
        )
    try:
        check_results(results, image_sizes(annotations), with_masks=True)
    except AnnotationError as error:
        raise AnnotationError(f"result file {path}: {error}") from error
    labels = {
        category: label
        for label, category in enumerate(category_ids(annotations, classes))
        if category is not None
    }
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for result in results:
            if result["category_id"] not in labels:
                raise AnnotationError(
                    f"result file {path} has category_id {result['category_id']}, which is none "
                    "of the detector's classes: give results of the same classes"
                )
            by_image[result["image_id"]].append(result)
        with_masks = bool(results) and all("segmentation" in result for result in results)
        found = {
            image["id"]: _from_entries(by_image.pop(image["id"], []), image, labels, with_masks)
            for image in annotations["images"]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnnotationError(
            f"result file {path} does not fit the annotations ({type(error).__name__}: {error}): "
            "give results of these images and classes in COCO's format"
        ) from error
    if by_image:
        raise AnnotationError(
            f"result file {path} has image_id {next(iter(by_image))}, which the annotations lack: "
            "give results of the annotated images"
        )
    return found


def _from_entries(
    entries: list[dict[str, Any]],
    image: Mapping[str, Any],
    labels: Mapping[int, int],
    with_masks: bool,
) -> Detections:
    entries = sorted(entries, key=lambda entry: -entry["score"])
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = None
    if with_masks:
        encodings = [entry["segmentation"] for entry in entries]
        masks = tuple(
            {"size": list(encoding["size"]), "counts": encoding["counts"].encode("ascii")}
            for encoding in encodings
        )
    return Detections(
        boxes=boxes.astype(np.float32),
        scores=np.array([entry["score"] for entry in entries], np.float32),
        labels=np.array([labels[entry["category_id"]] for entry in entries], np.int64),
        image_size=(image["height"], image["width"]),
        masks=masks,
    )
