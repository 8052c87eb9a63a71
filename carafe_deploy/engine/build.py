"""From an ONNX file to an engine and its sidecar."""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carafe_deploy import __version__
from carafe_deploy.brief import OneLine
from carafe_deploy.engine.device import open_device
from carafe_deploy.engine.flavours import PLUGIN_LIBRARY, Flavour, choose_flavour
from carafe_deploy.engine.log import Heard, Listener
from carafe_deploy.engine.onnx_model import SourceModel, read_model
from carafe_deploy.engine.pair import written_pair
from carafe_deploy.engine.profiles import Profile, Size, make_profile, narrowed
from carafe_deploy.engine.progress import Progress, make_monitor, signals_wait
from carafe_deploy.engine.sidecar import ANY_LATER, PluginLayer, PluginRecord, Sidecar
from carafe_deploy.errors import EngineError
from carafe_deploy.files import atomic_path, sha256_of
from carafe_deploy.libraries import require_library

#: What TensorRT-RTX builds for unless told otherwise: every supported GPU from Ampere on.
_RTX_DEFAULT = ("8.0" + ANY_LATER,)
#: The first compute capability with float8, and what is built for where that is needed.
_FP8 = (8, 9)
_RTX_FP8 = ("8.9" + ANY_LATER,)


@dataclass(frozen=True, repr=False)
class BuildOptions(OneLine):
    """Choices for one engine.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``; None for the first that is installed.
        min: smallest input as (batch, height, width); None for the model's.
        opt: usual input; None for one image as the config resizes it.
        max: largest input; None for the model's.
        workspace: limit of a layer's scratch memory in bytes; None leaves it to TensorRT.
        compute_capabilities: GPUs to build for ahead of time, e.g. ``("8.6", "8.9")``; empty for
            the flavour's default, which is the GPU at hand for TensorRT, and every supported one
            from 8.0 on for TensorRT-RTX.
        tf32: let float32 convolutions and matrix products round their factors to 10 bits of
            mantissa, which is faster from Ampere on, and no longer what fp32 says.
        stages: make the named intermediate tensors outputs, so that parity can compare them.
        timing_cache: file that remembers measured tactics, read if there is one and written.
        log: file for every message of TensorRT.
    """

    flavour: str | None = None
    min: Size | None = None
    opt: Size | None = None
    max: Size | None = None
    workspace: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    stages: bool = False
    timing_cache: Path | None = None
    log: Path | None = None


def build_engine(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Sidecar:
    """Build an engine of a detector and write it with its sidecar ``<path>.json``, returned.

    TensorRT-RTX needs no GPU for this. SIGINT (Ctrl-C) and SIGTERM end the build at its next step;
    the handlers that the program has for them are called when nothing is left of it.

    Args:
        model: ONNX file written by ``export_onnx``.
        path: of the engine; both files appear complete or not at all, and a reader never sees one
            without the other.
        options: see :class:`BuildOptions`.
        progress: called with a fraction from 0 to 1 and the name of the phase.

    Raises:
        ArtefactError: the model is missing, damaged or was exported by something else.
        BackendUnavailableError: the flavour or the plugin library is not installed.
        EngineError: the options contradict the model or the flavour, TensorRT refuses the model,
            it did not take a plugin for every custom node, or the build was interrupted.
        CarafeDeployError: an output cannot be written.
    """
    options = options or BuildOptions()
    source = read_model(model)
    _check_target(source)
    profile = make_profile(source.info, options.min, options.opt, options.max)
    flavour = choose_flavour(options.flavour)
    if options.timing_cache is not None and not flavour.timing_cache:
        raise EngineError(
            f"{flavour.title} measures nothing while building, so it has no timing cache: leave "
            "the option out"
        )
    if options.workspace is not None and options.workspace < 1:
        raise EngineError(f"workspace is {options.workspace} bytes: give a positive size")
    flavour.load()
    targets = _targets(flavour, options, source.info.precision)
    library = require_library(PLUGIN_LIBRARY) if source.nodes else None
    with signals_wait() as is_interrupted, ExitStack() as stack:
        put = stack.enter_context(written_pair(path))
        listener = None if options.log is None else stack.enter_context(_log_file(options.log))
        if library is not None:
            flavour.load_plugins(library)
            flavour.prepare_parser(library)
        begun = time.perf_counter()
        build = _Build(flavour, source, profile, options)
        plan = build.run(listener, progress, is_interrupted)
        seconds = time.perf_counter() - begun
        sidecar = Sidecar(
            bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            flavour=flavour.name,
            version=flavour.version,
            compute_capabilities=targets,
            plugin=None if library is None else _plugin_record(library, source),
            source={"file": source.path.name, "sha256": source.sha256},
            profiles=(profile,),
            stages=options.stages,
            layers=build.layers,
            build={
                "seconds": round(seconds, 3),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "workspace_bytes": options.workspace,
                "tf32": options.tf32,
            },
            model=narrowed(source.info, profile),
        )
        if is_interrupted():
            raise build.interrupted()
        put(plan, sidecar)
    return sidecar


def _check_target(source: SourceModel) -> None:
    quantization = source.info.quantization
    if quantization is not None and quantization.target != "tensorrt":
        raise EngineError(
            f"{source.path} was quantized for {quantization.target}, with biases that TensorRT "
            "does not take: `carafe-deploy quantize --for tensorrt` makes a file for it"
        )


def _targets(flavour: Flavour, options: BuildOptions, precision: str) -> tuple[str, ...]:
    """Compute capabilities that the engine will run on."""
    flavour.check_targets(options.compute_capabilities)
    if options.compute_capabilities:
        found = options.compute_capabilities
    elif flavour.ahead_of_time:
        return _RTX_FP8 if precision == "fp8" else _RTX_DEFAULT
    else:
        with open_device() as device:
            major, minor = device.capability()
        found = (f"{major}.{minor}",)
    if precision == "fp8":
        for capability in found:
            if tuple(map(int, capability.removesuffix(ANY_LATER).split("."))) < _FP8:
                raise EngineError(
                    f"GPUs of compute capability {capability} do not compute in fp8: build for "
                    f"{_FP8[0]}.{_FP8[1]} or newer, or quantize to int8"
                )
    return found


class _Build:
    """One run of TensorRT's builder."""

    def __init__(
        self, flavour: Flavour, source: SourceModel, profile: Profile, options: BuildOptions
    ) -> None:
        self._flavour = flavour
        self._trt = flavour.load()
        self._source = source
        self._profile = profile
        self._options = options
        self.layers: dict[str, int] = {}

    def run(
        self,
        listener: Listener | None,
        progress: Progress | None,
        is_interrupted: Callable[[], bool],
    ) -> bytes:
        """Parse, check, build."""
        with self._flavour.log.listening(listener) as heard:
            builder = self._builder(heard)
            network = self._flavour.create_network(builder)
            self._parse(network, heard)
            layers = [network.get_layer(index) for index in range(network.num_layers)]
            self.layers = dict(sorted(Counter(layer.type.name for layer in layers).items()))
            taken = self.layers.get("PLUGIN_V3", 0)
            if taken != len(self._source.nodes):
                raise self._not_taken(f"made {taken} plugin layers of them")
            if self._options.stages:
                self._mark_stages(network, layers)
            config = self._configure(builder)
            monitor = make_monitor(self._trt, progress, is_interrupted)
            config.progress_monitor = monitor
            plan = builder.build_serialized_network(network, config)
            if is_interrupted():
                raise self.interrupted()
            if monitor.error is not None:
                raise monitor.error
            if plan is None:
                raise EngineError(
                    f"{self._flavour.title} {self._flavour.version} cannot build "
                    f"{self._source.path}: {heard.reason()}. A log file tells the rest"
                )
            self._write_timing_cache(config)
            return bytes(plan)

    def interrupted(self) -> EngineError:
        """For programs whose handler of the signal raises nothing."""
        return EngineError(f"building an engine of {self._source.path} was interrupted")

    def _builder(self, heard: Heard) -> Any:
        try:
            return self._trt.Builder(self._flavour.log)
        except TypeError as error:  # how the bindings say that there is none
            raise EngineError(
                f"{self._flavour.title} {self._flavour.version} does not start: {heard.reason()}. "
                "Building with it needs an NVIDIA GPU and driver; flavour tensorrt_rtx needs none"
            ) from error

    def _parse(self, network: Any, heard: Heard) -> None:
        parser = self._trt.OnnxParser(network, self._flavour.log)
        if parser.parse_from_file(str(self._source.path)):
            return
        problems = [
            f"{problem.desc()} at node {problem.node_name()!r} ({problem.node_operator()})"
            for problem in map(parser.get_error, range(parser.num_errors))
        ]
        reason = "; ".join(problems) or heard.reason()
        if self._unmarked:
            # It went into a function body and found something there that it does not know.
            raise self._not_taken(f"stopped ({reason})")
        raise EngineError(
            f"{self._flavour.title} {self._flavour.version} cannot read {self._source.path}: "
            f"{reason}. If it has the weights elsewhere, put them beside it; else export it again"
        )

    @property
    def _unmarked(self) -> list[str]:
        """Custom nodes for which the parser takes the function body."""
        nodes = self._source.nodes
        return [node.name or node.operator for node in nodes if not node.names_a_plugin]

    def _not_taken(self, outcome: str) -> EngineError:
        unmarked = self._unmarked
        cause = (
            f"{', '.join(unmarked[:3])}{' and others' if len(unmarked) > 3 else ''} lack the "
            'attribute plugin_namespace="carafe", so that function bodies were taken'
            if unmarked
            else "function bodies, or plugins of its own, were taken"
        )
        return EngineError(
            f"{self._source.path} has {len(self._source.nodes)} custom nodes, but "
            f"{self._flavour.title} {outcome}: {cause}. Export the model again with "
            "`carafe-deploy export`"
        )

    def _mark_stages(self, network: Any, layers: Sequence[Any]) -> None:
        tensors = {
            layer.get_output(index).name: layer.get_output(index)
            for layer in layers
            for index in range(layer.num_outputs)
        }
        missing = [name for name in self._source.info.stages if name not in tensors]
        if missing:
            raise EngineError(
                f"{self._source.path} lacks the stages {', '.join(missing)}: export it again"
            )
        for name in self._source.info.stages:
            network.mark_output(tensors[name])

    def _configure(self, builder: Any) -> Any:
        trt, options = self._trt, self._options
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        self._flavour.set_targets(config, options.compute_capabilities)
        sizes = builder.create_optimization_profile()
        for name, shapes in self._profile.shapes(self._source.info).items():
            sizes.set_shape(name, *shapes)
        config.add_optimization_profile(sizes)
        if options.timing_cache is not None:
            file = options.timing_cache
            content = file.read_bytes() if file.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(content), False)
        return config

    def _write_timing_cache(self, config: Any) -> None:
        if self._options.timing_cache is not None:
            with atomic_path(self._options.timing_cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))


def _plugin_record(library: Path, source: SourceModel) -> PluginRecord:
    layers = tuple(
        PluginLayer(node.name, node.operator, dict(node.attributes)) for node in source.nodes
    )
    return PluginRecord(library.name, sha256_of(library), __version__, layers)


@contextmanager
def _log_file(path: Path) -> Iterator[Listener]:
    """A listener that writes every message to a file, line by line, so that a crash loses none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise EngineError(
            f"cannot write {path}: {error.strerror or error}: choose another log file"
        ) from error

    def write(severity: str, message: str) -> None:
        file.write(f"[{severity}] {message}\n")

    with file:
        yield write
