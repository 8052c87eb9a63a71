"""Ranges of a detector's activations over images, found once and kept beside the file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError, CarafeDeployError, ImageError
from carafe_deploy.files import atomic_write_text, sha256_of
from carafe_deploy.images import load_image
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.quantize.layers import Layer
from carafe_deploy.quantize.ranges import PERCENTILE, Histogram, choose
from carafe_deploy.runners._onnxruntime_session import Opener, kernels_for
from carafe_deploy.schema import OneOf, SchemaError, Within, parse, structure
from carafe_deploy.types import CALIBRATION_METHODS, ModelInfo

__all__ = ["FEWEST", "Calibration", "Ranges"]

#: Images without which ranges are chance.
FEWEST = 8
#: Of what a file of ranges means.
_SCHEMA = 2
#: Bytes that no file of ranges has.
_MOST = 64 << 20

_FLOAT32 = float(np.finfo(np.float32).max)
_Bound = Annotated[float, Within(-_FLOAT32, _FLOAT32)]


@dataclass(frozen=True, repr=False)
class Ranges(OneLine):
    """Lowest and highest value of each activation, and what they were found from.

    Attributes:
        model_sha256: of the ONNX file.
        images_sha256: of the images' bytes, in order.
        images: how many.
        method: of choosing them.
        percentile: of that method.
        symmetric: both differ in sign only.
        bounds: by activation.
    """

    always_whole: ClassVar[bool] = True

    model_sha256: str
    images_sha256: str
    images: Annotated[int, Within(1, 1 << 31)]
    method: Annotated[str, OneOf(CALIBRATION_METHODS)]
    percentile: Annotated[float, Within(50, 100)]
    symmetric: bool
    bounds: Mapping[str, tuple[_Bound, _Bound]]

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        for name, (low, high) in self.bounds.items():
            if not low <= 0 <= high:
                raise ValueError(f"bounds of {name} are {low:g} to {high:g}, without zero")
            if self.symmetric and low != -high:
                raise ValueError(f"bounds of {name} are {low:g} to {high:g}, not symmetric")

    def to_json(self) -> str:
        """Serialise."""
        content = {"schema": _SCHEMA, "sha256": self.sha256, **dataclasses.asdict(self)}
        return json.dumps(content, sort_keys=True, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """Of the bounds."""
        text = json.dumps(dict(self.bounds), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, repr=False)
class Calibration(OneLine):
    """What ranges are found from, and how.

    Attributes:
        images: files, all of which are read.
        method: of choosing ranges, one of :data:`~carafe_deploy.types.CALIBRATION_METHODS`.
        percentile: of the values kept, by the method of that name, in percent.
        cache: file of ranges to read, or to write where there is none; None for one beside the
            ONNX file, named after what they depend on.
        threads: of ONNX Runtime; None lets it choose.
    """

    images: Sequence[Path]
    method: str = "minmax"
    percentile: float = PERCENTILE
    cache: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, (str, os.PathLike)) or not isinstance(self.images, Iterable):
            raise ImageError(
                f"images is {self.images!r}: give paths of files, find_images(...) lists a folder's"
            )
        object.__setattr__(self, "images", tuple(_as_path(image) for image in self.images))
        if self.cache is not None:
            object.__setattr__(self, "cache", _as_path(self.cache))

    def check(self) -> None:
        """Raise CarafeDeployError where something does not fit, ImageError of the images."""
        if self.method not in CALIBRATION_METHODS:
            raise CarafeDeployError(
                f"method is {self.method!r}: choose from {', '.join(CALIBRATION_METHODS)}"
            )
        if not (isinstance(self.percentile, (int, float)) and 50 <= self.percentile <= 100):
            raise CarafeDeployError(
                f"percentile is {self.percentile!r}: give the percent of values to keep, 50 to 100"
            )
        if self.threads is not None and not (isinstance(self.threads, int) and self.threads > 0):
            raise CarafeDeployError(f"threads is {self.threads!r}: give at least 1, or None")
        self._check_number(len(self.images), "image")

    def _check_number(self, number: int, noun: str) -> None:
        if number < FEWEST:
            raise ImageError(
                f"calibration has {number} {noun}{'s' * (number != 1)}, from "
                f"which ranges would be chance: give at least {FEWEST}, better some hundred, like "
                "those that the detector is to see"
            )

    def ranges(
        self,
        path: Path,
        model: onnx.ModelProto,
        info: ModelInfo,
        layers: Sequence[Layer],
        *,
        symmetric: bool,
        progress: Callable[[int, int], None] = lambda done, total: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Ranges:
        """Read the ranges that were found before, or find and keep them.

        Args:
            path: of the ONNX file.
            model: what it holds; unchanged.
            info: likewise.
            layers: whose inputs and outputs are wanted.
            symmetric: the ranges shall be.
            progress: called with images done and their total.
            note: told where the ranges come from, or why they are not kept.

        Raises:
            ImageError: an image cannot be read, or there are too few.
            ArtefactError: a cache is of another model, other images or settings, or damaged; an
                activation is not finite.
        """
        self.check()
        wanted = tuple(
            dict.fromkeys(name for layer in layers for name in (*layer.inputs, *layer.outputs))
        )
        hashes = _hashes(self.images)
        self._check_number(len(set(hashes)), "different image")
        empty = Ranges(
            model_sha256=sha256_of(path),
            images_sha256=_joined(hashes),
            images=len(self.images),
            method=self.method,
            percentile=float(self.percentile),
            symmetric=symmetric,
            bounds={},
        )
        cache = self.cache or path.with_name(f"{path.stem}.{_key(empty)}.ranges.json")
        if os.path.exists(cache):  # not Path.exists, which raises on over-long names
            remedy = "name another file of ranges, or none"
            if self.cache is None:
                remedy = "delete it, and they are found again"
            found = _read(cache, empty, wanted, remedy)
            note(f"ranges of {cache}")
            return found
        histograms = self._histograms(path, model, info, wanted, progress)
        bounds = {
            name: choose(histogram, self.method, self.percentile, symmetric=symmetric)
            for name, histogram in histograms.items()
        }
        found = dataclasses.replace(empty, bounds=bounds)
        try:
            atomic_write_text(cache, found.to_json())
            note(f"ranges kept in {cache}")
        except CarafeDeployError as error:
            if self.cache is not None:
                raise
            note(f"ranges are not kept, name another file for them (--ranges): {error}")
        return found

    def _histograms(
        self,
        path: Path,
        model: onnx.ModelProto,
        info: ModelInfo,
        names: Sequence[str],
        progress: Callable[[int, int], None],
    ) -> Mapping[str, Histogram]:
        """By activation; of an image, no more than its activations are held."""
        cpu = (("CPUExecutionProvider", dict[str, str]()),)
        # All activations at once are memory enough.
        opener = Opener(path, cpu, self.threads, kernels_for("cpu", None), arena=False)
        session = opener.open(_with_outputs(model, names))
        preprocess = Preprocessor(info)
        smallest = info.input.batch[0]
        histograms = {name: Histogram() for name in names}
        progress(0, len(self.images))
        for done, file in enumerate(self.images, 1):
            inputs = preprocess([load_image(file)] * smallest).inputs
            computed = [name for name in names if name not in inputs]
            found = dict(zip(computed, _run(session, computed, inputs, path, file), strict=True))
            for name in names:
                try:
                    values = found.pop(name) if name in found else inputs[name]
                    histograms[name].add(values, count=self.method != "minmax")
                except ValueError as error:
                    raise ArtefactError(
                        f"{path} computes {name} from {file}, and {error}: check the checkpoint"
                    ) from error
            progress(done, len(self.images))
        return histograms


def _joined(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hashes(images: Sequence[str | os.PathLike[str]]) -> list[str]:
    found = []
    for file in images:
        try:
            if not os.path.isfile(file):
                raise FileNotFoundError(None, "there is no such file")
            found.append(sha256_of(file))
        except OSError as error:
            raise ImageError(
                f"cannot read image {file}: {error.strerror or error}: check the path and "
                "permissions"
            ) from error
    return found


def _as_path(given: object) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise ImageError(f"{given!r} is no path of a file: give paths")
    return Path(given)


def _run(
    session: Any, names: Sequence[str], inputs: Mapping[str, Any], path: Path, file: Path
) -> list[Any]:
    try:
        found: list[Any] = session.run(list(names), dict(inputs))
    except Exception as error:  # onnxruntime's own classes share no public base
        raise ArtefactError(
            f"ONNX Runtime cannot run {path} on {file}: {str(error).strip().splitlines()[0][:200]}"
        ) from error
    return found


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model serialised, with activations as further outputs."""
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    inputs = {value.name for value in model.graph.input}
    given = len(model.graph.output)
    there = {value.name for value in model.graph.output} | inputs
    model.graph.output.extend(
        known.get(name, onnx.ValueInfoProto(name=name)) for name in names if name not in there
    )
    try:
        return model.SerializeToString()
    finally:
        del model.graph.output[given:]


def _key(ranges: Ranges) -> str:
    """Of all that they depend on but the layers."""
    return hashlib.sha256(ranges.to_json().encode()).hexdigest()[:12]


def _read(cache: Path, expected: Ranges, names: Sequence[str], remedy: str) -> Ranges:
    try:
        if not cache.is_file() or cache.stat().st_size > _MOST:
            raise SchemaError("it is no file of theirs")
        data = parse(cache.read_bytes())
        if isinstance(data, dict) and data.pop("schema", None) != _SCHEMA:
            raise SchemaError(f"its schema is not {_SCHEMA}")
        sha256 = data.pop("sha256", None) if isinstance(data, dict) else None
        found = structure(Ranges, data)
        if found.sha256 != sha256:
            raise SchemaError("they are not those that were written")
    except (SchemaError, OSError) as error:
        raise ArtefactError(f"{cache} holds no ranges ({error}): {remedy}") from error
    for name, words in _MISMATCH.items():
        ours, theirs = getattr(expected, name), getattr(found, name)
        if ours != theirs:
            value = "" if name in _SAID else f" {theirs}"
            raise ArtefactError(f"{cache} holds ranges {words}{value}: {remedy}")
    missing = sorted(set(names) - set(found.bounds))
    if missing:
        raise ArtefactError(
            f"{cache} lacks ranges of {missing[0]} and {len(missing) - 1} others: {remedy}"
        )
    return found


_MISMATCH = {
    "model_sha256": "of another ONNX file",
    "images_sha256": "from other images",
    "method": "by the method",
    "percentile": "of percentile",
    "symmetric": "for another target",
    "images": "of another number of images:",
}
_SAID = ("model_sha256", "images_sha256", "symmetric")
