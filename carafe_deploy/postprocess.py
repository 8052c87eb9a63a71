"""From the outputs of a detector to detections in the pixels of the original images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from carafe_deploy.errors import ArtefactError
from carafe_deploy.masks import paste_masks
from carafe_deploy.preprocess import Batch
from carafe_deploy.runners.base import Array
from carafe_deploy.types import Detections


def postprocess(
    outputs: Mapping[str, Array],
    batch: Batch,
    *,
    mask_threshold: float = 0.5,
    with_masks: bool = False,
    num_classes: int | None = None,
) -> list[Detections]:
    """Scale boxes back and paste masks, as mmdetection 3.3 does with ``rescale=True``.

    Boxes are not clipped again: the detector clips them to ``image_sizes``.

    Args:
        outputs: of :meth:`carafe_deploy.runners.base.Runner.run`; rows beyond the batch, which
            fill up an artefact of fixed batch size, are ignored.
        batch: what the runner was given.
        mask_threshold: pixels with at least this probability belong to an instance.
        with_masks: paste ``det_masks``; needs pycocotools.
        num_classes: that have a name; None takes any label.

    Returns:
        One :class:`Detections` an image of the batch.

    Raises:
        ArtefactError: an output is missing, has another shape or fewer rows than the batch; or a
            box or score is not finite, or a label has no name.
    """
    names = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    names += ["det_masks"] * with_masks
    for name in names:
        if name not in outputs:
            raise ArtefactError(
                f"the artefact has no output {name!r}, only {sorted(outputs)}: export it again"
            )
        if len(outputs[name]) < len(batch):
            raise ArtefactError(
                f"output {name!r} has {len(outputs[name])} rows for {len(batch)} images: "
                "export the artefact again"
            )
    _check_shapes({name: outputs[name] for name in names})
    found = [
        _detections_of(row, outputs, batch, mask_threshold if with_masks else None)
        for row in range(len(batch))
    ]
    if num_classes is not None:
        _check_labels(found, num_classes)
    return found


def _check_shapes(outputs: Mapping[str, Array]) -> None:
    boxes = outputs["det_boxes"]
    room = boxes.shape[1] if boxes.ndim == 3 else 0
    expected: Mapping[str, tuple[int | None, ...]] = {
        "num_dets": (1,),
        "det_boxes": (room, 4),
        "det_scores": (room,),
        "det_classes": (room,),
        "det_masks": (room, None, None),
    }
    for name, array in outputs.items():
        shape = expected[name]
        fits = array.ndim == 1 + len(shape) and all(
            size in (found, None) for found, size in zip(array.shape[1:], shape, strict=True)
        )
        if not fits or array.dtype.kind not in "fiu":
            axes = ", ".join("?" if size is None else str(size) for size in shape)
            raise ArtefactError(
                f"output {name!r} is {array.dtype} {list(array.shape)}, expected numbers of shape "
                f"[{len(array)}, {axes}]: export the artefact again"
            )


def _check_labels(found: Sequence[Detections], num_classes: int) -> None:
    for detections in found:
        wrong = detections.labels[(detections.labels < 0) | (detections.labels >= num_classes)]
        if len(wrong):
            raise ArtefactError(
                f"the artefact returned label {wrong[0]} and names {num_classes} classes: export "
                "it again"
            )


def _detections_of(
    row: int,
    outputs: Mapping[str, Array],
    batch: Batch,
    mask_threshold: float | None,
) -> Detections:
    number, room = outputs["num_dets"][row].item(), outputs["det_boxes"].shape[1]
    if not 0 <= number <= room:  # nor is NaN
        raise ArtefactError(
            f"the artefact returned num_dets {number} with room for {room} detections: "
            "it is broken, export or build it again"
        )
    count, size = int(number), batch.original_sizes[row]
    boxes = outputs["det_boxes"][row, :count].astype(np.float32)
    scores = outputs["det_scores"][row, :count].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        boxes /= np.tile(batch.scale_factors[row].astype(np.float32), 2)
    _check_finite("boxes or scores", boxes, scores)
    masks = None
    if mask_threshold is not None:
        probabilities = outputs["det_masks"][row, :count]
        _check_finite("masks", probabilities)
        masks = paste_masks(probabilities, boxes, size, mask_threshold)
    labels = outputs["det_classes"][row, :count].astype(np.int64)
    return Detections(boxes, scores, labels, size, masks)


def _check_finite(what: str, *arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ArtefactError(
            f"the artefact returned {what} that are not finite: its precision overflows on this "
            "image, export it with fp32 or bf16"
        )
