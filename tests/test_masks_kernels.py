"""Masks by libcarafe_kernels.so against masks by NumPy and pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from carafe_deploy import masks
from carafe_deploy.kernels import KernelLibrary, installed_kernels
from carafe_deploy.masks import paste_masks


def any_masks(
    rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int], float]:
    """Probabilities, boxes, size and threshold: noise, blobs, empty and full masks, of any size and
    place, some without area.
    """
    cells = int(rng.choice([1, 7, 28]))
    height, width = (int(edge) for edge in rng.choice([1, 9, 30, 60, 75, 90], 2))
    noise = rng.random((count, cells, cells), np.float32)
    y, x = np.mgrid[-1 : 1 : (cells * 1j), -1 : 1 : (cells * 1j)]
    blobs = np.clip(rng.random((count, 1, 1)) * 2 - np.hypot(x, y), 0, 1)
    kinds = noise, noise, noise.round(1), blobs, blobs, np.zeros_like(noise), np.ones_like(noise)
    kind = rng.integers(len(kinds), size=count)
    probabilities = np.stack(kinds)[kind, np.arange(count)].astype(np.float32)
    corners = rng.uniform(-0.5, 1.1, (count, 2)) * (width, height)
    sides = np.exp(rng.uniform(-1, 6, (count, 2))) * rng.choice([1] * 9 + [0, -1], (count, 1))
    boxes = np.hstack((corners, corners + sides))
    boxes = np.where(rng.random((count, 1)) < 0.3, boxes.round(), boxes).astype(np.float32)
    return probabilities, boxes, (height, width), float(rng.choice([0.5, 0.5, 0.01, 0.3, 0.9, 1.5]))


def test_ten_thousand_masks_are_the_same_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_kernels() is not None
    rng = np.random.default_rng(0)
    cases = [any_masks(rng, 50) for _ in range(200)]
    by_library = [paste_masks(*case) for case in cases]
    monkeypatch.setattr(masks, "installed_kernels", lambda: None)
    by_numpy = [paste_masks(*case) for case in cases]
    assert by_library == by_numpy
    texts = {encoding["counts"] for group in by_library for encoding in group}
    assert sum(map(len, by_library)) == 10_000
    assert len(texts) > 1_500


def test_the_library_is_called_once_for_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or twice, where the encodings take more than was expected."""
    calls: list[int] = []
    inner = KernelLibrary.paste_masks

    def counted(self: KernelLibrary, params: Any, *addresses: int) -> None:
        calls.append(params.masks)
        inner(self, params, *addresses)

    monkeypatch.setattr(KernelLibrary, "paste_masks", counted)
    boxes = np.tile(np.array([[0, 0, 80, 60]], np.float32), (7, 1))
    for probabilities, expected in (
        (np.ones((7, 28, 28), np.float32), [7]),
        (np.random.default_rng(0).random((7, 28, 28), np.float32), [7, 7]),
    ):
        calls.clear()
        found = paste_masks(probabilities, boxes, (60, 80))
        assert calls == expected
        assert found[3] == paste_masks(probabilities[3:4], boxes[:1], (60, 80))[0]
