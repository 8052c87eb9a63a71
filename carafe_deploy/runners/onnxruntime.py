"""ONNX files in ONNX Runtime behind the Runner protocol; needs no torch."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    UnsupportedLevelError,
)
from carafe_deploy.operators import OPERATORS
from carafe_deploy.runners._lifetime import Lifetime
from carafe_deploy.runners.base import Array, RunTimes, check_inputs, with_tf32
from carafe_deploy.types import DOMAIN, METADATA_KEY, ModelInfo, OperatorCall

__all__ = ["PROVIDERS", "OnnxRuntimeRunner"]

#: Name of one of ONNX Runtime's providers, and its options.
_Provider = tuple[str, dict[str, str]]

#: Name -> ONNX Runtime's providers, the one that is meant first.
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt-rtx": ["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"],
}
#: Providers that round float32 to TF32 and have no option against it.
_ALWAYS_TF32 = ("tensorrt", "tensorrt-rtx")
#: Set to 0, no library of NVIDIA's does.
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


class OnnxRuntimeRunner(Lifetime):
    """Runs a file written by ``export_onnx`` with its function bodies.

    Args:
        path: of the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; a missing CUDA provider is an error, not a
            fallback.
        threads: of one operator; None lets ONNX Runtime choose.
        provider: one of :data:`PROVIDERS`; None for the one with the device's name.
        tf32: on a GPU, let float32 convolutions and matrix products round their factors to 10 bits
            of mantissa. Without it the CUDA provider is told not to. TensorRT's providers cannot be
            told: they run float32 files with it only, or where ``NVIDIA_TF32_OVERRIDE=0`` is set.

    Raises:
        ArtefactError: the file is missing, truncated, was exported by something else, or holds an
            operator this ONNX Runtime lacks (its CPU has no bfloat16 Conv).
        BackendUnavailableError: the provider is not installed, not for ``device``, or rounds
            float32 though it shall not.
        CarafeDeployError: ``tf32`` and another precision than fp32.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "cpu",
        threads: int | None = None,
        provider: str | None = None,
        *,
        tf32: bool = False,
    ) -> None:
        self._path = Path(path)
        available = onnxruntime.get_available_providers()
        kind, index = _device(device)
        self.device = "cpu" if kind == "cpu" else f"{kind}:{index}"
        self.provider = provider or kind
        if self.provider not in PROVIDERS or (self.provider == "cpu") != (kind == "cpu"):
            fitting = [name for name in PROVIDERS if (name == "cpu") == (kind == "cpu")]
            raise BackendUnavailableError(
                f"provider is {provider!r}: with device {device} choose from {', '.join(fitting)}"
            )
        self._providers = _with_options(PROVIDERS[self.provider], index, tf32)
        if self._providers[0][0] not in available:
            raise BackendUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__} has {', '.join(available)} here, not "
                f"{self._providers[0][0]}: install onnxruntime-gpu or use --device cpu"
            )
        if not self._path.is_file():
            raise ArtefactError(f"{path} does not exist: export it first")
        self._kind, self._index = kind, index
        self._threads = threads
        self._session: Any = self._open(str(self._path))
        self._stage_session: Any = None
        properties = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in properties:
            raise ArtefactError(
                f"{path} holds no carafe_deploy metadata: export the checkpoint with "
                "`carafe-deploy export`"
            )
        info = ModelInfo.from_json(properties[METADATA_KEY])
        self.info = with_tf32(info) if tf32 else info
        self._check_float32()
        self._begin(str(self._path))

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

    def _open(self, model: str | bytes, profile: Path | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = onnxruntime.InferenceSession(model, options, list(self._providers))
        except Exception as error:  # onnxruntime's own classes share no public base
            text = str(error)
            remedy = "export it again"
            if "NOT_IMPLEMENTED" in text and "Conv" in text:
                remedy = (
                    "ONNX Runtime's CPU has no bfloat16 Conv; export with --precision fp32 or fp16"
                )
            raise ArtefactError(
                f"{self._path} cannot be loaded by ONNX Runtime ({_first_line(text)}): {remedy}"
            ) from error
        if session.get_providers()[0] != self._providers[0][0]:
            raise BackendUnavailableError(
                f"ONNX Runtime could not start {self._providers[0][0]} (it says on stderr "
                "which library is missing): mend the CUDA installation or use --device cpu"
            )
        return session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        self._check_usable()
        check_inputs(self.info, inputs)
        return _run(self._session, self._feeds(inputs), self.info.output_names)

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`~carafe_deploy.runners.base.Runner`; by the host's clock on a GPU, too."""
        self._check_usable()
        check_inputs(self.info, inputs)
        feeds = self._feeds(inputs)
        if self._kind != "cpu":
            return _run_bound(self._session, feeds, self.info.output_names, "cuda", self._index)
        begun = time.perf_counter()
        results = _run(self._session, feeds, self.info.output_names)
        return results, RunTimes(0.0, (time.perf_counter() - begun) * 1e3, 0.0)

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[dict[str, Any]]:
        """Events of ONNX Runtime's own profiler, of ``runs`` runs in a session of their own.

        One more run before them is left out.

        Raises:
            UnsupportedLevelError: the model runs on a GPU.
        """
        self._check_usable()
        check_inputs(self.info, inputs)
        if self._kind != "cpu":
            raise UnsupportedLevelError(
                "on a GPU ONNX Runtime's profiler times launches, not what is launched: profile "
                "with --device cpu, or an engine"
            )
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(str(self._path), Path(folder, "profile"))
            for _ in range(runs + 1):
                session.run(list(self.info.output_names), self._feeds(inputs))
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
            self._stage_session = self._open(model.SerializeToString())
        names = (*self.info.output_names, *self.info.stages)
        return _run(self._stage_session, self._feeds(inputs), names)

    def run_operator(self, call: OperatorCall, inputs: Sequence[Array]) -> tuple[Array, ...]:
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
        session = self._open(model.SerializeToString())
        return tuple(_run(session, feeds, node.output).values())

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs}

    def _model(self) -> Any:
        try:
            import onnx
        except ImportError as error:
            raise BackendUnavailableError(
                "looking inside an ONNX file needs the onnx package: pip install onnx"
            ) from error
        return onnx.load(self._path)

    def _settings(self) -> tuple[str, ...]:
        return (f"{self.provider} provider",) * (self.provider != self._kind)

    def _free(self) -> None:
        self._session = self._stage_session = None


def _device(name: str) -> tuple[str, int]:
    """Kind and number of a device."""
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not (number.isdecimal() or name == "cuda")):
        raise BackendUnavailableError(f"device is {name!r}: give cpu, cuda or cuda:N")
    return kind, int(number or 0)


def _with_options(providers: Sequence[str], index: int, tf32: bool) -> list[_Provider]:
    """ONNX Runtime's providers with what each is told."""
    chosen = {"device_id": str(index)}
    options = {
        "CPUExecutionProvider": {},
        "CUDAExecutionProvider": {**chosen, "use_tf32": str(int(tf32))},
    }
    return [(name, options.get(name, chosen)) for name in providers]


def _run(session: Any, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return _named(names, session.run(list(names), dict(feeds)))


def _run_bound(
    session: Any, feeds: Mapping[str, Array], names: Sequence[str], device: str, index: int = 0
) -> tuple[dict[str, Array], RunTimes]:
    """Run with inputs and outputs on a device, so that copies can be timed apart."""
    binding = session.io_binding()
    marks = [time.perf_counter()]
    for name, array in feeds.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, index)
        binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name, device, index)
    binding.synchronize_inputs()
    marks.append(time.perf_counter())
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    marks.append(time.perf_counter())
    results = binding.copy_outputs_to_cpu()
    marks.append(time.perf_counter())
    upload, compute, download = (1e3 * (end - start) for start, end in itertools.pairwise(marks))
    return _named(names, results), RunTimes(upload, compute, download)


def _named(names: Sequence[str], results: Sequence[Array]) -> dict[str, Array]:
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in zip(names, results, strict=True)
    }


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"
