"""Pasting and encoding masks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from carafe_deploy import masks
from carafe_deploy.kernels import KernelLibrary
from carafe_deploy.libraries import require_library
from carafe_deploy.masks import decode_mask, paste_masks


@pytest.fixture(scope="module", autouse=True, params=["kernels", "numpy"])
def way(request):
    """By the library, and as where there is none."""
    library = KernelLibrary(require_library("carafe_kernels"))
    chosen = library if request.param == "kernels" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "installed_kernels", lambda: chosen)
        yield


def paste_by_definition(
    probability: np.ndarray, box: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """[H, W] float64: hat functions of the distance to each cell's centre, as a definition."""
    weights = []
    for low, high, edge in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        low, high = float(low), float(high)
        cells = probability.shape[0]
        at = (np.arange(edge) + 0.5 - low) / (high - low) * cells - 0.5
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))))
    across, down = weights
    return down @ probability.astype(np.float64) @ across.T


@pytest.fixture(scope="module")
def vectors(data_dir):
    with np.load(data_dir / "units.npz") as file:
        return {key: file[key] for key in file.files if key.startswith("paste/")}


class TestRecordedByMmdetection:
    def test_masks_are_equal_pixel_by_pixel(self, vectors):
        expected = vectors["paste/img_bool_thr0.5"]
        encodings = paste_masks(
            vectors["paste/probs"][:, 0], vectors["paste/boxes"], expected.shape[1:]
        )
        pasted = np.stack([decode_mask(encoding) for encoding in encodings])
        np.testing.assert_array_equal(pasted, expected)

    @pytest.mark.parametrize("threshold", [0.01, 0.2, 0.45, 0.6])
    def test_other_thresholds(self, vectors, threshold):
        floats = vectors["paste/img_float"]
        encodings = paste_masks(
            vectors["paste/probs"][:, 0], vectors["paste/boxes"], floats.shape[1:], threshold
        )
        pasted = np.stack([decode_mask(encoding) for encoding in encodings])
        assert pasted.any()
        np.testing.assert_array_equal(pasted, floats >= np.float32(threshold))


class TestByHand:
    def test_one_cell_half_a_cell_around_its_centre(self):
        probability = np.zeros((1, 4, 4), np.float32)
        probability[0, 1, 2] = 1
        # Cells are 2 pixels wide: the centre of cell (1, 2) is at x = 5, y = 3; a pixel centre
        # lies 0.5 pixels, a quarter of a cell, off it on both axes: 0.75 * 0.75 = 0.5625.
        (encoding,) = paste_masks(probability, np.array([[0, 0, 8, 8]], np.float32), (8, 8))
        expected = np.zeros((8, 8), np.uint8)
        expected[2:4, 4:6] = 1
        np.testing.assert_array_equal(decode_mask(encoding), expected)

    def test_threshold_itself_belongs_to_the_mask(self):
        probability = np.full((1, 2, 2), 0.5, np.float32)
        (encoding,) = paste_masks(probability, np.array([[2, 2, 6, 6]], np.float32), (8, 8))
        # Inside the outermost cell centres (3 and 5) all is 0.5, beyond them it fades to zero.
        expected = np.zeros((8, 8), np.uint8)
        expected[3:5, 3:5] = 1
        np.testing.assert_array_equal(decode_mask(encoding), expected)

    def test_several_runs_in_a_column(self):
        stripes = np.zeros((1, 8, 8), np.float32)
        stripes[0, ::2] = 1
        (encoding,) = paste_masks(stripes, np.array([[0, 0, 32, 32]], np.float32), (32, 32))
        mask = decode_mask(encoding)
        # 4 pixels a cell; of each pair of cells the first is set.
        np.testing.assert_array_equal(mask[:, 16], np.tile([1, 1, 1, 1, 0, 0, 0, 0], 4))


class TestEncoding:
    @pytest.mark.parametrize(
        ("box", "size"),
        [
            ((-100, -100, 200, 200), (50, 60)),  # all ones
            ((10, -100, 20, 200), (50, 60)),  # full columns: one run
            ((10, -100, 500, 200), (50, 60)),  # up to the last pixel
            ((-500, -100, 20, 200), (50, 60)),  # from the first pixel
            ((5, 5, 6, 40), (50, 60)),  # narrower than a pixel column's neighbours
            ((70, 70, 90, 90), (50, 60)),  # outside
            ((3, 3, 8, 8), (1, 1)),
            ((0, 0, 1, 1), (1, 1)),
        ],
    )
    def test_same_as_pycocotools(self, box, size):
        probability = np.ones((1, 28, 28), np.float32)
        (encoding,) = paste_masks(probability, np.array([box], np.float32), size)
        pixels = paste_by_definition(probability[0], np.array(box), size) >= 0.5
        assert encoding == coco_mask.encode(np.asfortranarray(pixels, np.uint8))

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
        corner=st.tuples(st.floats(-40, 90), st.floats(-40, 90)),
        sides=st.tuples(st.floats(0.3, 250), st.floats(0.3, 250)),
        threshold=st.sampled_from([0.1, 0.5, 0.9]),
    )
    def test_any_box_against_the_definition(self, seed, size, corner, sides, threshold):
        probability = np.random.default_rng(seed).random((1, 28, 28), np.float32)
        box = np.array([[*corner, *np.add(corner, sides)]], np.float32)
        (encoding,) = paste_masks(probability, box, size, threshold)
        mask = decode_mask(encoding)
        exact = paste_by_definition(probability[0], box[0], size)
        # Positions are float32: nearer to the threshold than this, either side is right.
        clear = np.abs(exact - threshold) > 2e-3
        np.testing.assert_array_equal(mask[clear], (exact >= threshold)[clear])
        assert encoding == coco_mask.encode(np.asfortranarray(mask))


class TestEdges:
    @pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (5, 5, 5, 5), (9, 9, 5, 5)])
    def test_box_without_area_has_an_empty_mask(self, box):
        (encoding,) = paste_masks(
            np.ones((1, 28, 28), np.float32), np.array([box], np.float32), (20, 30)
        )
        assert decode_mask(encoding).shape == (20, 30)
        assert not decode_mask(encoding).any()

    def test_no_masks(self):
        empty = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32)
        assert paste_masks(*empty, (20, 30)) == ()

    @pytest.mark.parametrize("size", [(0, 30), (20, 0)])
    def test_image_without_pixels(self, size):
        box = np.array([[2, 3, 50, 40]], np.float32)
        (encoding,) = paste_masks(np.ones((1, 28, 28), np.float32), box, size)
        assert encoding == {"size": list(size), "counts": b""}

    @pytest.mark.parametrize(
        ("probabilities", "boxes", "threshold", "message"),
        [
            ((2, 28, 28), (1, 4), 0.5, r"\[2, 28, 28\] and boxes \[1, 4\], expected \[N, S, S\]"),
            ((1, 28, 14), (1, 4), 0.5, r"expected \[N, S, S\]"),
            ((1, 28, 28), (1, 5), 0.5, r"and \[N, 4\]"),
            ((1, 28, 28), (1, 4), 0, "threshold is 0, expected a number above 0"),
            ((1, 28, 28), (1, 4), np.nan, "threshold is nan, expected"),
        ],
    )
    def test_arrays_that_do_not_fit(self, probabilities, boxes, threshold, message):
        with pytest.raises(ValueError, match=message):
            paste_masks(
                np.ones(probabilities, np.float32), np.ones(boxes, np.float32), (9, 9), threshold
            )

    def test_values_that_are_not_finite(self):
        nothing = np.zeros((9, 9), np.uint8)
        for box in (
            [0, 0, np.inf, 9],
            [np.nan, 0, 9, 9],
            [-np.inf, 0, np.inf, 9],
            [1e30, 0, 2e30, 9],
            [-2e30, 0, -1e30, 9],
        ):
            probability = np.ones((1, 28, 28), np.float32)
            (encoding,) = paste_masks(probability, np.array([box], np.float32), (9, 9))
            np.testing.assert_array_equal(decode_mask(encoding), nothing)
        box = np.array([[0, 0, 9, 9]], np.float32)
        (encoding,) = paste_masks(np.full((1, 28, 28), np.nan, np.float32), box, (9, 9))
        np.testing.assert_array_equal(decode_mask(encoding), nothing)

    def test_half_precision_probabilities(self):
        probability = np.random.default_rng(0).random((1, 28, 28)).astype(np.float16)
        box = np.array([[2, 3, 50, 40]], np.float32)
        assert paste_masks(probability, box, (60, 60)) == paste_masks(
            probability.astype(np.float32), box, (60, 60)
        )

    def test_large_image_takes_little_memory(self):
        # As pixels this mask alone would be 1.6 GB of float32.
        tracemalloc.start()
        (encoding,) = paste_masks(
            np.ones((1, 28, 28), np.float32),
            np.array([[0, 0, 20000, 20000]], np.float32),
            (20000, 20000),
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50e6
        assert coco_mask.area(encoding) > 19000**2
