"""Walks through intermediate tensors: planted errors are found at the first tensor they reach."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from carafe_deploy.artefacts import open_runner
from carafe_deploy.errors import ArtefactError, ImageError, UnsupportedLevelError
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import Image
from carafe_deploy.parity.walk import GROWTH, StageWalk, WalkStep, walk_stages
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners.base import Runner
from tests.parity.spoilt import Closed, Spoil, Spoilt, Tensors, WithInfo
from tests.parity.test_compatible import OLDER

STATIC = ((1, 1), (128, 128), (192, 192))

Open = Callable[[str], Runner]
Walk = Callable[[Spoil], StageWalk]


@pytest.fixture
def walk_spoilt(reference: Runner, images: list[Image]) -> Walk:
    """From the reference to itself with other tensors, on one image."""
    return lambda spoil: walk_stages(reference, Spoilt(reference, stages=spoil), images[:1])


@pytest.fixture(scope="module")
def exported(export: Callable[..., Path]) -> Open:
    """The small Mask R-CNN in ONNX Runtime, by precision."""

    def make(precision: str) -> Runner:
        options = ExportOptions(*STATIC, precision=precision)
        return open_runner(export("mask", ".onnx", options, exporter="torchscript"))

    return make


# --- planted errors ------------------------------------------------------------------------------

#: Prefix of a state_dict key -> the first tensor behind it, written down from the paper's figures.
FIRST = {
    **{f"backbone.{name}.": "stem" for name in ("conv1", "bn1")},
    **{f"backbone.layer{n}.0.": f"layer{n}.0" for n in (1, 2, 3, 4)},
    **{f"backbone.layer{n}.1.": f"C{n + 1}" for n in (1, 2, 3, 4)},
    **{f"neck.lateral_convs.{n}.": f"L{n + 2}" for n in range(5)},
    **{f"neck.upsample_modules.{n}.": f"encoder{n}" for n in range(4)},
    **{f"neck.fpn_convs.{n}.": f"P{n + 2}" for n in range(5)},
    **{f"rpn_head.{name}.": f"{name}0" for name in ("rpn_conv", "rpn_cls", "rpn_reg")},
    **{f"roi_head.bbox_head.shared_fcs.{n}.": f"shared_fc{n + 1}" for n in (0, 1)},
    "roi_head.bbox_head.fc_cls.": "cls_score",
    "roi_head.bbox_head.fc_reg.": "bbox_pred",
    **{f"roi_head.mask_head.convs.{n}.": f"mask_conv{n + 1}" for n in (0, 1)},
    "roi_head.mask_head.upsample.": "mask_encoder",
    "roi_head.mask_head.conv_logits.weight": "mask_coarse_logits",
    "roi_head.mask_head.conv_logits.bias": "mask_logits",
}

PARTS = ("backbone", "neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head")


def _plant(checkpoint: Path, path: Path, part: str, seed: int) -> tuple[Path, str]:
    """A checkpoint with one weight of a random layer off by the layer's largest, and its key."""
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"]
    layers = [key for key in weights if key.startswith(f"{part}.") and weights[key].ndim > 1]
    generator = random.Random(f"{part} {seed}")
    key = generator.choice(layers)
    weight = weights[key].view(-1)  # convolutions and matrices; biases can be tiny
    weight[generator.randrange(len(weight))] += weight.abs().max()
    torch.save(content, path)
    return path, key


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", PARTS)
def test_a_planted_error_is_found_at_the_first_tensor_it_reaches(
    exported: Open, checkpoint: Path, images: list[Image], tmp_path: Path, part: str, seed: int
) -> None:
    path, key = _plant(checkpoint, tmp_path / "planted.pth", part, seed)
    [expected] = {first for prefix, first in FIRST.items() if key.startswith(prefix)}
    with exported("fp32") as reference, open_runner(path) as candidate:
        walk = walk_stages(reference, candidate, images[:1])
    found = walk.first_outside
    assert found is not None
    assert found.name == expected, key
    assert any(key.startswith(prefix) for prefix in found.parameters)
    assert walk.verdict().startswith(f"{expected} is the first of 56 tensors outside tolerance: ")
    assert walk.verdict().endswith(found.parameters[-1])


def _carafe(tensors: Tensors) -> None:
    tensors["carafe1"][0, 0, 0, 0] += 1.0


def _proposals(tensors: Tensors) -> None:
    tensors["proposals"][:, :100] += 7.0


def _detection(tensors: Tensors) -> None:
    tensors["det_boxes"][0, 0, [0, 2]] += 4.0


def _rows(tensors: Tensors) -> None:
    tensors["shared_fc2"][:, :5] *= 1.1


@pytest.mark.parametrize(
    ("spoil", "growth", "verdict"),
    [
        (
            _carafe,
            "carafe1",
            r"carafe1 is the first of 56 tensors outside tolerance: relative error \S+ > 5e-05; "
            r"before it are encoder1 with 0\.0e\+00, L4 with 0\.0e\+00 and carafe2 with 0\.0e\+00; "
            r"between encoder1, L4, carafe2 and carafe1: the operator CarafeEncoded",
        ),
        (
            _proposals,
            None,
            r"proposals is .* tensors outside tolerance: 900 of 1100 proposals paired, 99\.5% must "
            r"be; before it are 10 tensors, the worst rpn_cls0 with 0\.0e\+00; between them and "
            "proposals: the operator RpnCandidates and the operator BatchedNms",
        ),
        (_detection, None, r"detections is the first .* detections paired, .*"),
        (
            _rows,
            "shared_fc2",
            r"shared_fc2 is the first .*: 995 of 1000 proposals have a relative error <= 0\.0002, "
            r"99\.9% must; the largest is \S+; before it is shared_fc1 with 0\.0e\+00; between "
            r"shared_fc1 and shared_fc2: roi_head\.bbox_head\.shared_fcs\.1",
        ),
    ],
)
def test_a_wrong_tensor_is_found(
    walk_spoilt: Walk, spoil: Spoil, growth: str | None, verdict: str
) -> None:
    walk = walk_spoilt(spoil)
    assert re.fullmatch(verdict, walk.verdict())
    assert walk.first_outside is not None
    assert walk.first_outside.fraction < 1
    assert (walk.first_growth and walk.first_growth.name) == growth


def test_growth_within_tolerance_is_told(walk_spoilt: Walk) -> None:
    def spoil_less(tensors: Tensors) -> None:
        tensors["L3"] *= 1 + 1e-5

    def spoil(tensors: Tensors) -> None:
        spoil_less(tensors)
        tensors["P5"] *= 1.1

    walk = walk_spoilt(spoil)
    assert (walk.first_growth.name, walk.first_outside.name) == ("L3", "P5")
    assert "; but the difference first grows at L3: on average 1.0e-05, " in walk.verdict()
    assert walk.verdict().endswith("between C3 and L3: neck.lateral_convs.1")
    walk = walk_spoilt(spoil_less)
    assert walk.passed
    assert "nearest to it is L3: relative error 1.0e-05 <= 5e-05; but the diff" in walk.verdict()


def test_what_is_no_number_is_found(walk_spoilt: Walk) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["C4"][0, 0, 0, 0] = np.nan
        tensors["layer4.0"][:] = np.nan

    walk = walk_spoilt(spoil)
    assert "C4 is the first of 56 tensors outside tolerance: relative error inf" in walk.verdict()
    steps = {step.name: step for step in walk.steps}
    assert (steps["C4"].growth, steps["layer4.0"].growth) == (np.inf, 1.0)
    assert sum(steps["C4"].histogram[-1:]) == 1
    assert StageWalk.from_json(walk.to_json()) == walk


# --- artefacts that are right --------------------------------------------------------------------


def test_equal_artefacts_have_nothing_outside(reference: Runner, images: list[Image]) -> None:
    walk = walk_stages(reference, reference, images)
    assert walk.passed
    assert (walk.first_outside, walk.first_growth) == (None, None)
    assert {step.max_abs_error for step in walk.steps} == {0.0}
    assert walk.verdict().startswith("all 56 tensors are within tolerance; nearest to it is stem")
    names = [step.name for step in walk.steps if step.name != "detections"]
    assert names == [name for name in reference.info.stages if name != "proposal_scores"]


def test_runtimes_differ_by_rounding_alone(
    reference: Runner, exported: Open, images: list[Image]
) -> None:
    with exported("fp32") as candidate:
        walk = walk_stages(reference, candidate, images)
    assert walk.passed, walk.verdict()
    assert max(step.growth for step in walk.steps) < GROWTH / 2
    assert walk.growth_verdict().startswith("the difference grows nowhere by more than ")
    assert all(0 < step.mean_rel_error < 1e-5 for step in walk.steps)


def test_precisions_differ_by_rounding_alone(exported: Open, images: list[Image]) -> None:
    with exported("fp32") as reference, exported("fp16") as candidate:
        walk = walk_stages(reference, candidate, images)
    assert walk.passed, walk.verdict()
    assert walk.precision == "fp16"
    steps = {step.name: step for step in walk.steps}
    assert 1e-4 < steps["stem"].max_rel_error < steps["C5"].max_rel_error < 2e-2
    assert max(step.growth for step in walk.steps) < GROWTH / 2


def test_an_error_beyond_rounding_is_found_between_precisions(
    exported: Open, checkpoint: Path, images: list[Image], tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["neck.upsample_modules.2.content_encoder.weight"][7] *= 1.5
    torch.save(content, tmp_path / "planted.pth")
    with exported("fp16") as candidate, open_runner(tmp_path / "planted.pth") as reference:
        walk = walk_stages(reference, candidate, images[:1])
    assert walk.first_outside is not None
    assert walk.first_outside.name == "encoder2"


# --- what a walk holds ---------------------------------------------------------------------------


def test_histograms_hold_every_element_once(
    reference: Runner, exported: Open, images: list[Image]
) -> None:
    batch = Preprocessor(reference.info)(images[:1])
    tensors = reference.run_stages(batch.inputs)
    with exported("fp32") as candidate:
        walk = walk_stages(reference, candidate, images[:1])
    for step in walk.steps:
        assert len(step.histogram) == len(walk.edges) + 1
        if step.name in ("proposals", "detections"):
            expected = step.matched
        elif step.rows:
            expected = step.total * tensors[step.name][0].size
            if step.rows == "proposals":
                expected //= 1000
        else:
            expected = tensors[step.name].size
        assert sum(step.histogram) == expected, step.name


def test_json_comes_back_as_it_was(walk_spoilt: Walk) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["P4"] += 1.0

    walk = walk_spoilt(spoil)
    data = json.loads(walk.to_json())
    assert (data["passed"], data["first_outside"], data["first_growth"]) == (False, "P4", "P4")
    assert data["verdict"] == walk.verdict()
    step = next(step for step in data["steps"] if step["name"] == "P4")
    assert step["sources"] == ["L4", "carafe2"]
    assert len(step["histogram"]) == len(data["edges"]) + 1
    assert StageWalk.from_json(walk.to_json()) == walk


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"passed": true, "steps": []}'])
def test_other_text_is_an_error(text: str) -> None:
    with pytest.raises(ArtefactError, match="this is no walk"):
        StageWalk.from_json(text)


def test_how_much_of_a_tolerance_is_used() -> None:
    step = WalkStep(
        *("x", "backbone", ()),
        **dict.fromkeys(("max_abs_error", "mean_rel_error", "growth"), 1.0),
        **{"max_rel_error": 0.5, "matched": 8, "total": 10, "histogram": ()},
        **{"tolerance": 0.25, "measure": "relative", "share": None, "passed": False},
    )
    assert step.used == 2.0
    assert dataclasses.replace(step, share=0.9).used == pytest.approx(2.0)
    assert dataclasses.replace(step, measure="matched", tolerance=0.6).used == pytest.approx(0.5)
    exact = dataclasses.replace(step, measure="matched", tolerance=1.0)
    assert exact.used == np.inf
    assert dataclasses.replace(exact, matched=10).used == 0.0


def test_progress_and_batches(reference: Runner, images: list[Image]) -> None:
    steps: list[tuple[int, int]] = []
    three = [*images, images[0]]
    walk = walk_stages(
        reference, reference, three, batch_size=2, progress=lambda *step: steps.append(step)
    )
    assert steps == [(2, 3), (3, 3)]
    assert walk.images == 3


# --- artefacts that cannot be looked into --------------------------------------------------------


def test_older_exports_are_walked_through_where_they_can(
    reference: Runner, images: list[Image]
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["C2"] *= 1.01

    older = dataclasses.replace(reference.info, stages=OLDER)
    candidate = Spoilt(WithInfo(reference, older), stages=spoil)
    walk = walk_stages(reference, candidate, images[:1])
    assert len(walk.steps) == len(OLDER)  # detections besides, the scores of proposals with them
    assert set(walk.left_out) == set(reference.info.stages) - set(OLDER)
    assert walk.verdict().endswith(
        "before it are the images alone; between images and C2: backbone.layer1, backbone.conv1 "
        "and backbone.bn1"
    )


def test_artefacts_without_stages_are_an_error(reference: Runner, images: list[Image]) -> None:
    with pytest.raises(UnsupportedLevelError, match=r"x\.engine has no intermediate tensors"):
        walk_stages(reference, Closed(reference), images[:1])
    nameless = WithInfo(reference, dataclasses.replace(reference.info, stages=()))
    with pytest.raises(UnsupportedLevelError, match="the candidate cannot be asked"):
        walk_stages(reference, nameless, images[:1])


def test_other_models_and_no_images_are_an_error(reference: Runner, images: list[Image]) -> None:
    other = WithInfo(reference, dataclasses.replace(reference.info, max_detections=7))
    with pytest.raises(ArtefactError, match="these are different models or settings"):
        walk_stages(reference, other, images)
    with pytest.raises(ImageError, match="needs images: give at least one"):
        walk_stages(reference, reference, [])
