"""What ``export`` and ``quantize`` share: options of 8 bits, and an export in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carafe_deploy.brief import OneLine
from carafe_deploy.cli.common import Steps, UsageError

if TYPE_CHECKING:
    from carafe_deploy.quantize.calibration import Calibration
    from carafe_deploy.types import ModelInfo


class TargetName(StrEnum):
    """What runs the file."""

    cpu = "cpu"
    tensorrt = "tensorrt"


class Values(StrEnum):
    """What layers compute in."""

    int8 = "int8"
    fp8 = "fp8"


CalibrationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="IMAGES",
        help="File, folder or glob, repeatable: images like those that the detector is to see, "
        "some hundred of them; no annotations are needed.",
    ),
]
ForOption = Annotated[
    TargetName | None,
    typer.Option(
        "--for",
        help="What is to run a quantized file. cpu (default): ONNX Runtime; activations are uint8. "
        "tensorrt: they are symmetric int8, biases stay float, and nothing is quantized around "
        "CARAFE and RoIAlign.",
    ),
]


def default_target(target: TargetName | None, values: str) -> str:
    """What the file is for where nobody said: only TensorRT computes in fp8."""
    return (target or (TargetName.tensorrt if values == "fp8" else TargetName.cpu)).value


@dataclass(frozen=True, repr=False)
class QuantizedExport(OneLine):
    """An export in 8 bits, by way of a file in float.

    Attributes:
        target: what runs it.
        values: what layers compute in.
        images: to calibrate on.
    """

    target: str
    values: str
    images: Calibration

    @property
    def base(self) -> str:
        """TensorRT computes the rest in fp16; ONNX Runtime's CPU cannot."""
        return "fp16" if self.target == "tensorrt" else "fp32"

    def write(
        self, write_float: Callable[[Path], ModelInfo], output: Path, steps: Steps
    ) -> ModelInfo:
        """Make the file from a float one, which is gone afterwards."""
        from carafe_deploy.files import temporary_folder
        from carafe_deploy.quantize.job import Quantizer

        with temporary_folder() as folder:
            write_float(folder / output.name)
            steps("calibrate")
            quantizer = Quantizer(
                folder / output.name,
                self.images,
                target=self.target,
                values=self.values,
                progress=lambda done, total: steps.update(f"{done}/{total} images"),
            )
            _ = quantizer.ranges
            steps("quantize")
            return quantizer.write(output)


def quantized_export(
    precision: str, calibration: Sequence[str] | None, target: TargetName | None, is_onnx: bool
) -> QuantizedExport | None:
    """None where the precision is not one of 8 bits.

    Raises:
        UsageError: the options do not belong together.
        CarafeDeployError: the target does not take the precision, or there are too few images.
    """
    if precision not in list(Values):
        if calibration:
            raise UsageError(
                f"--calibration belongs to --precision int8 or fp8, not {precision}: drop it"
            )
        if target is not None:
            raise UsageError(f"--for belongs to --precision int8 or fp8, not {precision}: drop it")
        return None
    if not is_onnx:
        raise UsageError(f"--precision {precision} is of ONNX files, TorchScript has none: drop it")
    if not calibration:
        raise UsageError(
            f"--precision {precision} takes ranges from images: give --calibration FOLDER"
        )
    from carafe_deploy.images import find_images
    from carafe_deploy.quantize.calibration import Calibration
    from carafe_deploy.quantize.insertion import target_of

    name = default_target(target, precision)
    target_of(name, precision)
    images = Calibration(find_images(calibration))
    images.check()
    return QuantizedExport(name, precision, images)
