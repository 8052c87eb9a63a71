"""ONNX files in ONNX Runtime behind the Runner protocol; needs no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from carafe_deploy.backends import BACKENDS
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    OptionError,
    UnsupportedLevelError,
)
from carafe_deploy.files import temporary_folder
from carafe_deploy.operators import OPERATORS
from carafe_deploy.runners._lifetime import Lifetime
from carafe_deploy.runners._onnx_metadata import read_metadata
from carafe_deploy.runners._onnxruntime_buffers import Buffers
from carafe_deploy.runners._onnxruntime_session import (
    PROVIDERS,
    Device,
    Opener,
    check_bodies,
    kernels_for,
    provider_options,
    release,
)
from carafe_deploy.runners.base import (
    BODIES,
    KERNELS,
    Array,
    RunTimes,
    check_inputs,
    with_tf32,
)
from carafe_deploy.types import DOMAIN, ModelInfo, OperatorCall

__all__ = ["MODES", "PROVIDERS", "OnnxRuntimeRunner"]

#: How a file can be run.
MODES: tuple[str, ...] = BACKENDS["onnxruntime"].options["mode"]

#: Providers that round float32 to TF32 and have no option against it.
_ALWAYS_TF32 = ("tensorrt", "tensorrt-rtx")
#: Set to 0, no library of NVIDIA's does.
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
#: The first release whose QuantizeLinear rounds float16 rightly on the CPU: 1.28 does not yet.
_HALF_TO_INT8 = (1, 30)


class OnnxRuntimeRunner(Lifetime):
    """Runs a file written by ``export_onnx``, by our kernels or by its function bodies.

    What was quantized for another runtime is computed as it stands, rounding by rounding: ONNX
    Runtime's optimizations of such graphs lose detections (float16) or all of them (float8).

    Args:
        path: of the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; a missing CUDA provider is an error, not a
            fallback.
        threads: of one operator; None lets ONNX Runtime choose.
        provider: one of :data:`PROVIDERS`; None for the one with the device's name.
        mode: one of :data:`MODES`. ``"cuda-graph"`` captures the whole file in a CUDA graph in the
            first run: for files of one input size, with our kernels.
        operators: True computes the ``carafe`` operators by our kernels, False by function bodies;
            None takes the kernels where their library loads (providers cpu and cuda), and warns
            where it does not. The first of :attr:`implementations` says which of the two run.
        provider_options: of ONNX Runtime's provider, by its names, e.g. ``{"prefer_nhwc": "0"}``;
            they go before those that are set here.
        tf32: on a GPU, let float32 convolutions and matrix products round their factors to 10 bits
            of mantissa. Without it the CUDA provider is told not to. TensorRT's providers cannot be
            told: they run float32 files with it only, or where ``NVIDIA_TF32_OVERRIDE=0`` is set.

    Raises:
        ArtefactError: the file is missing, truncated, was exported by something else, or holds an
            operator this ONNX Runtime lacks (its CPU has no bfloat16 Conv).
        BackendUnavailableError: the provider is not installed, not for ``device``, or rounds
            float32 though it shall not; the kernels are wanted and cannot be had; the bodies need a
            newer ONNX Runtime; or the file cannot be captured in a CUDA graph.
        CarafeDeployError: ``tf32`` and another precision than fp32.
        OptionError: there is no such mode.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "cpu",
        threads: int | None = None,
        provider: str | None = None,
        *,
        mode: str = "eager",
        operators: bool | None = None,
        provider_options: Mapping[str, str] | None = None,
        tf32: bool = False,
    ) -> None:
        if mode not in MODES:
            raise OptionError("mode", mode, f"choose from {', '.join(MODES)}")
        self._path, self.mode = Path(path), mode
        self._place = Device.named(device)
        self.device = str(self._place)
        self.provider = _provider(provider, self._place, device)
        if not self._path.is_file():
            raise ArtefactError(f"{path} does not exist: export it first")
        text = read_metadata(self._path)
        if text is None:  # nor does ONNX Runtime load it, perhaps, and says why
            Opener(self._path, _CPU).open(str(self._path))
            raise ArtefactError(
                f"{path} holds no carafe_deploy metadata: export the checkpoint with "
                "`carafe-deploy export`"
            )
        info = ModelInfo.from_json(text, path)
        self.info = with_tf32(info) if tf32 else info
        self._check_float32()
        self._check_half_to_int8()
        kernels = kernels_for(self.provider, operators)
        self.implementations = (KERNELS, BODIES) if kernels else (BODIES,)
        if kernels is None:
            check_bodies(self._path, info.operators)
        if mode == "cuda-graph":
            self._check_graph()
        given = provider_options or {}
        if not isinstance(given, Mapping) or any(
            not isinstance(text, str) for text in (*given, *given.values())
        ):
            raise OptionError("provider_options", given, "give names and values, all of them text")
        if given and self.provider == "cpu":
            raise OptionError("provider_options", given, "ONNX Runtime's CPU provider takes none")
        told = self._provider_options(given)
        target = None if info.quantization is None else info.quantization.target
        optimize = target is None or self.provider.startswith(target)  # tensorrt-rtx, too
        self._opener = Opener(self._path, told, threads, kernels, optimize)
        self._session: Any = self._opener.open(str(self._path), graph=mode == "cuda-graph")
        self._stage_session: Any = None
        self._buffers: Buffers | None = None
        if self._place.kind != "cpu":
            self._buffers = Buffers(self._session, info.output_names, "cuda", self._place.index)
        self._begin(str(self._path))

    def _provider_options(self, given: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        return provider_options(
            self.provider,
            self._place.index,
            tf32=self.info.precision == "tf32",
            half=self.info.precision in ("fp16", "bf16"),
            static=self.info.input.is_static,
            given=given,
        )

    def _check_half_to_int8(self) -> None:
        """Refuse a release whose CPU kernel rounds float16 to other integers than it should."""
        quantization = self.info.quantization
        if (
            self.provider == "cpu"
            and quantization is not None
            and (self.info.precision, quantization.base) == ("int8", "fp16")
            and release() < _HALF_TO_INT8
        ):
            raise BackendUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__} quantizes float16 wrongly, so "
                f"{self._path} would lose detections: install onnxruntime 1.30 or newer, or "
                "quantize an fp32 file"
            )

    def _check_float32(self) -> None:
        """Refuse a provider that rounds what shall be float32."""
        if (
            self.provider in _ALWAYS_TF32
            and self.info.precision == "fp32"
            and os.environ.get(_TF32_OVERRIDE) != "0"
        ):
            raise BackendUnavailableError(
                f"ONNX Runtime's provider {self.provider} rounds float32 to TF32, which none of "
                f"its options stops: allow it (--tf32), set {_TF32_OVERRIDE}=0, or build "
                "an engine"
            )

    def _check_graph(self) -> None:
        """Refuse what ONNX Runtime captures in no graph."""
        reason = ""
        if self.provider != "cuda":
            reason = f"the provider is {self.provider}: choose --device cuda and its own provider"
        elif self.implementations[0] != KERNELS:
            reason = (
                "its operators run as function bodies, which leave the GPU: run it with our kernels"
            )
        elif not self.info.input.is_static:
            reason = "it takes several input sizes: export it with one batch, height and width"
        if reason:
            raise BackendUnavailableError(
                f"ONNX Runtime captures {self._path} in no CUDA graph, {reason}, or use mode eager"
            )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        return self.run_timed(inputs)[0]

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`~carafe_deploy.runners.base.Runner`; by the host's clock on a GPU, too."""
        self._check_usable()
        check_inputs(self.info, inputs)
        names, feeds = self.info.output_names, self._feeds(inputs)
        if self._buffers is not None:
            with self._running():
                results, times = self._buffers.run(feeds)
            return _named(names, results), times
        begun = time.perf_counter()
        found = self._run(self._session, feeds, names)
        return found, RunTimes(0.0, (time.perf_counter() - begun) * 1e3, 0.0)

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[dict[str, Any]]:
        """Events of ONNX Runtime's own profiler, of ``runs`` runs in a session of their own.

        One more run before them is left out.

        Raises:
            UnsupportedLevelError: the model runs on a GPU.
        """
        self._check_usable()
        check_inputs(self.info, inputs)
        if self._place.kind != "cpu":
            raise UnsupportedLevelError(
                "on a GPU ONNX Runtime's profiler times launches, not what is launched: profile "
                "with --device cpu, or an engine"
            )
        with temporary_folder() as folder:
            session = self._opener.open(str(self._path), profile=folder / "profile")
            for _ in range(runs + 1):
                self._run(session, self._feeds(inputs), self.info.output_names)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        ends = [index for index, event in enumerate(events) if event["name"] == "model_run"]
        measured: list[dict[str, Any]] = events[ends[0] + 1 :]
        return measured

    def custom_nodes(self) -> tuple[tuple[str, str], ...]:
        """Name and operator of the file's ``carafe`` nodes, in order. Needs the onnx package."""
        self._check_usable()
        return tuple(
            (node.name, node.op_type) for node in self._model().graph.node if node.domain == DOMAIN
        )

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`. Needs the onnx package."""
        self._check_usable()
        check_inputs(self.info, inputs)
        if self._stage_session is None:
            model = self._model()
            named = {value.name: value for value in model.graph.value_info}
            missing = [name for name in self.info.stages if name not in named]
            if missing:
                raise ArtefactError(f"{self._path} lacks the stages {missing}: export it again")
            model.graph.output.extend(named[name] for name in self.info.stages)
            self._stage_session = self._opener.open(model.SerializeToString())
        names = (*self.info.output_names, *self.info.stages)
        return self._run(self._stage_session, self._feeds(inputs), names)

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[Array], implementation: str = ""
    ) -> tuple[Array, ...]:
        """See :class:`~carafe_deploy.runners.base.Runner`. Needs the onnx package."""
        self._check_usable()
        from onnx import helper

        model = self._model()
        nodes = [node for node in model.graph.node if node.domain == DOMAIN]
        node = nodes[self.info.operators.index(call)]
        if node.op_type != OPERATORS[call.name].onnx_name:
            raise ArtefactError(
                f"{self._path} has {node.op_type} where its metadata says {call.name}: "
                "export it again"
            )
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)
        }
        types |= {each.name: each.data_type for each in model.graph.initializer}
        feeds = {}
        values = []
        for index, (name, array) in enumerate(zip(node.input, inputs, strict=True)):
            element = types[name]
            feeds[f"x{index}"] = array.astype(helper.tensor_dtype_to_np_dtype(element))
            values.append(helper.make_tensor_value_info(f"x{index}", element, array.shape))
            node.input[index] = f"x{index}"
        results = [helper.make_tensor_value_info(name, types[name], None) for name in node.output]
        del model.graph.node[:], model.graph.value_info[:], model.graph.initializer[:]
        del model.graph.input[:], model.graph.output[:]
        model.graph.node.append(node)
        model.graph.input.extend(values)
        model.graph.output.extend(results)
        session = self._opener.open(model.SerializeToString(), bodies=implementation == BODIES)
        return tuple(self._run(session, feeds, node.output).values())

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs}

    def _run(
        self, session: Any, feeds: Mapping[str, Array], names: Sequence[str]
    ) -> dict[str, Array]:
        with self._running():
            results = session.run(list(names), dict(feeds))
        return _named(names, results)

    def _model(self) -> Any:
        try:
            import onnx
        except ImportError as error:
            raise BackendUnavailableError(
                "looking inside an ONNX file needs the onnx package: pip install onnx"
            ) from error
        return onnx.load(self._path)

    def _settings(self) -> tuple[str, ...]:
        provider = (f"{self.provider} provider",) * (self.provider != self._place.kind)
        return (*provider, *(self.mode,) * (self.mode != "eager"), self.implementations[0])

    def _free(self) -> None:
        self._session = self._stage_session = self._buffers = None


#: To find out what ONNX Runtime says of a file.
_CPU: tuple[tuple[str, dict[str, str]], ...] = (("CPUExecutionProvider", {}),)


def _provider(name: str | None, place: Device, device: str) -> str:
    """The provider, which is installed."""
    chosen = name or place.kind
    if chosen not in PROVIDERS or (chosen == "cpu") != (place.kind == "cpu"):
        fitting = [each for each in PROVIDERS if (each == "cpu") == (place.kind == "cpu")]
        raise BackendUnavailableError(
            f"provider is {name!r}: with device {device} choose from {', '.join(fitting)}"
        )
    available = onnxruntime.get_available_providers()
    if PROVIDERS[chosen][0] not in available:
        raise BackendUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} has {', '.join(available)} here, not "
            f"{PROVIDERS[chosen][0]}: install onnxruntime-gpu or use --device cpu"
        )
    return chosen


def _named(names: Sequence[str], results: Sequence[Array]) -> dict[str, Array]:
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in zip(names, results, strict=True)
    }
