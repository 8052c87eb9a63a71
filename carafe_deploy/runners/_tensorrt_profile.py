"""TensorRT's profiler, and what an engine tells of its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carafe_deploy.brief import OneLine

__all__ = ["EngineProfile", "layer_information", "make_profiler"]


@dataclass(frozen=True, repr=False)
class EngineProfile(OneLine):
    """Layers of an engine and their times.

    Attributes:
        milliseconds: of one run, by layer in the order of execution.
        layers: what the engine inspector tells of a layer, by its name; nothing for engines that
            keep names only.
        nodes: operator of each ``carafe`` node of the ONNX file, by the node's name.
    """

    milliseconds: Mapping[str, float]
    layers: Mapping[str, Mapping[str, Any]]
    nodes: Mapping[str, str]


def make_profiler(trt: Any) -> Any:
    """An ``IProfiler`` for one of TensorRT's modules; ``times`` are milliseconds by layer."""

    class Profiler(trt.IProfiler):
        """Adds up the time of every layer."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name] = self.times.get(layer_name, 0.0) + ms

    return Profiler()


def layer_information(trt: Any, engine: Any) -> dict[str, dict[str, Any]]:
    """What the engine inspector tells, by name of the layer."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return {layer["Name"]: layer for layer in layers if isinstance(layer, dict)}
