"""Which layers suffer from 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError, CarafeDeployError
from carafe_deploy.images import Image
from carafe_deploy.parity.matching import box_iou, match_detections
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.quantize.insertion import Target, insert
from carafe_deploy.quantize.layers import Layer
from carafe_deploy.runners._onnxruntime_session import Opener, kernels_for
from carafe_deploy.types import Detections, ModelInfo

__all__ = ["MEASURES", "Sensitivity", "by_error", "detections_change", "ranked"]

#: Of a layer's harm: the error of its own output, in one pass; or how much of the detections
#: changes with it alone quantized, which takes a session and a run for each layer.
MEASURES = ("error", "detections")

_COPY = "_eight_bits"


@dataclass(frozen=True, repr=False)
class Sensitivity(OneLine):
    """A layer's name and its ``harm``, 0 for none, by the measure asked for."""

    layer: str
    harm: float


def ranked(found: Mapping[str, float]) -> tuple[Sensitivity, ...]:
    """The worst first; equals in the order given."""
    rows = [Sensitivity(name, harm) for name, harm in found.items()]
    return tuple(sorted(rows, key=lambda row: -row.harm))


def by_error(
    path: Path,
    model: onnx.ModelProto,
    info: ModelInfo,
    layers: Sequence[Layer],
    bounds: Mapping[str, tuple[float, float]],
    target: Target,
    images: Sequence[Image],
    *,
    values: str = "int8",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Each layer's output error in 8 bits over its output, both as root of the sum of squares.

    Every layer is computed twice in one session, from the same float inputs.

    Args:
        path: of the file, for messages.
        model: float; unchanged.
        info: its metadata.
        layers: to look at.
        bounds: see :func:`~carafe_deploy.quantize.insertion.insert`.
        target: likewise.
        images: to run.
        values: likewise.
        threads: of ONNX Runtime; None lets it choose.
        progress: called with images done and their total.

    Returns:
        By name, in the order of ``layers``.
    """
    doubled, sums = _doubled(model, layers)
    copies = [
        dataclasses.replace(layer, nodes=tuple(name + _COPY for name in layer.nodes))
        for layer in layers
    ]
    apart = dataclasses.replace(target, shared=False)
    both = insert(doubled, copies, bounds, apart, values)
    cpu: Any = (("CPUExecutionProvider", {}),)
    # As it stands: merged with its copy, a layer would have no error.
    opener = Opener(path, cpu, threads, kernels_for("cpu", None), optimize=False)
    session = opener.open(both.SerializeToString())
    names = [name for pairs in sums.values() for pair in pairs for name in pair]
    total = dict.fromkeys(names, 0.0)
    preprocess = Preprocessor(info)
    for done, image in enumerate(images, 1):
        inputs = preprocess([image] * info.input.batch[0]).inputs
        for name, value in zip(names, session.run(names, dict(inputs)), strict=True):
            total[name] += float(value)
        progress(done, len(images))
    return {
        layer: float(
            np.sqrt(
                sum(total[error] for error, _ in pairs)
                / max(sum(total[size] for _, size in pairs), 1e-30)
            )
        )
        for layer, pairs in sums.items()
    }


def detections_change(
    reference: Sequence[Detections], found: Sequence[Detections], *, masks: bool = False
) -> float:
    """How much of the detections changed, 0..1, those of high score counting for more.

    Of each reference detection its score counts; what it keeps is the share of its box (IoU with
    its partner of the same class, from 0.5 on), and with ``masks`` that of its mask, that the
    partner's score leaves of it. Detections that have no partner there count against, by their
    score.

    Raises:
        CarafeDeployError: neither holds a detection.
    """
    whole = kept = 0.0
    for ours, theirs in zip(reference, found, strict=True):
        pairs = match_detections(ours, theirs, iou=0.5, score=1.0).pairs
        whole += float(ours.scores.sum())
        partners = {column for _, column in pairs}
        whole += sum(float(score) for row, score in enumerate(theirs.scores) if row not in partners)
        if not pairs:
            continue
        rows, columns = np.array(pairs, np.intp).T
        overlap = box_iou(ours.boxes[rows], theirs.boxes[columns]).diagonal()
        if masks and ours.masks is not None and theirs.masks is not None:
            overlap = overlap * _mask_iou(ours.masks, theirs.masks, pairs)
        scores = ours.scores[rows], theirs.scores[columns]
        kept += float((overlap * (scores[0] - np.abs(scores[0] - scores[1]))).sum())
    if not whole:
        raise CarafeDeployError(
            f"the float model finds nothing in {len(reference)} images, so nothing can be "
            "compared: give images with objects that it knows"
        )
    return max(0.0, 1 - kept / whole)


def _mask_iou(
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[int, int]],
) -> npt.NDArray[np.float64]:
    """Of each pair; 1 where both are empty."""
    from pycocotools import mask

    found = []
    for row, column in pairs:
        one, other = ours[row], theirs[column]
        is_empty = not (mask.area(one) or mask.area(other))
        found.append(1.0 if is_empty else float(mask.iou([one], [other], [0])[0, 0]))
    return np.array(found)


_Pairs = dict[str, list[tuple[str, str]]]


def _doubled(model: onnx.ModelProto, layers: Sequence[Layer]) -> tuple[onnx.ModelProto, _Pairs]:
    """A copy whose layers' nodes are there twice, and the names of the sums of squares of their
    difference and of the first, a pair a node, by layer.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    of = {name: layer.name for layer in layers for name in layer.nodes}
    sums: _Pairs = {layer.name: [] for layer in layers}
    nodes = list(graph.node)
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)
    }
    del graph.node[:], graph.output[:]
    for node in nodes:
        graph.node.append(node)
        if node.name not in of:
            continue
        if node.output[0] not in kinds:
            raise ArtefactError(
                f"the file does not say of which type {node.output[0]} is: export it again"
            )
        twin = graph.node.add()
        twin.CopyFrom(node)
        twin.name += _COPY
        output, other = node.output[0], node.output[0] + _COPY
        twin.output[0] = other
        error, size = f"{output}_error", f"{output}_size"
        graph.node.extend(
            [
                helper.make_node("Sub", [output, other], [f"{output}_difference"]),
                helper.make_node("Cast", [f"{output}_difference"], [f"{error}_float"], to=1),
                helper.make_node("Cast", [output], [f"{size}_float"], to=1),
                helper.make_node("ReduceSumSquare", [f"{error}_float"], [error], keepdims=0),
                helper.make_node("ReduceSumSquare", [f"{size}_float"], [size], keepdims=0),
            ]
        )
        graph.value_info.append(helper.make_tensor_value_info(other, kinds[output], None))
        graph.output.extend(helper.make_tensor_value_info(name, 1, []) for name in (error, size))
        sums[of[node.name]].append((error, size))
    return copy, sums
