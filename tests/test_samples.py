"""Images for those who name none."""

from __future__ import annotations

import numpy as np
import pytest

from carafe_deploy.pipeline import Pipeline
from carafe_deploy.samples import FIRST, sample_images, scene, telling_images
from tests.test_pipeline import FrameRunner


class ChoosyRunner(FrameRunner):
    """Finds something in inputs whose mean brightness is above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def run(self, inputs):
        outputs = super().run(inputs)
        outputs["num_dets"][:] = inputs["images"].mean() > self.limit
        return outputs


def test_the_photograph_is_first_and_all_are_the_same_every_time():
    images, again = dict(sample_images()), dict(sample_images())
    assert list(images)[:3] == [FIRST, "package:shapes/000001.png", "package:scene-1"]
    assert len(images) == 13
    for name, image in images.items():
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, again[name])
    assert (scene(1) != scene(2)).mean() > 0.5


@pytest.mark.parametrize("count", [1, 3, 99])
def test_images_in_which_something_is_found(count):
    brightness = {
        name: Pipeline(FrameRunner()).inputs(image)["images"].mean()
        for name, image in sample_images()
    }
    limit = float(np.median(list(brightness.values())))
    expected = [name for name, mean in brightness.items() if mean > limit]
    assert len(expected) == 6
    assert list(telling_images(ChoosyRunner(limit), count)) == expected[:count]


def test_where_nothing_is_found_the_first_ones():
    assert list(telling_images(ChoosyRunner(2.0), 2)) == [FIRST, "package:shapes/000001.png"]
