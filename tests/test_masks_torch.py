"""Masks pasted on a torch device are those that the host pastes, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carafe_deploy import masks_torch
from carafe_deploy.masks import paste_masks
from carafe_deploy.masks_torch import TorchPaster

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def assert_same(
    probabilities: np.ndarray,
    boxes: Any,
    size: tuple[int, int],
    threshold: float = 0.5,
    device: torch.device = CPU,
) -> None:
    boxes = np.asarray(boxes, np.float32)
    expected = paste_masks(probabilities, boxes, size, threshold)
    assert TorchPaster(device)(probabilities, boxes, size, threshold) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.45, 0.5, 0.6])
def test_masks_recorded_by_mmdetection(
    data_dir: Path, threshold: float, device: torch.device
) -> None:
    with np.load(data_dir / "units.npz") as file:
        probabilities, boxes = file["paste/probs"][:, 0], file["paste/boxes"]
        size = file["paste/img_float"].shape[1:]
    assert_same(probabilities, boxes, size, threshold, device)


@pytest.mark.parametrize("device", DEVICES)
def test_many_boxes_of_all_sizes(device: torch.device) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-50, 700, (60, 2))
    boxes = np.hstack((corners, corners + np.exp(rng.uniform(-1, 7, (60, 2)))))
    assert_same(rng.random((60, 28, 28), np.float32), boxes, (480, 640), device=device)


@settings(max_examples=150, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cells=st.sampled_from([1, 2, 28]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    corner=st.tuples(st.floats(-40, 90), st.floats(-40, 90)),
    sides=st.tuples(st.floats(0.3, 250), st.floats(0.3, 250)),
    threshold=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_any_box(
    seed: int,
    cells: int,
    size: tuple[int, int],
    corner: tuple[float, float],
    sides: tuple[float, float],
    threshold: float,
) -> None:
    rng = np.random.default_rng(seed)
    # Few values: many pixels lie at the threshold exactly.
    probabilities = np.round(rng.random((2, cells, cells), np.float32), 1)
    box = [*corner, *np.add(corner, sides)]
    assert_same(probabilities, [box, box], size, threshold)


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 9),
        (9, 9, 5, 5),
        (-100, -100, 200, 200),
        (10, -100, 20, 200),
        (10, -100, 500, 200),
        (-500, -100, 20, 200),
        (70, 70, 90, 90),
        (-90, -90, -70, -70),
        (5, 5, 6, 40),
        (5.2, 5.2, 5.3, 5.3),
    ],
)
@pytest.mark.parametrize("size", [(50, 60), (1, 1), (1, 60), (50, 1)])
def test_edges(box: tuple[float, ...], size: tuple[int, int]) -> None:
    assert_same(np.ones((1, 28, 28), np.float32), [box], size)


def test_no_masks() -> None:
    empty = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32)
    assert TorchPaster(CPU)(*empty, (20, 30)) == ()


def test_half_precision_probabilities() -> None:
    probabilities = np.random.default_rng(0).random((1, 28, 28)).astype(np.float16)
    assert_same(probabilities, [[2, 3, 50, 40]], (60, 60))


def test_masks_are_taken_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    inner = masks_torch.run_ends

    def counted(probabilities: torch.Tensor, *arguments: Any) -> Any:
        groups.append(len(probabilities))
        return inner(probabilities, *arguments)

    monkeypatch.setattr(masks_torch, "run_ends", counted)
    rng = np.random.default_rng(0)
    probabilities = rng.random((7, 28, 28), np.float32)
    boxes = np.tile(np.array([[2, 3, 50, 40]], np.float32), (7, 1))
    expected = paste_masks(probabilities, boxes, (60, 80))
    for memory, sizes in (
        (3 * masks_torch._BYTES_A_COLUMN * 80, [3, 3, 1]),
        (1, [1] * 7),
        (10**9, [7]),
    ):
        groups.clear()
        assert TorchPaster(CPU, memory)(probabilities, boxes, (60, 80)) == expected
        assert groups == sizes


def test_groups_take_no_more_memory_than_said() -> None:
    """Of the worst masks: noise, over the whole image."""
    probabilities = np.random.default_rng(0).random((16, 28, 28), np.float32)
    boxes = np.tile(np.array([[0, 0, 1000, 600]], np.float32), (16, 1))
    memory = 8 * masks_torch._BYTES_A_COLUMN * 1000
    with torch.profiler.profile(profile_memory=True) as profiler:
        TorchPaster(CPU, memory)(probabilities, boxes, (600, 1000))
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 0 < most <= memory
