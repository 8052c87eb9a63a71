"""Preprocessing against mmdetection's recorded inputs, and at the edges of what is accepted."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.errors import ArtefactError, InputShapeError
from carafe_deploy.images import load_image
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners.base import check_inputs
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing


def info(
    *, preprocessing: Preprocessing | None = None, input_format: InputFormat | None = None
) -> ModelInfo:
    return ModelInfo(
        name="test",
        architecture="faster_rcnn",
        classes=("a",),
        preprocessing=preprocessing or Preprocessing(),
        input=input_format or InputFormat(),
    )


SHAPES = info(preprocessing=Preprocessing(scale=(160, 128)))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def stages(data_dir):
    with np.load(data_dir / "shapes_mask_rcnn_carafe.stages.npz") as file:
        return {key: file[key] for key in file.files if "/C" not in key and "/carafe" not in key}


@pytest.mark.parametrize("image", ["img1", "img2"])
class TestRecordedByMmdetection:
    def test_input_is_equal_bit_by_bit(self, stages, shapes_dir, image):
        read = load_image(shapes_dir / "val" / str(stages[f"{image}/file"]))
        batch = Preprocessor(SHAPES)([read])
        np.testing.assert_array_equal(batch.images, stages[f"{image}/input"])

    def test_geometry_is_equal(self, stages, shapes_dir, image):
        read = load_image(shapes_dir / "val" / str(stages[f"{image}/file"]))
        batch = Preprocessor(SHAPES)([read])
        assert batch.original_sizes == (tuple(stages[f"{image}/ori_shape"]),)
        np.testing.assert_array_equal(batch.image_sizes, stages[f"{image}/img_shape"][None])
        np.testing.assert_array_equal(batch.scale_factors, stages[f"{image}/scale_factor"][None])
        assert batch.shrunk == (False,)


def test_uint8_input_is_the_resized_image(stages, shapes_dir):
    read = load_image(shapes_dir / "val" / str(stages["img1/file"]))
    uint8 = info(preprocessing=SHAPES.preprocessing, input_format=InputFormat(layout="nhwc_uint8"))
    batch = Preprocessor(uint8)([read])
    height, width = stages["img1/img_shape"]
    np.testing.assert_array_equal(batch.images[0, :height, :width], stages["img1/resized_bgr_u8"])
    assert not batch.images[0, height:].any()
    assert not batch.images[0, :, width:].any()


class TestSizes:
    @pytest.mark.parametrize(
        ("given", "resized", "padded"),
        [
            ((480, 640), (800, 1067), (832, 1088)),  # limited by the short edge
            ((300, 1000), (400, 1333), (448, 1344)),  # limited by the long edge
            ((1000, 300), (1333, 400), (1344, 448)),
            ((1, 1), (800, 800), (832, 832)),
            ((50, 10000), (7, 1333), (64, 1344)),
            ((10000, 50), (1333, 7), (1344, 64)),
            ((1, 10000), (1, 1333), (64, 1344)),  # rounds to 0 pixels where mmdetection fails
        ],
    )
    def test_keep_ratio_then_pad(self, given, resized, padded):
        batch = Preprocessor(info())([noise(*given)])
        assert batch.images.shape == (1, 3, *padded)
        assert batch.image_sizes.tolist() == [list(resized)]
        expected = [resized[1] / given[1], resized[0] / given[0]]
        np.testing.assert_array_equal(batch.scale_factors, [expected])

    def test_edge_limits_come_in_any_order(self):
        swapped = info(preprocessing=Preprocessing(scale=(800, 1333)))
        assert Preprocessor(swapped)([noise(300, 1000)]).image_sizes.tolist() == [[400, 1333]]

    def test_batch_is_padded_to_the_common_maximum(self):
        images = [noise(100, 160), noise(160, 100)]
        batch = Preprocessor(SHAPES)(images)
        assert batch.images.shape == (2, 3, 192, 192)
        for row, image in enumerate(images):
            alone = Preprocessor(SHAPES)([image]).images[0]
            height, width = alone.shape[1:]
            np.testing.assert_array_equal(batch.images[row, :, :height, :width], alone)
            assert not batch.images[row, :, height:].any()
            assert not batch.images[row, :, :, width:].any()

    def test_padding_is_zero_after_normalisation(self):
        batch = Preprocessor(SHAPES)([np.zeros((100, 160, 3), np.uint8)])
        height = int(batch.image_sizes[0, 0])
        assert (batch.images[0, :, :height, :160] < 0).all()
        assert not batch.images[0, :, height:].any()


class TestBounds:
    @pytest.mark.parametrize(
        ("given", "resized", "shrunk"),
        [
            ((480, 640), (800, 1067), False),
            ((640, 480), (832, 624), True),  # portrait into landscape
            ((300, 1000), (365, 1216), True),
            ((1, 10000), (1, 1216), True),
        ],
    )
    def test_static_shape(self, given, resized, shrunk):
        static = info(input_format=InputFormat("nchw_float32", (1, 1), (832, 832), (1216, 1216)))
        batch = Preprocessor(static)([noise(*given)])
        assert batch.images.shape == (1, 3, 832, 1216)
        assert batch.image_sizes.tolist() == [list(resized)]
        assert batch.shrunk == (shrunk,)
        check_inputs(static, batch.inputs)

    def test_small_image_is_padded_up_to_the_smallest_input(self):
        bounded = info(
            preprocessing=SHAPES.preprocessing, input_format=InputFormat(height=(320, 640))
        )
        batch = Preprocessor(bounded)([noise(100, 160)])
        assert batch.images.shape == (1, 3, 320, 192)
        assert batch.shrunk == (False,)

    def test_only_the_image_that_is_too_large_is_shrunk(self):
        bounded = info(input_format=InputFormat(height=(64, 832), width=(64, 1344)))
        batch = Preprocessor(bounded)([noise(480, 640), noise(640, 480)])
        assert batch.shrunk == (False, True)
        assert batch.image_sizes.tolist() == [[800, 1067], [832, 624]]

    def test_bounds_that_are_no_multiples_are_rounded_inwards(self):
        bounded = info(input_format=InputFormat(height=(100, 831), width=(64, 1344)))
        batch = Preprocessor(bounded)([noise(640, 480)])
        assert batch.images.shape[2] == 768
        assert Preprocessor(bounded)([noise(50, 10000)]).images.shape[2] == 128

    def test_no_multiple_within_bounds(self):
        with pytest.raises(ArtefactError, match=r"height 65 to 127, which holds no multiple of 64"):
            Preprocessor(info(input_format=InputFormat(height=(65, 127))))

    def test_more_pixels_than_any_detector_takes_are_refused_before_they_are_made(self):
        vast = info(preprocessing=Preprocessing(scale=(65536, 65536)))
        message = r"scale|resizes to \[65536, 65536\] .* so to 49152x65536, which is more than"
        with pytest.raises(ArtefactError, match=message):
            Preprocessor(vast).padded_size(noise(48, 64))


class TestNormalisation:
    def test_bgr_order_can_be_kept(self):
        settings = Preprocessing((8, 8), (1.0, 2.0, 3.0), (2.0, 4.0, 8.0), False, 8)
        image = np.broadcast_to(np.array([5, 10, 19], np.uint8), (8, 8, 3))
        batch = Preprocessor(info(preprocessing=settings))([image])
        assert batch.images[0, :, 0, 0].tolist() == [2.0, 2.0, 2.0]

    def test_float32_arithmetic_of_every_byte(self):
        settings = Preprocessing((256, 256), pad_size_divisor=64)
        levels = np.arange(256, dtype=np.uint8)
        image = np.broadcast_to(levels[:, None, None], (256, 256, 3))
        batch = Preprocessor(info(preprocessing=settings))([image])
        for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
            expected = (levels.astype(np.float32) - np.float32(mean)) / np.float32(std)
            np.testing.assert_array_equal(batch.images[0, channel, :, 0], expected)

    def test_views_are_accepted(self):
        image = noise(100, 160)
        flipped = Preprocessor(SHAPES)([image[:, ::-1]])
        copied = Preprocessor(SHAPES)([image[:, ::-1].copy()])
        np.testing.assert_array_equal(flipped.images, copied.images)


class TestBadInput:
    @pytest.mark.parametrize(
        ("image", "shown"),
        [
            (np.zeros((4, 5), np.uint8), r"uint8 \[4, 5\]"),
            (np.zeros((4, 5, 4), np.uint8), r"uint8 \[4, 5, 4\]"),
            (np.zeros((4, 5, 3), np.float32), r"float32 \[4, 5, 3\]"),
            (np.zeros((0, 5, 3), np.uint8), r"uint8 \[0, 5, 3\]"),
        ],
    )
    def test_no_bgr_image(self, image, shown):
        with pytest.raises(InputShapeError, match=rf"image is {shown}, expected non-empty uint8"):
            Preprocessor(info())([image])

    def test_empty_batch(self):
        with pytest.raises(InputShapeError, match="at least one image"):
            Preprocessor(info())([])
