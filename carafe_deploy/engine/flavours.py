"""TensorRT and TensorRT-RTX behind one object each: all that differs between the two."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carafe_deploy.engine.log import Log, make_log
from carafe_deploy.errors import BackendUnavailableError, EngineError
from carafe_deploy.libraries import check_whole

#: Passed to :func:`carafe_deploy.libraries.require_library`.
PLUGIN_LIBRARY = "carafe_tensorrt"

#: The ONNX parser of TensorRT-RTX opens this name, which NVIDIA's wheels lack, for plugin nodes.
_RTX_NAME = "libtensorrt_rtx.so"


@dataclass(frozen=True)
class Flavour:
    """One of NVIDIA's two packages.

    Attributes:
        name: of the flavour and of the Python module.
        title: for people.
        extra: of carafe-deploy that installs it.
        oldest: major version that has what the plugins need; an older one would crash on them.
        ahead_of_time: builds without a GPU, for any list of compute capabilities; the other one
            builds for the GPU at hand.
        timing_cache: measures tactics while building, and can remember them in a file.
    """

    name: str
    title: str
    extra: str
    oldest: int
    ahead_of_time: bool
    timing_cache: bool

    @property
    def is_installed(self) -> bool:
        """Its Python module can be found; nothing is loaded."""
        return importlib.util.find_spec(self.name) is not None

    def load(self) -> Any:
        """The module. Raises BackendUnavailableError: not installed, too old, not loadable."""
        try:
            module = importlib.import_module(self.name)
        except ModuleNotFoundError as error:
            if error.name != self.name:
                raise
            raise BackendUnavailableError(
                f"{self.title} is not installed: pip install 'carafe-deploy[{self.extra}]'"
            ) from error
        except (ImportError, OSError) as error:
            raise BackendUnavailableError(
                f"{self.title} cannot be loaded ({error}): install its libraries for this "
                "version of CUDA, or put their folder on LD_LIBRARY_PATH"
            ) from error
        if int(module.__version__.partition(".")[0]) < self.oldest:
            raise BackendUnavailableError(
                f"{self.title} {module.__version__} is installed, but the plugins need "
                f"{self.oldest} or later: pip install 'carafe-deploy[{self.extra}]'"
            )
        return module

    @property
    def version(self) -> str:
        """Of the installed package; engines run under the version that built them only."""
        version: str = self.load().__version__
        return version

    @property
    def log(self) -> Log:
        """The one logger of this process; TensorRT goes on using the first it was given."""
        return _log(self)

    def create_network(self, builder: Any) -> Any:
        """An empty, strongly typed network: precision is the file's. TensorRT 11 has no other."""
        flag = self.load().NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return builder.create_network(1 << int(flag))

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that an engine can be built for ahead of time, e.g. ``"8.9"``."""
        if not self.ahead_of_time:
            return ()
        names = self.load().ComputeCapability.__members__
        found = [match for name in names if (match := re.fullmatch(r"SM(\d+)(\d)", name))]
        return tuple(
            ".".join(pair)
            for pair in sorted((match.groups() for match in found), key=lambda p: (int(p[0]), p[1]))
        )

    def check_targets(self, capabilities: Sequence[str]) -> None:
        """Raise EngineError for compute capabilities that no engine can be built for here."""
        if capabilities and not self.ahead_of_time:
            raise EngineError(
                f"compute capability {', '.join(capabilities)} was asked for, but {self.title} "
                "builds for the GPU of this machine: build there, or choose flavour tensorrt_rtx"
            )
        for capability in capabilities:
            if capability not in self.targets:
                raise EngineError(
                    f"compute capability is {capability!r}: {self.title} {self.version} builds for "
                    f"{', '.join(self.targets)}"
                )

    def set_targets(self, config: Any, capabilities: Sequence[str]) -> None:
        """Name the GPUs to a builder configuration; without any, the flavour's default stays."""
        if not capabilities:
            return
        members = self.load().ComputeCapability.__members__
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(members[f"SM{capability.replace('.', '')}"], index)

    def load_plugins(self, library: Path) -> None:
        """Register the plugins of a library, once a process however often it is asked for.

        Raises BackendUnavailableError: the library is truncated, TensorRT cannot load it, or
        another one with the same plugins is registered already.
        """
        check_whole(library)
        _load_plugins(self, library.resolve())

    def prepare_parser(self, library: Path) -> None:
        """Make a parser's first plugin node safe, or raise BackendUnavailableError: it would end
        the process.
        """
        if self.name != "tensorrt_rtx":
            return
        self.load()
        alias = library.resolve().parent / "rtx" / _RTX_NAME
        check_whole(alias)
        try:
            ctypes.CDLL(str(alias) if alias.is_file() else _RTX_NAME)
        except OSError as error:
            raise BackendUnavailableError(
                f"TensorRT-RTX's parser needs {_RTX_NAME} and there is none ({error}): {alias} "
                f"belongs to {library.name}, build or install both"
            ) from error


FLAVOURS = (
    Flavour("tensorrt", "TensorRT", "trt", 10, ahead_of_time=False, timing_cache=True),
    Flavour("tensorrt_rtx", "TensorRT-RTX", "rtx", 1, ahead_of_time=True, timing_cache=False),
)


def find_flavour(name: str) -> Flavour:
    """A flavour by its name.

    Raises:
        EngineError: there is no such flavour.
    """
    known = {flavour.name: flavour for flavour in FLAVOURS}
    if name not in known:
        raise EngineError(f"flavour is {name!r}: choose from {', '.join(known)}")
    return known[name]


def choose_flavour(name: str | None = None) -> Flavour:
    """The named flavour; without a name TensorRT where it is installed, else TensorRT-RTX.

    Raises:
        EngineError: there is no such flavour.
        BackendUnavailableError: none is installed.
    """
    if name is not None:
        return find_flavour(name)
    found = next((flavour for flavour in FLAVOURS if flavour.is_installed), None)
    if found is None:
        extras = " or ".join(f"'carafe-deploy[{flavour.extra}]'" for flavour in FLAVOURS)
        raise BackendUnavailableError(
            f"neither TensorRT nor TensorRT-RTX is installed: pip install {extras}"
        )
    return found


@functools.cache
def _log(flavour: Flavour) -> Log:
    return make_log(flavour.load())


@functools.cache
def _load_plugins(flavour: Flavour, library: Path) -> None:
    trt = flavour.load()
    with flavour.log.listening() as heard:
        registry = trt.get_plugin_registry()
        if registry.load_library(str(library)) is None:
            raise BackendUnavailableError(
                f"{flavour.title} {flavour.version} does not load the plugins of {library} "
                f"({heard.reason()}): build the library again, and load no other one that "
                "registers the same plugins"
            )
