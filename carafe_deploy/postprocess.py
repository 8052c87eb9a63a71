"""From the outputs of a detector to detections in the pixels of the original images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from carafe_deploy.errors import ArtefactError
from carafe_deploy.masks import Paste, paste_masks
from carafe_deploy.preprocess import Batch
from carafe_deploy.runners.base import Array
from carafe_deploy.types import Detections


def postprocess(
    outputs: Mapping[str, Array],
    batch: Batch,
    *,
    mask_threshold: float = 0.5,
    with_masks: bool = False,
    paste: Paste = paste_masks,
) -> list[Detections]:
    """Scale boxes back and paste masks, as mmdetection 3.3 does with ``rescale=True``.

    Boxes are not clipped again: the detector clips them to ``image_sizes``.

    Args:
        outputs: of :meth:`carafe_deploy.runners.base.Runner.run`; rows beyond the batch, which
            fill up an artefact of fixed batch size, are ignored.
        batch: what the runner was given.
        mask_threshold: pixels with at least this probability belong to an instance.
        with_masks: paste ``det_masks``; needs pycocotools.
        paste: what pastes them, :func:`carafe_deploy.masks.paste_masks` or its like.

    Returns:
        One :class:`Detections` an image of the batch.

    Raises:
        ArtefactError: an output is missing or has fewer rows than the batch, or a box or score is
            not finite.
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
    return [
        _detections_of(row, outputs, batch, mask_threshold if with_masks else None, paste)
        for row in range(len(batch))
    ]


def _detections_of(
    row: int,
    outputs: Mapping[str, Array],
    batch: Batch,
    mask_threshold: float | None,
    paste: Paste,
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
    _check_finite("boxes or scores", boxes, scores)
    boxes /= np.tile(batch.scale_factors[row].astype(np.float32), 2)
    masks = None
    if mask_threshold is not None:
        probabilities = outputs["det_masks"][row, :count]
        _check_finite("masks", probabilities)
        masks = paste(probabilities, boxes, size, mask_threshold)
    labels = outputs["det_classes"][row, :count].astype(np.int64)
    return Detections(boxes, scores, labels, size, masks)


def _check_finite(what: str, *arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ArtefactError(
            f"the artefact returned {what} that are not finite: its precision overflows on this "
            "image, export it with fp32 or bf16"
        )
