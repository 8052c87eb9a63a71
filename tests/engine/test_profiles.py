"""Profiles: defaults from the model, and what is refused."""

from __future__ import annotations

import pytest

from carafe_deploy.engine.profiles import Profile, make_profile, narrowed
from carafe_deploy.errors import EngineError
from carafe_deploy.types import InputFormat
from tests.engine.tiny import tiny_info


def test_defaults_are_the_models_bounds_and_the_usual_size() -> None:
    # Resized to at most 200 x 100 and padded to multiples of 64.
    assert make_profile(tiny_info()) == Profile((1, 64, 64), (1, 128, 256), (4, 192, 256))


def test_the_usual_size_stays_between_the_others() -> None:
    assert make_profile(tiny_info(), min=(2, 192, 64), max=(3, 192, 128)) == Profile(
        (2, 192, 64), (2, 192, 128), (3, 192, 128)
    )


def test_a_static_model_leaves_no_choice() -> None:
    info = tiny_info(InputFormat("nchw_float32", (2, 2), (64, 64), (128, 128)))
    assert make_profile(info) == Profile(*[(2, 64, 128)] * 3)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("nchw_float32", (2, 3, 64, 128)), ("nhwc_uint8", (2, 64, 128, 3))],
)
def test_shapes_follow_the_layout(layout: str, expected: tuple[int, ...]) -> None:
    info = tiny_info(InputFormat(layout, (1, 4), (64, 192), (64, 256)))
    shapes = Profile(*[(2, 64, 128)] * 3).shapes(info)
    assert shapes == {"images": (expected,) * 3, "image_sizes": ((2, 2),) * 3}


def test_a_narrowed_model_accepts_the_profile_only() -> None:
    info = narrowed(tiny_info(), Profile((1, 64, 64), (1, 64, 64), (2, 64, 128)))
    assert info.input == InputFormat("nchw_float32", (1, 2), (64, 64), (64, 128))
    assert info.input_specs[0].shape == ("batch", 3, 64, "64*width")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"min": (1, 64, 100)}, "width 100 of the profile is not a multiple of 64: use 128"),
        ({"max": (4, 256, 256)}, "height 256 of the profile lies outside .* accepts 64 to 192"),
        ({"min": (0, 64, 64)}, "batch 0 of the profile lies outside .* accepts 1 to 4"),
        ({"max": (8, 192, 256)}, "batch 8 .* 1 to 4: choose another, or export with other bounds"),
        ({"opt": (1, 64, 64), "min": (1, 128, 64)}, "height of the profile is 128, 64, 192: give"),
        ({"min": (4, 64, 64), "max": (2, 64, 64)}, "batch of the profile is 4, 2, 2|4, 4, 2"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(sizes: dict, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        make_profile(tiny_info(), **sizes)


def test_a_static_bound_is_named_as_the_only_one() -> None:
    info = tiny_info(InputFormat("nchw_float32", (1, 1), (64, 64), (64, 64)))
    with pytest.raises(EngineError, match=r"batch 2 .* accepts 1 only"):
        make_profile(info, max=(2, 64, 64))
