"""Postprocessing against mmdetection's recorded detections."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.errors import ArtefactError
from carafe_deploy.images import load_image
from carafe_deploy.masks import decode_mask
from carafe_deploy.postprocess import postprocess
from carafe_deploy.preprocess import Batch, Preprocessor
from carafe_deploy.types import ModelInfo, Preprocessing

ROWS = 20


def fixed_rows(array: np.ndarray) -> np.ndarray:
    """[1, ROWS, ...], filled up with values that must not come through."""
    padded = np.full((1, ROWS, *array.shape[1:]), 77, array.dtype)
    padded[0, : len(array)] = array
    return padded


def batch_of(*sizes: tuple[int, int], scale: float = 2.0) -> Batch:
    return Batch(
        images=np.zeros((len(sizes), 3, 64, 64), np.float32),
        image_sizes=np.array(sizes, np.float32) * np.float32(scale),
        scale_factors=np.full((len(sizes), 2), scale),
        original_sizes=sizes,
        shrunk=(False,) * len(sizes),
    )


def outputs_of(*counts: int, masks: bool = False) -> dict[str, np.ndarray]:
    batch = len(counts)
    boxes = np.tile(np.array([2, 4, 10, 20], np.float32), (batch, ROWS, 1))
    outputs = {
        "num_dets": np.array(counts, np.int32)[:, None],
        "det_boxes": boxes,
        "det_scores": np.tile(np.linspace(0.9, 0.1, ROWS, dtype=np.float32), (batch, 1)),
        "det_classes": np.tile(np.arange(ROWS, dtype=np.int32), (batch, 1)),
    }
    if masks:
        outputs["det_masks"] = np.ones((batch, ROWS, 28, 28), np.float32)
    return outputs


def test_recorded_outputs_give_recorded_detections(data_dir, shapes_dir):
    with np.load(data_dir / "shapes_mask_rcnn_carafe.stages.npz") as file:
        stage = {k.partition("/")[2]: file[k] for k in file.files if k.startswith("img1/")}
    info = ModelInfo(
        "test", "mask_rcnn", ("a", "b", "c"), preprocessing=Preprocessing(scale=(160, 128))
    )
    batch = Preprocessor(info)([load_image(shapes_dir / "val" / str(stage["file"]))])
    count = len(stage["labels"])
    logits = stage["mask_logits"][np.arange(count), stage["labels"]]
    outputs = {
        "num_dets": np.array([[count]], np.int32),
        # Recorded in pixels of the original image; the network gives those of its input.
        "det_boxes": fixed_rows(stage["boxes"] * np.tile(stage["scale_factor"], 2)),
        "det_scores": fixed_rows(stage["scores"]),
        "det_classes": fixed_rows(stage["labels"].astype(np.int32)),
        "det_masks": fixed_rows((1 / (1 + np.exp(-logits))).astype(np.float32)),
    }
    (found,) = postprocess(outputs, batch, with_masks=True)
    np.testing.assert_allclose(found.boxes, stage["boxes"], rtol=1e-6)
    np.testing.assert_array_equal(found.scores, stage["scores"])
    np.testing.assert_array_equal(found.labels, stage["labels"])
    assert found.image_size == tuple(stage["ori_shape"])
    shape = stage["masks_shape"]
    expected = np.unpackbits(stage["masks"], axis=1)[:, : shape[1] * shape[2]].reshape(shape)
    pasted = np.stack([decode_mask(mask) for mask in found.masks])
    np.testing.assert_array_equal(pasted, expected)


def test_boxes_are_divided_by_each_axis_own_scale():
    batch = Batch(
        images=np.zeros((1, 3, 64, 64), np.float32),
        image_sizes=np.array([[40, 20]], np.float32),
        scale_factors=np.array([[2.0, 4.0]]),
        original_sizes=((10, 10),),
        shrunk=(False,),
    )
    (found,) = postprocess(outputs_of(1), batch)
    assert found.boxes.tolist() == [[1.0, 1.0, 5.0, 5.0]]


def test_dtypes_and_counts_of_every_image():
    found = postprocess(outputs_of(3, 0, 1, masks=True), batch_of(*[(32, 32)] * 3), with_masks=True)
    assert [len(item) for item in found] == [3, 0, 1]
    for item in found:
        assert item.boxes.dtype == np.float32
        assert item.boxes.shape == (len(item), 4)
        assert item.scores.dtype == np.float32
        assert item.labels.dtype == np.int64
        assert len(item.masks) == len(item)
        assert item.image_size == (32, 32)


def test_outputs_are_left_as_they_were():
    outputs = outputs_of(2)
    before = {name: array.copy() for name, array in outputs.items()}
    postprocess(outputs, batch_of((32, 32)))
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, before[name])


def test_rows_that_fill_up_the_batch_are_ignored():
    assert [len(item) for item in postprocess(outputs_of(1, 2, 3, 4), batch_of((32, 32)))] == [1]


def test_masks_only_when_asked_for():
    (found,) = postprocess(outputs_of(1, masks=True), batch_of((32, 32)))
    assert found.masks is None


def test_half_precision_outputs():
    outputs = outputs_of(2, masks=True)
    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in outputs.items()}
    (found,) = postprocess(half, batch_of((32, 32)), with_masks=True)
    assert found.boxes.tolist() == [[1, 2, 5, 10]] * 2


def test_mask_threshold():
    outputs = outputs_of(1, masks=True)
    outputs["det_masks"] *= np.float32(0.4)
    low, high = (
        postprocess(outputs, batch_of((32, 32)), mask_threshold=threshold, with_masks=True)[0]
        for threshold in (0.3, 0.5)
    )
    assert decode_mask(low.masks[0]).any()
    assert not decode_mask(high.masks[0]).any()


@pytest.mark.parametrize("name", ["num_dets", "det_boxes", "det_scores", "det_classes"])
def test_missing_output(name):
    outputs = outputs_of(1)
    del outputs[name]
    with pytest.raises(ArtefactError, match=rf"no output '{name}', only \[.*\]: export it again"):
        postprocess(outputs, batch_of((32, 32)))


def test_masks_asked_of_a_detector_without():
    with pytest.raises(ArtefactError, match="no output 'det_masks'"):
        postprocess(outputs_of(1), batch_of((32, 32)), with_masks=True)


def test_fewer_rows_than_images():
    with pytest.raises(ArtefactError, match="'num_dets' has 1 rows for 2 images"):
        postprocess(outputs_of(1), batch_of((32, 32), (32, 32)))


@pytest.mark.parametrize(
    ("name", "value"), [("det_boxes", np.nan), ("det_boxes", np.inf), ("det_scores", np.nan)]
)
def test_overflow_is_reported(name, value):
    outputs = outputs_of(2)
    outputs[name][0, 1] = value
    with pytest.raises(ArtefactError, match="not finite: its precision overflows on this image"):
        postprocess(outputs, batch_of((32, 32)))


def test_values_beyond_num_dets_may_be_anything():
    outputs = outputs_of(1)
    outputs["det_boxes"][0, 1:] = np.nan
    assert len(postprocess(outputs, batch_of((32, 32)))[0]) == 1


@pytest.mark.parametrize("count", [-1, ROWS + 1, float("nan")])
def test_a_number_of_detections_that_cannot_be_is_refused(count: float) -> None:
    outputs = outputs_of(3)
    outputs["num_dets"] = np.array([[count]])
    with pytest.raises(ArtefactError, match=f"num_dets {count} with room for {ROWS} detections"):
        postprocess(outputs, batch_of((10, 20)))


@pytest.mark.parametrize(("row", "refused"), [(2, True), (3, False)])
def test_masks_that_are_no_numbers_are_refused(row: int, refused: bool) -> None:
    outputs = outputs_of(3, masks=True)
    outputs["det_masks"][0, row, 4, 4] = np.nan
    if not refused:  # padding
        assert len(postprocess(outputs, batch_of((40, 40)), with_masks=True)[0].scores) == 3
        return
    with pytest.raises(ArtefactError, match="masks that are not finite"):
        postprocess(outputs, batch_of((40, 40)), with_masks=True)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_name_is_refused(label: int) -> None:
    outputs = outputs_of(2)
    outputs["det_classes"][0, 1] = label
    with pytest.raises(ArtefactError, match=rf"returned label {label} and names 3 classes: export"):
        postprocess(outputs, batch_of((8, 8)), num_classes=3)
    outputs["det_classes"][0, 1] = 2
    assert len(postprocess(outputs, batch_of((8, 8)), num_classes=3)[0]) == 2


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        (
            "num_dets",
            np.ones((1, 2), np.int32),
            r"int32 \[1, 2\], expected .* \[1, 1\]",
        ),
        ("det_boxes", np.ones((1, ROWS), np.float32), r"float32 \[1, \d+\], expected .*, 4\]"),
        ("det_scores", np.ones((1, 1), np.float32), r"float32 \[1, 1\], expected"),
        ("det_classes", np.full((1, ROWS), "x"), r"<U1 \[1, \d+\], expected numbers"),
        ("det_masks", np.ones((1, ROWS, 28), np.float32), r"expected .* \[1, \d+, \?, \?\]"),
    ],
)
def test_outputs_of_another_shape_are_refused(name: str, array: np.ndarray, expected: str) -> None:
    outputs = {**outputs_of(1, masks=True), name: array}
    with pytest.raises(ArtefactError, match=rf"output '\w+' is .*{expected}.*: export"):
        postprocess(outputs, batch_of((8, 8)), with_masks=True)
