"""Detections side by side."""

from __future__ import annotations

import base64
import dataclasses

import cv2
import numpy as np
import pytest

from carafe_deploy.bench.record import BenchResult, SampleDetections
from carafe_deploy.report.document import Tile
from carafe_deploy.report.side_by_side import MISSING, ONLY_HERE, comparisons
from tests.report import synthetic

MASK = synthetic.cpu_bench()


def image(tile: Tile) -> np.ndarray:
    """Its pixels, BGR."""
    data = np.frombuffer(base64.b64decode(tile.jpeg), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def has_colour(tile: Tile, colour: tuple[int, int, int]) -> bool:
    """More than a speck of it, JPEG's rounding aside."""
    distance = np.abs(image(tile).astype(int) - colour).max(axis=2)
    return int((distance < 40).sum()) > 100


def with_second(found: SampleDetections) -> BenchResult:
    """The first image, and what the second subject found in it."""
    [first, second] = MASK.subjects[:2]
    sample = MASK.samples[0]
    found_by = {first.name: sample.found[first.name], second.name: found}
    return dataclasses.replace(
        MASK, subjects=(first, second), samples=(dataclasses.replace(sample, found=found_by),)
    )


FOUND = MASK.samples[0].found["PyTorch fp32"]


def test_the_first_subject_comes_first_and_the_others_agree() -> None:
    for comparison, sample in zip(comparisons(MASK), MASK.samples, strict=True):
        assert comparison.title == f"{sample.name}, {sample.width}×{sample.height} pixels"
        count = len(sample.found["PyTorch fp32"].scores)
        first, *others = comparison.tiles
        assert (first.title, first.verdict, first.tone) == ("PyTorch fp32", f"{count} found", "")
        assert {tile.verdict for tile in others} == {f"{count} found again"}
        assert {tile.tone for tile in others} == {"good"}
        assert not any(has_colour(tile, ONLY_HERE.colour) for tile in others)


def test_pictures_are_enlarged_to_a_readable_size() -> None:
    for tile in comparisons(MASK)[0].tiles:
        assert image(tile).shape[:2] == (tile.height, tile.width)
        assert max(tile.height, tile.width) == 508
        assert len(base64.b64decode(tile.jpeg)) < 100_000


@pytest.mark.parametrize(("count", "columns"), [(1, 2), (2, 2), (3, 3), (4, 2), (5, 3)])
def test_rows_are_even(count: int, columns: int) -> None:
    first = MASK.subjects[0]
    names = [f"subject {index}" for index in range(count)]
    sample = dataclasses.replace(MASK.samples[0], found=dict.fromkeys(names, FOUND))
    subjects = tuple(dataclasses.replace(first, name=name) for name in names)
    [comparison] = comparisons(dataclasses.replace(MASK, subjects=subjects, samples=(sample,)))
    assert (len(comparison.tiles), comparison.columns) == (count, columns)


def test_large_images_are_shrunk() -> None:
    pixels = np.full((400, 1000, 3), 128, np.uint8)
    jpeg = base64.b64encode(cv2.imencode(".jpg", pixels)[1].tobytes()).decode()
    found = SampleDetections(((100.0, 200.0, 3000.0, 1000.0),), (0.9,), (0,))
    sample = dataclasses.replace(
        MASK.samples[0], height=1600, width=4000, jpeg=jpeg, found={"PyTorch fp32": found}
    )
    [comparison] = comparisons(dataclasses.replace(MASK, samples=(sample,)))
    [tile] = comparison.tiles
    assert (tile.width, tile.height) == (508, 203)
    # The left edge of the box, 100 of 4000 pixels from the left.
    edge = image(tile)[100:110, 10:16].astype(int)
    assert np.abs(edge - 128).max() > 30


def test_another_class_is_missing_there_and_only_here() -> None:
    labels = ((FOUND.labels[0] + 1) % 3, *FOUND.labels[1:])
    [comparison] = comparisons(with_second(dataclasses.replace(FOUND, labels=labels)))
    reference, tile = comparison.tiles
    count = len(FOUND.labels)
    assert tile.verdict == f"{count - 1} found again, 1 missing, 1 only here"
    assert tile.tone == "warn"
    for kind in (ONLY_HERE, MISSING):
        assert has_colour(tile, kind.colour)
        assert not has_colour(reference, kind.colour)


def test_nothing_found() -> None:
    [comparison] = comparisons(with_second(SampleDetections((), (), ())))
    assert comparison.tiles[1].verdict.startswith(f"0 found again, {len(FOUND.scores)} missing")


def test_nothing_missing_from_nothing() -> None:
    nothing = SampleDetections((), (), ())
    sample = dataclasses.replace(
        MASK.samples[0], found={s.name: nothing for s in MASK.subjects[:2]}
    )
    [comparison] = comparisons(dataclasses.replace(MASK, samples=(sample,)))
    assert [tile.verdict for tile in comparison.tiles] == ["0 found", "0 found again"]


def test_weak_differences_are_counted_not_drawn() -> None:
    weak = SampleDetections(
        (*FOUND.boxes, (2.0, 2.0, 20.0, 20.0)),
        (*FOUND.scores, 0.1),
        (*FOUND.labels, 0),
        (*FOUND.masks, FOUND.masks[0]),
    )
    [comparison] = comparisons(with_second(weak))
    tile = comparison.tiles[1]
    assert tile.verdict.endswith("1 only here, 1 of them below 0.3 and not drawn")
    assert not has_colour(tile, ONLY_HERE.colour)


def test_boxes_alone_are_enough() -> None:
    plain = synthetic.cpu_bench("faster_rcnn")
    assert plain.samples[0].found["PyTorch fp32"].masks == ()
    assert len(comparisons(plain)[0].tiles) == 4


def test_half_precision_has_half_precision_tolerances() -> None:
    moved = tuple(tuple(value + 0.4 for value in box) for box in FOUND.boxes)
    result = with_second(dataclasses.replace(FOUND, boxes=moved, masks=()))  # type: ignore[arg-type]
    sample = result.samples[0]
    boxes_only = {name: dataclasses.replace(f, masks=()) for name, f in sample.found.items()}
    first, second = result.subjects
    for precision, tone in (("fp32", "warn"), ("bf16", "good")):
        again = dataclasses.replace(
            result,
            subjects=(first, dataclasses.replace(second, precision=precision)),
            samples=(dataclasses.replace(sample, found=boxes_only),),
        )
        assert comparisons(again)[0].tiles[1].tone == tone
