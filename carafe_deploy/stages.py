"""The named intermediate tensors of a detector: their order, and what lies between them.

Needs no model code, so that artefacts can be compared where there is none; what varies between
detectors follows from the names in their metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError
from carafe_deploy.operators import OPERATORS

__all__ = ["DETECTIONS", "IMAGES", "Stage", "describe_stages", "detector_stages"]

#: What everything is computed from.
IMAGES = "images"
#: The outputs ``num_dets``, ``det_boxes``, ``det_scores`` and ``det_classes``, seen as one stage.
DETECTIONS = "detections"

_LEVELS = range(2, 7)
_CARAFE_ENCODED, _RPN_CANDIDATES, _MULTILEVEL_ROI_ALIGN, _BOX_CANDIDATES, _BATCHED_NMS = (
    OPERATORS[name].onnx_name
    for name in (
        "carafe_encoded",
        "rpn_candidates",
        "multilevel_roi_align",
        "box_candidates",
        "batched_nms",
    )
)


@dataclass(frozen=True, repr=False)
class Stage(OneLine):
    """A named tensor.

    Attributes:
        name: as artefacts call it.
        kind: its row in the table of tolerances.
        sources: names of the tensors that it is computed from.
        parameters: prefixes of the state_dict keys used on the way from them.
        operators: custom operators on that way, as ONNX calls them.
        rows: what its rows stand for, ``"proposals"`` or ``"detections"``; empty for a tensor
            whose elements have fixed places.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    rows: str = ""


def detector_stages(
    blocks: Sequence[int], mask_convs: int | None, *, logits_first: bool = True
) -> tuple[Stage, ...]:
    """All named tensors of a detector, each behind those that it is computed from.

    Besides the tensors that artefacts name there is :data:`DETECTIONS`.

    Args:
        blocks: residual blocks of the backbone's four layers; 1 where the number is not known.
        mask_convs: convolutions of the mask head; None without a mask head.
        logits_first: the mask head computes logits before it upsamples.
    """
    stages = [*_backbone(blocks), *_neck(), *_rpn(), *_box_head()]
    if mask_convs is not None:
        stages += _mask_head(mask_convs, logits_first)
    return tuple(stages)


def _backbone(blocks: Sequence[int]) -> list[Stage]:
    stages = [Stage("stem", "backbone", (IMAGES,), ("backbone.conv1", "backbone.bn1"))]
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            last = block == count - 1
            name = f"C{layer + 1}" if last else f"layer{layer}.{block}"
            prefix = f"backbone.layer{layer}" + (f".{block}" if count > 1 else "")
            stages.append(Stage(name, "backbone", (stages[-1].name,), (prefix,)))
    return stages


def _neck() -> list[Stage]:
    stages = [
        Stage(f"L{level}", "pyramid", (f"C{min(level, 5)}",), (f"neck.lateral_convs.{level - 2}",))
        for level in _LEVELS
    ]
    for index in (3, 2, 1, 0):
        coarser = _merged(index + 3)
        encoder, prefix = f"encoder{index}", f"neck.upsample_modules.{index}"
        stages += [
            Stage(encoder, "encoder", coarser, (prefix,)),
            Stage(f"carafe{index}", "pyramid", (encoder, *coarser), operators=(_CARAFE_ENCODED,)),
        ]
    stages += [
        Stage(f"P{level}", "pyramid", _merged(level), (f"neck.fpn_convs.{level - 2}",))
        for level in _LEVELS
    ]
    return stages


def _merged(level: int) -> tuple[str, ...]:
    """Terms of the top-down path's sum at a level; the coarsest has one only."""
    return (f"L{level}",) if level == _LEVELS[-1] else (f"L{level}", f"carafe{level - 2}")


def _rpn() -> list[Stage]:
    indices = range(len(_LEVELS))
    stages = [
        Stage(f"rpn_conv{index}", "rpn", (f"P{index + 2}",), ("rpn_head.rpn_conv",))
        for index in indices
    ]
    outputs = [
        Stage(f"{head}{index}", "rpn", (f"rpn_conv{index}",), (f"rpn_head.{head}",))
        for head in ("rpn_cls", "rpn_reg")
        for index in indices
    ]
    names = tuple(stage.name for stage in outputs)
    selected = [
        Stage(name, "proposals", names, operators=(_RPN_CANDIDATES, _BATCHED_NMS), rows="proposals")
        for name in ("proposals", "proposal_scores")
    ]
    return [*stages, *outputs, *selected]


def _pooled(name: str, rois: str) -> Stage:
    sources = (rois, *(f"P{level}" for level in _LEVELS[:4]))
    return Stage(name, "roi_features", sources, operators=(_MULTILEVEL_ROI_ALIGN,), rows=rois)


def _box_head() -> list[Stage]:
    def layer(name: str, source: str, module: str, kind: str) -> Stage:
        prefix = f"roi_head.bbox_head.{module}"
        return Stage(name, kind, (source,), (prefix,), rows="proposals")

    return [
        _pooled("roi_features", "proposals"),
        layer("shared_fc1", "roi_features", "shared_fcs.0", "shared_fc"),
        layer("shared_fc2", "shared_fc1", "shared_fcs.1", "shared_fc"),
        layer("cls_score", "shared_fc2", "fc_cls", "box_head"),
        layer("bbox_pred", "shared_fc2", "fc_reg", "box_head"),
        Stage(
            DETECTIONS,
            "detections",
            ("cls_score", "bbox_pred", "proposals"),
            operators=(_BOX_CANDIDATES, _BATCHED_NMS),
            rows=DETECTIONS,
        ),
    ]


def _mask_head(convs: int, logits_first: bool) -> list[Stage]:
    stages = [_pooled("mask_roi_features", DETECTIONS)]

    def add(name: str, *sources: str, parameter: str = "", operator: str = "") -> None:
        parameters = (f"roi_head.mask_head.{parameter}",) if parameter else ()
        operators = (operator,) if operator else ()
        stages.append(Stage(name, "mask_head", sources, parameters, operators, DETECTIONS))

    for index in range(convs):
        parameter = f"convs.{index}" if convs > 1 else "convs"
        add(f"mask_conv{index + 1}", stages[-1].name, parameter=parameter)
    features = stages[-1].name
    add("mask_encoder", features, parameter="upsample")
    if logits_first:
        add("mask_coarse_logits", features, parameter="conv_logits.weight")
        features = "mask_coarse_logits"
    add("mask_carafe", features, "mask_encoder", operator=_CARAFE_ENCODED)
    rest = "conv_logits.bias" if logits_first else "conv_logits"
    add("mask_logits", "mask_carafe", parameter=rest)
    return stages


def describe_stages(names: Iterable[str]) -> tuple[Stage, ...]:
    """What some names stand for, in the order of computation; :data:`DETECTIONS` is always there.

    Older artefacts name fewer tensors. Their sources are the nearest tensors that have a name, and
    what lies between includes all that leads to tensors without.

    Raises:
        ArtefactError: no stage has one of the names.
    """
    known = {*names, DETECTIONS}
    everything = {stage.name: stage for stage in _guessed(known)}
    for name in sorted(known - set(everything)):
        raise ArtefactError(
            f"stage {name!r} is unknown: the artefact was made by another version, export it again"
        )
    return tuple(
        _between_named(stage, known, everything)
        for stage in everything.values()
        if stage.name in known
    )


def _guessed(names: Collection[str]) -> tuple[Stage, ...]:
    """The stages of the detector that has these among its own."""
    blocks = [
        1 + sum(name.startswith(f"layer{layer}.") for name in names) for layer in (1, 2, 3, 4)
    ]
    convs = None
    if any(name.startswith("mask_") for name in names):
        convs = sum(name.startswith("mask_conv") for name in names)
        if "mask_roi_features" not in names:
            convs = max(convs, 1)  # an older file, of which nothing is known
    logits_first = "mask_coarse_logits" in names or "mask_carafe" not in names
    return detector_stages(blocks, convs, logits_first=logits_first)


def _between_named(stage: Stage, names: Collection[str], everything: dict[str, Stage]) -> Stage:
    """The stage with every unnamed source replaced by what that one is computed from."""
    sources: list[str] = []
    parameters, operators = list(stage.parameters), list(stage.operators)
    waiting = list(stage.sources)
    while waiting:
        source = waiting.pop(0)
        if source in names or source == IMAGES:
            sources.append(source)
            continue
        waiting += everything[source].sources
        parameters += everything[source].parameters
        operators += everything[source].operators
    return replace(
        stage,
        sources=tuple(dict.fromkeys(sources)),
        parameters=tuple(dict.fromkeys(parameters)),
        operators=tuple(dict.fromkeys(operators)),
    )
