"""Open an engine again: everything that can be checked is, before TensorRT sees a byte of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carafe_deploy.backends import mistaken
from carafe_deploy.brief import OneLine
from carafe_deploy.engine.flavours import PLUGIN_LIBRARY, Flavour, find_flavour
from carafe_deploy.engine.pair import read_pair
from carafe_deploy.engine.sidecar import Sidecar
from carafe_deploy.errors import ArtefactError, BackendUnavailableError, EngineError
from carafe_deploy.files import sha256_of
from carafe_deploy.libraries import require_library

#: In TensorRT's messages where CUDA finds no driver (35) or no device (100).
_NO_DRIVER = re.compile(r"cudaError (?:35|100): [^)]*")


@dataclass(frozen=True, repr=False)
class CheckedEngine(OneLine):
    """An engine file that fits its sidecar and the software here; the GPU is not asked yet.

    ``plan`` is its bytes; ``flavour`` is installed, with the plugins registered.
    """

    path: Path
    plan: bytes
    sidecar: Sidecar
    flavour: Flavour


def read_engine(path: str | os.PathLike[str]) -> tuple[Sidecar, bytes]:
    """Read an engine and hold it against its sidecar; needs no TensorRT.

    Raises:
        ArtefactError: the engine or its sidecar is missing, damaged, or belongs to another file.
    """
    path = Path(path)
    other = mistaken(path, "tensorrt")
    if other is not None:
        raise ArtefactError(
            f"{other}, not an engine: open it with open_runner, which goes by the suffix"
        )
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist: build it with `carafe-deploy build`")
    return read_pair(path)


def check_engine(path: str | os.PathLike[str]) -> CheckedEngine:
    """Read an engine, hold it against its sidecar and register its plugins.

    Raises:
        ArtefactError: see :func:`read_engine`; or the engine was built by another version or with
            another plugin library.
        BackendUnavailableError: its flavour or the plugin library is not installed.
    """
    path = Path(path)
    sidecar, plan = read_engine(path)
    try:
        flavour = find_flavour(sidecar.flavour)
    except EngineError as error:
        raise ArtefactError(f"the sidecar of {path} is damaged: {error}") from error
    if flavour.version != sidecar.version:
        raise ArtefactError(
            f"{path} was built by {flavour.title} {sidecar.version}, here is {flavour.version}: "
            f"install that version, or {_rebuild(sidecar)}"
        )
    if sidecar.plugin is not None:
        library = require_library(PLUGIN_LIBRARY)
        found = sha256_of(library)
        if found != sidecar.plugin.sha256:
            raise ArtefactError(
                f"{path} was built with {sidecar.plugin.file} of carafe-deploy "
                f"{sidecar.plugin.version}, SHA-256 {sidecar.plugin.sha256[:12]}…, but {library} "
                f"has {found[:12]}…: install the same library, or {_rebuild(sidecar)}"
            )
        flavour.load_plugins(library)
    return CheckedEngine(path, plan, sidecar, flavour)


def _rebuild(sidecar: Sidecar) -> str:
    return (
        f"build it again from {sidecar.source['file']} with `carafe-deploy build "
        f"{sidecar.source['file']} --flavour {sidecar.flavour}`"
    )


def check_capability(engine: CheckedEngine, capability: tuple[int, int]) -> None:
    """Raise ArtefactError unless the engine was built for this GPU's, e.g. (8, 9)."""
    if not engine.sidecar.runs_on(capability):
        found = ".".join(map(str, capability))
        option = f" --compute-capability {found}" if engine.flavour.ahead_of_time else ""
        raise ArtefactError(
            f"{engine.path} was built for compute capability "
            f"{', '.join(engine.sidecar.compute_capabilities)}, this GPU has {found}: "
            f"build it for this one with `carafe-deploy build {engine.sidecar.source['file']} "
            f"--flavour {engine.flavour.name}{option}`"
        )


def deserialise(engine: CheckedEngine) -> tuple[Any, Any]:
    """TensorRT's runtime and engine objects; free the engine first.

    Raises:
        BackendUnavailableError: there is no driver or GPU.
        ArtefactError: TensorRT refuses the file.
    """
    flavour, trt = engine.flavour, engine.flavour.load()
    with flavour.log.listening() as heard:
        try:
            runtime = trt.Runtime(flavour.log)
        except TypeError as error:  # how the bindings say that there is none
            raise _no_gpu(engine, heard.reason()) from error
        opened = runtime.deserialize_cuda_engine(engine.plan)
        if opened is not None:
            return runtime, opened
        reason = heard.reason()
    found = _NO_DRIVER.search(reason)
    if found:
        raise _no_gpu(engine, found.group())
    raise ArtefactError(
        f"{flavour.title} {flavour.version} does not open {engine.path}: {reason}. If this GPU is "
        f"supported, {_rebuild(engine.sidecar)}"
    )


def _no_gpu(engine: CheckedEngine, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{engine.path} needs an NVIDIA GPU and its driver, which {engine.flavour.title} does not "
        f"find ({reason}): check with nvidia-smi, or run {engine.sidecar.source['file']} instead"
    )
