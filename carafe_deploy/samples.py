"""Images to try a detector on when its user names none: a comparison of nothing proves nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import cv2
import numpy as np
import numpy.typing as npt

from carafe_deploy.data import data_path
from carafe_deploy.errors import ImageError
from carafe_deploy.images import Image, load_image
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.runners.base import Runner

__all__ = ["FIRST", "sample_images", "scene", "shapes_image", "telling_images"]

#: The photograph that comes with the package.
FIRST = "package:chelsea.png"
#: Besides it, so many of the validation images, and so many made scenes.
_SHAPES, _SCENES = 4, 8
#: Height and width of a made scene.
_SCENE_SIZE = (360, 480)


def telling_images(runner: Runner, count: int) -> Mapping[str, Image]:
    """Images by name in which a detector finds something, at most ``count``.

    They are looked for among :func:`sample_images`, whatever the detector's classes are: most
    detectors take something there for one of theirs. Where nothing is found in any, they are the
    first ``count``.

    Raises:
        ImageError: ``count`` is below 1.
    """
    if count < 1:
        raise ImageError(f"count is {count}: give at least 1")
    pipeline = Pipeline(runner)
    tried: dict[str, Image] = {}
    telling: dict[str, Image] = {}
    for name, image in sample_images():
        tried[name] = image
        if len(pipeline.detect(image)[0]):
            telling[name] = image
        if len(telling) == count:
            break
    return telling or dict(list(tried.items())[:count])


def sample_images() -> Iterator[tuple[str, Image]]:
    """Name and [H, W, 3] uint8 BGR image: the photograph, then shapes and scenes by turns.

    They are the same at every time of asking.
    """
    yield FIRST, load_image(data_path("chelsea.png"))
    shapes = map(shapes_image, range(1, _SHAPES + 1))
    scenes = ((f"package:scene-{seed}", scene(seed)) for seed in range(1, _SCENES + 1))
    for pair in itertools.zip_longest(shapes, scenes):
        yield from filter(None, pair)


def shapes_image(number: int) -> tuple[str, Image]:
    """Name and image of one of the validation images, counted from 1."""
    name = f"{number:06}.png"
    return f"package:shapes/{name}", load_image(data_path("shapes", "val", name))


def scene(seed: int) -> Image:
    """Things of many sizes, colours and outlines before a shaded ground, [360, 480, 3] uint8."""
    random = np.random.default_rng(seed)
    height, width = _SCENE_SIZE
    corners = random.integers(60, 200, (2, 2, 3)).astype(np.float32)
    ground = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    ground = ground + random.normal(0, 6, ground.shape)
    image = ground.clip(0, 255).astype(np.uint8)
    for _ in range(int(random.integers(6, 12))):
        centre = random.uniform(0.1, 0.9, 2) * (width, height)
        size = np.exp(random.uniform(np.log(24), np.log(200)))
        _draw(image, random, centre, size)
    return cv2.GaussianBlur(image, (3, 3), 0).astype(np.uint8)


def _draw(
    image: Image, random: np.random.Generator, centre: npt.NDArray[np.float64], size: float
) -> None:
    """One thing: a closed outline from round to ragged, filled, often with a part inside."""
    corners = int(random.integers(3, 10))
    for scale in (1.0, random.uniform(0.3, 0.6))[: 1 + int(random.integers(0, 2))]:
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        radii = random.uniform(0.35, 0.5, corners) * size * scale
        outline = centre + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        colour = tuple(map(int, random.integers(0, 256, 3)))
        cv2.fillPoly(image, [outline.round().astype(np.int32)], colour, cv2.LINE_AA)
