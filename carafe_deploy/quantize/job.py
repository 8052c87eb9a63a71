"""A float ONNX detector becomes one that computes in 8 bits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
import onnxruntime
from onnx import helper

from carafe_deploy.brief import OneLine
from carafe_deploy.engine.onnx_model import info_of, read_onnx
from carafe_deploy.errors import ArtefactError, CarafeDeployError
from carafe_deploy.files import atomic_path, temporary_folder
from carafe_deploy.images import load_image
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.quantize.calibration import Calibration, Ranges
from carafe_deploy.quantize.insertion import Target, insert, target_of
from carafe_deploy.quantize.layers import Layer, layers_of, selected
from carafe_deploy.quantize.sensitivity import (
    MEASURES,
    Sensitivity,
    by_error,
    detections_change,
    ranked,
)
from carafe_deploy.runners.onnxruntime import OnnxRuntimeRunner
from carafe_deploy.types import METADATA_KEY, Detections, ModelInfo, Quantization

__all__ = ["Quantizer", "Trial"]

_Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Nobody looks on."""


@dataclass(frozen=True, repr=False)
class Trial(OneLine):
    """Layers kept in float, and how far the rest of them in 8 bits takes the detector away."""

    kept_float: tuple[str, ...]
    loss: float


class Quantizer:
    """Finds ranges once, when they are needed, and makes any number of quantized models of a file.

    Args:
        path: of an ``.onnx`` file of ``export_onnx``.
        calibration: images, and how ranges are chosen.
        target: one of :data:`~carafe_deploy.quantize.insertion.TARGETS`.
        values: ``"int8"`` or ``"fp8"`` (E4M3).
        progress: told of images calibrated and their total.
        note: told where ranges were read or kept.

    Attributes:
        path: of the float file.
        info: its metadata.
        layers: that can be quantized.

    Raises:
        ArtefactError: the file is missing, damaged, of another exporter, quantized already, or of
            a precision that the target does not take.
        CarafeDeployError: the target or the values are unknown, or do not fit each other.
        ImageError: there are too few calibration images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        calibration: Calibration,
        *,
        target: str = "cpu",
        values: str = "int8",
        progress: _Progress = _silent,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path, self._calibration = Path(path), calibration
        self._target_name, self._values = target, values
        self._target = target_of(target, values)
        calibration.check()
        self._model = read_onnx(path)
        self.info = _float_info(self.path, self._model, target, self._target)
        self.layers: tuple[Layer, ...] = layers_of(self._model)
        self._progress, self._note = progress, note

    @cached_property
    def ranges(self) -> Ranges:
        """Of the activations; found, or read, when they are asked for first.

        Raises:
            ArtefactError, ImageError: see
                :meth:`~carafe_deploy.quantize.calibration.Calibration.ranges`.
        """
        return self._calibration.ranges(
            self.path,
            self._model,
            self.info,
            self.layers,
            symmetric=self._target.symmetric,
            progress=self._progress,
            note=self._note,
        )

    def check(self, output: str | os.PathLike[str], float_layers: Sequence[str] = ()) -> None:
        """Raise what :meth:`write` would, for the asking; it takes no ranges."""
        self._chosen(Path(output), _names(float_layers))

    def _chosen(self, output: Path, float_layers: Sequence[str]) -> tuple[Layer, ...]:
        if output.exists() and output.samefile(self.path):
            raise CarafeDeployError(f"{output} is the file to quantize: choose another output")
        cache = self._calibration.cache
        if cache is not None and cache.absolute() == output.absolute():
            raise CarafeDeployError(f"{output} is the file of ranges: choose another output")
        return selected(self.layers, float_layers)

    def write(self, output: str | os.PathLike[str], float_layers: Sequence[str] = ()) -> ModelInfo:
        """Write the quantized file; it appears complete or not at all.

        Args:
            output: of the file.
            float_layers: names of :attr:`layers` that stay as they are.

        Returns:
            The metadata, which the file holds.

        Raises:
            ArtefactError: a name is no layer's, or no layer is left.
            CarafeDeployError: the output is the float file, or cannot be written.
        """
        output = Path(output)
        float_layers = _names(float_layers)
        chosen = self._chosen(output, float_layers)
        info = dataclasses.replace(
            self.info,
            precision=self._values,
            quantization=Quantization(
                target=self._target_name,
                method=self.ranges.method,
                percentile=self.ranges.percentile if self.ranges.method == "percentile" else None,
                images=self.ranges.images,
                images_sha256=self.ranges.images_sha256,
                ranges_sha256=self.ranges.sha256,
                layers=tuple(layer.name for layer in chosen),
                kept_float=tuple(dict.fromkeys(float_layers)),
                base=self.info.precision,
            ),
            versions={**self.info.versions, "onnxruntime": onnxruntime.__version__},
        )
        with atomic_path(output) as temporary:
            model = insert(self._model, chosen, self.ranges.bounds, self._target, self._values)
            helper.set_model_props(model, {METADATA_KEY: info.to_json()})
            onnx.checker.check_model(model)
            onnx.save(model, temporary)
        return info

    def sensitivity(
        self,
        measure: str = "error",
        images: int = 8,
        progress: _Progress = _silent,
    ) -> tuple[Sensitivity, ...]:
        """Layers by how much they suffer, the worst first.

        Args:
            measure: one of :data:`~carafe_deploy.quantize.sensitivity.MEASURES`.
            images: so many of the calibration images are used.
            progress: told of steps done and their total.

        Raises:
            CarafeDeployError: there is no such measure, or no image.
        """
        if measure not in MEASURES:
            raise CarafeDeployError(f"measure is {measure!r}: choose from {', '.join(MEASURES)}")
        files = self._some(images)
        if measure == "error":
            loaded = [load_image(file) for file in files]
            found = by_error(
                self.path,
                self._model,
                self.info,
                self.layers,
                self.ranges.bounds,
                self._target,
                loaded,
                values=self._values,
                threads=self._calibration.threads,
                progress=progress,
            )
            return ranked(found)
        reference = self._detect(self.path, files)
        names = [layer.name for layer in self.layers]
        harm = {}
        for done, name in enumerate(names, 1):
            others = [other for other in names if other != name]
            harm[name] = self._change(others, files, reference)
            progress(done, len(names))
        return ranked(harm)

    def change(self, images: int = 8) -> Callable[[Sequence[str]], float]:
        """A function of the layers kept in float: how much of the detections changes, 0..1.

        See :func:`~carafe_deploy.quantize.sensitivity.detections_change`; ``images`` of the
        calibration images are used.
        """
        files = self._some(images)
        reference = self._detect(self.path, files)
        # Refused at once where there is nothing to compare.
        detections_change(reference, reference)
        return lambda float_layers: self._change(float_layers, files, reference)

    def _some(self, images: int) -> Sequence[Path]:
        if images < 1:
            raise CarafeDeployError(f"images is {images}: give at least 1")
        return self._calibration.images[:images]

    @contextmanager
    def opened(self, float_layers: Sequence[str]) -> Iterator[OnnxRuntimeRunner]:
        """The quantized model, ready to run, while the context lasts."""
        with temporary_folder() as folder:
            self.write(folder / "quantized.onnx", float_layers)
            with self._runner(folder / "quantized.onnx") as runner:
                yield runner

    def opened_float(self) -> OnnxRuntimeRunner:
        """The float model; the caller closes it."""
        return self._runner(self.path)

    def _runner(self, path: Path) -> OnnxRuntimeRunner:
        return OnnxRuntimeRunner(path, threads=self._calibration.threads)

    def _detect(self, path: Path, files: Sequence[Path]) -> list[Detections]:
        with self._runner(path) as runner:
            return Pipeline(runner).detect(files)

    def _change(
        self, float_layers: Sequence[str], files: Sequence[Path], reference: Sequence[Detections]
    ) -> float:
        with self.opened(float_layers) as runner:
            found = Pipeline(runner).detect(files)
            return detections_change(reference, found, masks=True)

    def keep_float(
        self,
        order: Sequence[Sensitivity],
        loss: Callable[[Sequence[str]], float],
        wanted: float,
        progress: Callable[[Trial], None] = lambda trial: None,
    ) -> Trial:
        """Some of the worst layers to keep in float, so that the loss is as wanted.

        Twice as many are tried each time, then the number is halved in. It is the smallest one
        where more layers in float never lose more, which is so but for noise.

        Args:
            order: layers, the worst first.
            loss: of keeping some in float; what it measures is the caller's.
            wanted: largest loss.
            progress: told of each trial.

        Raises:
            CarafeDeployError: not even with all but one in float.
        """
        names = [row.layer for row in order]
        if not names:
            raise CarafeDeployError("order holds no layer: give what sensitivity() returns")
        tried: dict[int, Trial] = {}

        def reached(count: int) -> bool:
            tried[count] = Trial(tuple(names[:count]), loss(names[:count]))
            progress(tried[count])
            return tried[count].loss <= wanted

        low, high, most = -1, 0, len(names) - 1
        while not reached(high):
            if high == most:
                raise CarafeDeployError(
                    f"the loss is {tried[high].loss:.4f} with {high} of {len(names)} layers in "
                    f"float, more than {wanted:g}: allow a larger loss (--max-loss), or give other "
                    "images to calibrate"
                )
            low, high = high, min(max(2 * high, 1), most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) else (middle, high)
        return tried[high]


def _names(float_layers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(float_layers, str):
        raise ArtefactError(f"float_layers is {float_layers!r}: give a list of names")
    return tuple(float_layers)


def _float_info(path: Path, model: onnx.ModelProto, name: str, target: Target) -> ModelInfo:
    info = info_of(path, model)
    if info.quantization is not None:
        raise ArtefactError(f"{path} is quantized already: give the float file that it was made of")
    if info.precision not in target.bases:
        raise ArtefactError(
            f"{path} computes in {info.precision}, of which no file for {name} is made: export it "
            f"with --precision {' or '.join(target.bases)}"
        )
    return info
