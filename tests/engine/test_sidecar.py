"""Sidecars: round trip, capabilities, damage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from carafe_deploy.engine.profiles import Profile
from carafe_deploy.engine.sidecar import (
    PluginLayer,
    PluginRecord,
    Sidecar,
    read_sidecar,
    sidecar_path,
)
from carafe_deploy.errors import ArtefactError
from tests.engine.tiny import tiny_info

SIDECAR = Sidecar(
    bytes=3,
    sha256="ab",
    flavour="tensorrt_rtx",
    version="1.7",
    compute_capabilities=("8.6", "12.0"),
    plugin=PluginRecord(
        "libcarafe_tensorrt.so", "cd", "0.1.0", (PluginLayer("n", "Carafe", {"kernel_size": 5}),)
    ),
    source={"file": "tiny.onnx", "sha256": "ef"},
    profiles=(Profile((1, 64, 64), (1, 64, 128), (4, 192, 256)),),
    stages=False,
    layers={"PLUGIN_V3": 1},
    build={"seconds": 1.5, "peak_memory_bytes": 10, "workspace_bytes": None},
    model=tiny_info(),
)


@pytest.mark.parametrize("sidecar", [SIDECAR, dataclasses.replace(SIDECAR, plugin=None)])
def test_round_trip(sidecar: Sidecar) -> None:
    assert Sidecar.from_json(sidecar.to_json(), "it") == sidecar


def test_it_lies_beside_the_engine(tmp_path: Path) -> None:
    engine = tmp_path / "a.b.engine"
    assert sidecar_path(engine) == tmp_path / "a.b.engine.json"
    sidecar_path(engine).write_text(SIDECAR.to_json())
    assert read_sidecar(engine) == SIDECAR


@pytest.mark.parametrize(
    ("built_for", "capability", "expected"),
    [
        (("8.6", "12.0"), (8, 6), True),
        (("8.6", "12.0"), (8, 9), False),
        (("8.6", "12.0"), (12, 1), False),
        (("8.0+",), (7, 5), False),
        (("8.0+",), (8, 0), True),
        (("8.0+",), (12, 0), True),
    ],
)
def test_capabilities(built_for: tuple, capability: tuple[int, int], expected: bool) -> None:
    sidecar = dataclasses.replace(SIDECAR, compute_capabilities=built_for)
    assert sidecar.runs_on(capability) is expected


def _without(name: str) -> str:
    data = json.loads(SIDECAR.to_json())
    del data[name]
    return json.dumps(data)


def _with(**changes: object) -> str:
    return json.dumps({**json.loads(SIDECAR.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"it is no JSON"),
        (b"\xff\xfe\x80", r"it is no JSON: .*utf-8"),
        ("[]", r"it is \[\], expected an object"),
        (SIDECAR.to_json()[:200], r"it is no JSON"),
        (_with(compute_capabilities=["many"]), r"compute_capabilities holds 'many'"),
        (_with(profiles=[{"min": [1, 2]}]), r"profiles\[0\]\.min is \[1, 2\], expected 3 entries"),
        (_with(more=1), r"more is unknown"),
        (_with(source={}), r"source\.file is missing"),
        (_with(source={"file": 1, "sha256": "a"}), r"source\.file is 1, expected a text"),
        (_with(version=11), r"version is 11, expected a text"),
        (_with(layers=[1]), r"layers is \[1\], expected an object"),
        (_with(build=None), r"build is None, expected an object"),
        (_without("model"), r"model is missing"),
        (_without("plugin"), r"plugin is missing"),
    ],
)
def test_damage_is_told_with_the_files_name(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "x.engine.json").write_bytes(content)
    pattern = rf"x\.engine\.json is damaged \({message}.*\): build the engine again"
    with pytest.raises(ArtefactError, match=pattern):
        read_sidecar(tmp_path / "x.engine")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.engine.json").write_text(_with(schema=7))
    with pytest.raises(ArtefactError, match=r"schema 7, this version reads 1: build the engine"):
        read_sidecar(tmp_path / "x.engine")


def test_a_missing_sidecar_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"x\.engine\.json is missing: copy it along"):
        read_sidecar(tmp_path / "x.engine")
