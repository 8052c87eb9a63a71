"""Input sizes that an engine is built for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import EngineError
from carafe_deploy.schema import Within
from carafe_deploy.types import InputFormat, ModelInfo

_Edge = Annotated[int, Within(1, 1 << 16)]

#: (batch, height, width); height and width padded, in pixels.
Size = tuple[_Edge, _Edge, _Edge]

_NAMES = ("batch", "height", "width")


@dataclass(frozen=True, repr=False)
class Profile(OneLine):
    """Smallest, usual and largest input; kernels are chosen for the usual one."""

    min: Size
    opt: Size
    max: Size

    def shapes(self, info: ModelInfo) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Smallest, usual and largest shape of each input by name."""
        uint8 = info.input.layout == "nhwc_uint8"
        sizes = (self.min, self.opt, self.max)
        return {
            "images": tuple((b, h, w, 3) if uint8 else (b, 3, h, w) for b, h, w in sizes),
            "image_sizes": tuple((b, 2) for b, _, _ in sizes),
        }


def make_profile(
    info: ModelInfo, min: Size | None = None, opt: Size | None = None, max: Size | None = None
) -> Profile:
    """A profile within the bounds of a model.

    Args:
        info: of the model.
        min: smallest size; None for the model's smallest.
        opt: usual size; None for one image of the size that the config's resize makes, in
            landscape orientation, or the nearest between ``min`` and ``max``.
        max: largest size; None for the model's largest.

    Raises:
        EngineError: sizes are out of order, outside the model's bounds, or not multiples of its
            divisor.
    """
    low, high = map(_size, zip(*_bounds(info.input), strict=True))
    smallest, largest = min or low, max or high
    if opt is None:
        sizes = zip(smallest, _usual(info), largest, strict=True)
        opt = _size(sorted(size)[1] for size in sizes)
    profile = Profile(smallest, opt, largest)
    _check(profile, info)
    return profile


def narrowed(info: ModelInfo, profile: Profile) -> ModelInfo:
    """The same model, accepting what the profile covers and no more."""
    pairs = list(zip(profile.min, profile.max, strict=True))
    return dataclasses.replace(info, input=InputFormat(info.input.layout, *pairs))


def _bounds(accepted: InputFormat) -> tuple[tuple[int, int], ...]:
    return accepted.batch, accepted.height, accepted.width


def _size(values: Iterable[int]) -> Size:
    batch, height, width = values
    return batch, height, width


def _usual(info: ModelInfo) -> Size:
    divisor = info.preprocessing.pad_size_divisor
    long_edge, short_edge = info.preprocessing.scale
    return 1, -(-short_edge // divisor) * divisor, -(-long_edge // divisor) * divisor


def _check(profile: Profile, info: ModelInfo) -> None:
    divisor = info.preprocessing.pad_size_divisor
    for axis, (name, (low, high)) in enumerate(zip(_NAMES, _bounds(info.input), strict=True)):
        values = profile.min[axis], profile.opt[axis], profile.max[axis]
        if not values[0] <= values[1] <= values[2]:
            raise EngineError(
                f"{name} of the profile is {values[0]}, {values[1]}, {values[2]}: give "
                "--min <= --opt <= --max"
            )
        for value in values:
            if not low <= value <= high:
                accepted = f"{low} only" if low == high else f"{low} to {high}"
                raise EngineError(
                    f"{name} {value} of the profile lies outside the model, which accepts "
                    f"{accepted}: choose another, or export with other bounds"
                )
            if name != "batch" and value % divisor:
                raise EngineError(
                    f"{name} {value} of the profile is not a multiple of {divisor}: use "
                    f"{-(-value // divisor) * divisor}"
                )
