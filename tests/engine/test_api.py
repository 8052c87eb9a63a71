"""Every call of TensorRT's Python API here exists in TensorRT 10, 11 and TensorRT-RTX.

The first two cannot be installed without NVIDIA's own index, so their APIs are recorded in
tests/data/tensorrt_api.json: the public members of each class that is used here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import carafe_deploy
from carafe_deploy.engine.flavours import Flavour

PACKAGE = Path(carafe_deploy.__file__).parent
#: File -> what its variables hold.
VARIABLES = {
    "engine/build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "layer": "ILayer",
        "parser": "OnnxParser",
        "problem": "ParserError",
        "config": "IBuilderConfig",
        "sizes": "IOptimizationProfile",
    },
    "engine/flavours.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "registry": "IPluginRegistry",
    },
    "engine/contents.py": {"engine": "ICudaEngine", "inspector": "EngineInspector"},
    "engine/load.py": {"runtime": "Runtime"},
    "engine/log.py": {},
    "engine/progress.py": {},
    "runners/_tensorrt_profile.py": {"engine": "ICudaEngine", "inspector": "EngineInspector"},
    "runners/tensorrt.py": {"_engine": "ICudaEngine", "context": "IExecutionContext"},
}
#: Names that come as text, or are implemented here.
SPOKEN = {
    ("LayerType", "PLUGIN_V3"),
    ("TensorIOMode", "OUTPUT"),
    ("DataType", "FLOAT"),
    ("DataType", "HALF"),
    ("DataType", "BF16"),
    ("DataType", "INT32"),
    ("ILogger", "log"),
    ("IProfiler", "report_layer_time"),
    ("IProgressMonitor", "phase_start"),
    ("IProgressMonitor", "step_complete"),
    ("IProgressMonitor", "phase_finish"),
    ("ITimingCache", "serialize"),
    ("IPluginRegistry", "all_creators"),
}
#: Building ahead of time is TensorRT-RTX's own; and it says when a stream can be captured.
RTX_ONLY = {
    ("ComputeCapability", None),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}

Use = tuple[str, str | None]


def _name(node: ast.expr) -> str:
    """Last part of a variable or attribute; what a call returns is named after the function."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def uses(file: str) -> Iterator[Use]:
    """(class or function of the module, member or None) of everything a file touches."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        holder = _name(node.value)
        if holder in ("trt", "_trt", "load"):
            yield node.attr, None
        elif isinstance(node.value, ast.Attribute) and _name(node.value.value) in ("trt", "load"):
            yield node.value.attr, node.attr
        elif holder in VARIABLES[file]:
            yield VARIABLES[file][holder], node.attr


ALL = {use for file in VARIABLES for use in uses(file)} | SPOKEN


def test_uses_are_found() -> None:
    assert {
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ProfilingVerbosity", "DETAILED"),
        ("Builder", "build_serialized_network"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "num_io_tensors"),
        ("get_plugin_registry", None),
    } <= ALL
    assert len(ALL) > 50


@pytest.mark.parametrize("version", ["10.13.0.35", "11.4.0.106"])
def test_tensorrt_has_them(version: str, data_dir: Path) -> None:
    api = json.loads((data_dir / "tensorrt_api.json").read_text())[version]
    missing = {
        (kind, member)
        for kind, member in ALL - RTX_ONLY
        if kind not in api or (member is not None and member not in api[kind])
    }
    assert missing == set()


def test_tensorrt_rtx_has_them(rtx: Flavour) -> None:
    module = rtx.load()
    missing = {
        (kind, member)
        for kind, member in ALL
        if not hasattr(module, kind)
        or (member is not None and not hasattr(getattr(module, kind), member))
    }
    assert missing == set()
