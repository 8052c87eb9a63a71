"""TensorRT's profile by layer, joined with what the engine tells of its layers."""

from __future__ import annotations

from collections.abc import Mapping

from carafe_deploy.backends import title_of
from carafe_deploy.bench.record import Layer
from carafe_deploy.errors import UnsupportedLevelError
from carafe_deploy.operators import BY_ONNX_NAME
from carafe_deploy.runners._tensorrt_profile import EngineProfile
from carafe_deploy.runners.base import Array
from carafe_deploy.runners.tensorrt import TensorRTRunner

__all__ = ["layer_rows"]


def layer_rows(runner: TensorRTRunner, inputs: Mapping[str, Array], runs: int) -> list[Layer]:
    """One row a layer.

    Raises:
        UnsupportedLevelError: TensorRT reported no times.
    """
    profile = runner.profile(inputs, runs)
    if not profile.milliseconds:
        raise UnsupportedLevelError(
            f"{title_of(runner.backend)} reported no layer to its profiler: profile the ONNX file"
        )
    return joined(profile)


def joined(profile: EngineProfile) -> list[Layer]:
    """Times with kinds and operators."""
    return [
        Layer(
            name,
            str(profile.layers.get(name, {}).get("LayerType", "")),
            spent,
            _operator(profile, name),
        )
        for name, spent in profile.milliseconds.items()
    ]


def _operator(profile: EngineProfile, name: str) -> str:
    """By the plugin that the layer says it is, else by the node that it is named after."""
    plugin = profile.layers.get(name, {}).get("PluginType")
    return str(plugin) if plugin in BY_ONNX_NAME else profile.nodes.get(name, "")
