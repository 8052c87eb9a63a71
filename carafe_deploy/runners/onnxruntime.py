"""ONNX files in ONNX Runtime behind the Runner protocol; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime

from carafe_deploy.errors import ArtefactError, BackendUnavailableError
from carafe_deploy.runners.base import Array, check_inputs
from carafe_deploy.types import ModelInfo, OperatorCall

__all__ = ["OnnxRuntimeRunner"]

_METADATA_KEY = "carafe_deploy"
_DOMAIN = "carafe"
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
#: torch operator -> ONNX operator
_OPERATORS = {
    "carafe": "Carafe",
    "carafe_encoded": "CarafeEncoded",
    "multilevel_roi_align": "MultilevelRoiAlign",
    "batched_nms": "BatchedNms",
}


class OnnxRuntimeRunner:
    """Runs a file written by ``export_onnx`` with its function bodies.

    Args:
        path: of the ``.onnx`` file.
        device: ``"cpu"`` or ``"cuda"``; a missing CUDA provider is an error, not a fallback.
        threads: of one operator; None lets ONNX Runtime choose.

    Raises:
        ArtefactError: the file is missing, truncated, was exported by something else, or holds an
            operator this ONNX Runtime lacks (its CPU has no bfloat16 Conv).
        BackendUnavailableError: the provider for ``device`` is not installed.
    """

    backend = "onnxruntime"

    def __init__(
        self, path: str | os.PathLike[str], device: str = "cpu", threads: int | None = None
    ) -> None:
        self._path = Path(path)
        available = onnxruntime.get_available_providers()
        if device not in _PROVIDERS:
            raise BackendUnavailableError(f"device is {device!r}: give cpu or cuda")
        if _PROVIDERS[device][0] not in available:
            raise BackendUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__} has {', '.join(available)} here, not "
                f"{_PROVIDERS[device][0]}: install onnxruntime-gpu or use --device cpu"
            )
        if not self._path.is_file():
            raise ArtefactError(f"{path} does not exist: export it first")
        self._device = device
        self._threads = threads
        self._session: Any = self._open(str(self._path))
        self._stage_session: Any = None
        properties = self._session.get_modelmeta().custom_metadata_map
        if _METADATA_KEY not in properties:
            raise ArtefactError(
                f"{path} holds no carafe_deploy metadata: export the checkpoint with "
                "`carafe-deploy export`"
            )
        self.info = ModelInfo.from_json(properties[_METADATA_KEY])
        self.inputs = self.info.input_specs
        self.outputs = self.info.output_specs

    def _open(self, model: str | bytes) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = onnxruntime.InferenceSession(model, options, _PROVIDERS[self._device])
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
        if session.get_providers()[0] != _PROVIDERS[self._device][0]:
            raise BackendUnavailableError(
                f"ONNX Runtime could not start {_PROVIDERS[self._device][0]} (it says on stderr "
                "which library is missing): mend the CUDA installation or use --device cpu"
            )
        return session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`."""
        check_inputs(self.info, inputs)
        return _run(self._session, self._feeds(inputs), self.info.output_names)

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`~carafe_deploy.runners.base.Runner`. Needs the onnx package."""
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
        from onnx import helper

        model = self._model()
        nodes = [node for node in model.graph.node if node.domain == _DOMAIN]
        node = nodes[self.info.operators.index(call)]
        if node.op_type != _OPERATORS[call.name]:
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

    def close(self) -> None:
        """Free the sessions."""
        self._session = self._stage_session = None

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _run(session: Any, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    results = session.run(list(names), dict(feeds))
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in zip(names, results, strict=True)
    }


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"
