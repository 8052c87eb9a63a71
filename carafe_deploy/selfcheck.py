"""Build and run every backend found on this machine, and hold each against plain PyTorch.

Uses the two small trained detectors and the images that come with the package. The reference is
PyTorch on the CPU without the kernel library; PyTorch with it is the first candidate.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from carafe_deploy.artefacts import open_runner
from carafe_deploy.backends import BACKENDS, title_of
from carafe_deploy.brief import OneLine
from carafe_deploy.data import CHECKPOINTS, data_path, validation_images
from carafe_deploy.engine.flavours import FLAVOURS
from carafe_deploy.environment import describe_environment
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError
from carafe_deploy.failures import Failure, caught, failure_of
from carafe_deploy.images import load_image
from carafe_deploy.libraries import find_library, require_library
from carafe_deploy.ops import plain_operators
from carafe_deploy.parity import ParityReport, run_parity
from carafe_deploy.runners._torch import torch_threads
from carafe_deploy.runners.base import BODIES, KERNELS, Runner, Wrapper

__all__ = ["Check", "SelfCheck", "run_selfcheck"]

#: What every backend is held against.
REFERENCE = "reference (plain PyTorch)"
#: Images that stages and detections are compared on, two a run, so that sizes are mixed.
IMAGES = 4
BATCH = 2
#: Images that average precision is compared on.
AP_IMAGES = 20
#: Largest input of the engines: batch, height and width that hold every image.
ENGINE_MAX = (BATCH, 192, 192)

Step = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, repr=False)
class Check(OneLine):
    """One backend with one detector.

    Attributes:
        detector: file name of the checkpoint.
        backend: for people, e.g. ``"TorchScript, cuda"``.
        status: ``"passed"``, ``"failed"``, or ``"skipped"`` where this machine lacks what it needs.
        reason: what is lacking or went wrong; empty for a check that passed.
        seconds: it took, building included.
        parity: the comparison, where it came to one.
        traceback: of the error that the backend raised, if any.
    """

    detector: str
    backend: str
    status: str
    reason: str
    seconds: float
    parity: ParityReport | None = None
    traceback: str = ""


@dataclass(frozen=True, repr=False)
class SelfCheck(OneLine):
    """All checks, and what they ran on.

    Attributes:
        environment: facts by name.
        checks: in the order they ran.
        seconds: all took together.
    """

    environment: Mapping[str, str]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing failed, and something ran."""
        statuses = {check.status for check in self.checks}
        return "passed" in statuses and "failed" not in statuses

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable content."""
        return {
            "passed": self.passed,
            "seconds": self.seconds,
            "environment": dict(self.environment),
            "checks": [
                {
                    **{name: getattr(check, name) for name in _CHECK_FIELDS},
                    "parity": json.loads(check.parity.to_json()) if check.parity else None,
                }
                for check in self.checks
            ],
        }


_CHECK_FIELDS = ("detector", "backend", "status", "reason", "seconds", "traceback")


def run_selfcheck(
    folder: Path,
    *,
    checkpoints: Sequence[str] = CHECKPOINTS,
    step: Step = lambda name: None,
    progress: Progress = lambda done, total: None,
) -> SelfCheck:
    """Check every backend.

    Args:
        folder: for exported files and engines, which stay there.
        checkpoints: file names in ``data/shapes``.
        step: told the name of each step as it begins.
        progress: within a step, told the parts done and their total.

    Raises:
        CarafeDeployError: the folder cannot be written, a data file is missing, or
            CARAFE_DEPLOY_PLUGIN names nothing that exists.
    """
    begun = time.perf_counter()
    find_library("carafe_kernels")  # a wrong CARAFE_DEPLOY_PLUGIN is no lack of the machine
    checks: list[Check] = []
    for name in checkpoints:
        checkpoint = data_path("shapes", name)
        with torch_threads(1):
            try:
                reference = _Plain(open_runner(checkpoint))
            except CarafeDeployError:
                raise
            except Exception as error:
                checks.append(_failed(name, REFERENCE, failure_of(error)))
                continue
            try:
                for backend, make in _candidates(checkpoint, folder).items():
                    step(f"{checkpoint.stem.partition('-')[0]}: {backend}")
                    checks.append(_check(name, backend, make, reference, progress))
            finally:
                with caught() as closing:
                    reference.close()
            if closing.failure:
                checks.append(_failed(name, REFERENCE, closing.failure))
    return SelfCheck(describe_environment(), tuple(checks), time.perf_counter() - begun)


def _failed(detector: str, backend: str, failure: Failure) -> Check:
    return Check(detector, backend, "failed", failure.reason, 0.0, traceback=failure.traceback)


def _candidates(checkpoint: Path, folder: Path) -> dict[str, Callable[[], Runner]]:
    """How to open each backend; opening exports or builds what it runs."""

    @functools.cache
    def exported(suffix: str) -> Path:
        from carafe_deploy.graph.onnx_export import export_onnx
        from carafe_deploy.graph.options import ExportOptions
        from carafe_deploy.graph.torchscript_export import export_torchscript
        from carafe_deploy.models.checkpoint import load_detector

        detector, loaded = load_detector(checkpoint)
        path = folder / f"{checkpoint.stem}{suffix}"
        write = export_torchscript if suffix == ".ts" else export_onnx
        write(detector, path, ExportOptions(), name=loaded.name, source=loaded.source)
        return path

    def engine(flavour: str) -> Runner:
        from carafe_deploy.engine.build import BuildOptions, build_engine

        path = folder / f"{checkpoint.stem}.{flavour}.engine"
        options = BuildOptions(flavour=flavour, max=ENGINE_MAX, stages=True)
        built = build_engine(exported(".onnx"), path, options)
        try:
            return open_runner(path)
        except BackendUnavailableError as error:
            seconds = built.build["seconds"]
            raise BackendUnavailableError(f"built in {seconds:.1f} s, not run: {error}") from error

    def pytorch(device: str) -> Runner:
        runner = open_runner(checkpoint, device=device)
        require_library("carafe_kernels")  # else the reference would be held against itself
        return runner

    def other(name: str, device: str, operators: bool | None = None) -> Runner:
        path = exported(BACKENDS[name].suffixes[0])
        return open_runner(path, device=device, operators=operators)

    onnxruntime = title_of("onnxruntime")
    makers: dict[str, Callable[[str], Runner]] = {
        title_of("pytorch"): pytorch,
        title_of("torchscript"): partial(other, "torchscript"),
        f"{onnxruntime} by {KERNELS}": partial(other, "onnxruntime", operators=True),
        f"{onnxruntime} by {BODIES}": partial(other, "onnxruntime", operators=False),
    }
    found: dict[str, Callable[[], Runner]] = {
        f"{name}, {device}": partial(make, device)
        for name, make in makers.items()
        for device in ("cpu", "cuda")
    }
    for flavour in FLAVOURS:
        found[flavour.title] = partial(engine, flavour.name)
    return found


class _Plain(Wrapper):
    """A torch runner whose operators are computed by PyTorch, without the kernel library."""

    def _around(self) -> AbstractContextManager[None]:
        return plain_operators()


def _check(
    detector: str, backend: str, make: Callable[[], Runner], reference: Runner, progress: Progress
) -> Check:
    """One backend: opened, compared, closed. Whatever it raises is an outcome."""
    begun = time.perf_counter()
    parity = None
    with caught() as opening:
        opened = make()
    failures = [opening.failure]
    # What fails once a backend is open is no lack of the machine.
    status = "skipped" if opening.failure and opening.failure.lacking else "failed"
    if not opening.failure:
        try:
            with caught() as comparing:
                parity = _compare(reference, opened, progress)
        finally:
            with caught() as closing:
                opened.close()
        failures = [comparing.failure, closing.failure]
        if parity is not None and parity.passed and not closing.failure:
            status = "passed"
    raised = [failure for failure in failures if failure]
    beyond = []
    if parity is not None:
        told = (*parity.failures, *parity.uncompared)
        beyond += [f"{row.level} {row.name}: {row.note or row.state}" for row in told]
        beyond += [f"{level}: {failure.reason}" for level, failure in parity.failed.items()]
        raised += parity.failed.values()
    reasons = dict.fromkeys([*beyond, *(failure.reason for failure in failures if failure)])
    return Check(
        detector,
        backend,
        status,
        "; ".join(reasons),
        time.perf_counter() - begun,
        parity,
        "\n".join(failure.traceback for failure in raised),
    )


def _compare(reference: Runner, candidate: Runner, progress: Progress) -> ParityReport:
    return run_parity(
        reference,
        candidate,
        images=[load_image(path) for path in validation_images()[:IMAGES]],
        batch_size=BATCH,
        mixed_sizes=True,
        annotations=data_path("shapes", "val.json"),
        image_dir=data_path("shapes", "val"),
        limit=AP_IMAGES,
        progress=lambda level, done, total: progress(done, total),
    )
