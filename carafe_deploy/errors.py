"""Errors a user can act on: each message names the offending value and the remedy."""

from __future__ import annotations


class CarafeDeployError(Exception):
    """Base of all errors raised on bad input; the command line prints it without a traceback."""


class ImageError(CarafeDeployError):
    """An image or a folder of images cannot be read."""


class AnnotationError(CarafeDeployError):
    """A COCO annotation or result file is broken, or does not fit the detector or the images."""


class ConfigError(CarafeDeployError):
    """A configuration cannot be parsed, or asks for something the detectors do not have."""


class DataFileError(CarafeDeployError):
    """A file that should travel with the package is missing."""


class CheckpointError(CarafeDeployError):
    """A checkpoint is unreadable, unsafe, or does not fit the detector."""


class DownloadError(CarafeDeployError):
    """A published checkpoint cannot be fetched."""


class ExportError(CarafeDeployError):
    """A detector cannot be exported with the requested options."""


class EngineError(CarafeDeployError):
    """A TensorRT engine cannot be built with the requested options, or fails when it runs."""


class ArtefactError(CarafeDeployError):
    """A file made by this toolkit (.onnx, .ts, ...) is truncated, foreign or inconsistent."""


class RunError(CarafeDeployError):
    """A runtime gives up while it runs an artefact: the file is broken, or memory is short."""


class BackendUnavailableError(CarafeDeployError):
    """The package or device that would run an artefact is not installed here."""


class BackendFailedError(CarafeDeployError):
    """All that could have been measured broke, and not for what the user gave."""


class InputShapeError(CarafeDeployError):
    """Arrays handed to a runner have a shape or dtype that its artefact does not accept."""


class OptionError(CarafeDeployError):
    """An option does not fit the artefact that it is to open.

    Attributes:
        option: its name, as a parameter of :func:`carafe_deploy.artefacts.open_runner`.
        value: that was given.
        reason: what would fit.
    """

    def __init__(self, option: str, value: object, reason: str) -> None:
        super().__init__(f"{option} is {value!r}: {reason}")
        self.option, self.value, self.reason = option, value, reason


class UnsupportedLevelError(BackendUnavailableError):
    """An artefact cannot be looked into: it has no intermediate tensors or separate operators."""
