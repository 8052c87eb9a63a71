"""Building small engines with TensorRT-RTX: what comes out, and every way to go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

from carafe_deploy.engine import build
from carafe_deploy.engine.build import BuildOptions, build_engine
from carafe_deploy.engine.flavours import Flavour, choose_flavour
from carafe_deploy.engine.profiles import Profile
from carafe_deploy.engine.sidecar import read_sidecar, sidecar_path
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    EngineError,
)
from carafe_deploy.types import ModelInfo
from tests.engine.tiny import tiny_info, tiny_model

RTX = BuildOptions(flavour="tensorrt_rtx")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "tiny.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "tiny.engine"


def _refused(model: Path, out: Path, options: BuildOptions, kind: type, message: str) -> None:
    """One clear error, and nothing half-written."""
    with pytest.raises(kind, match=message):
        build_engine(model, out, options)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.usefixtures("plugin_library")
def test_an_engine_and_its_sidecar(model: Path, out: Path, plugin_library: Path) -> None:
    sidecar = build_engine(model, out, RTX)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "tiny.engine", "tiny.engine.json"
    ]  # fmt: skip
    assert read_sidecar(out) == sidecar
    plan = out.read_bytes()
    assert (sidecar.bytes, sidecar.sha256) == (len(plan), hashlib.sha256(plan).hexdigest())
    assert sidecar.compute_capabilities == ("8.0+",)
    assert sidecar.source == {
        "file": "tiny.onnx", "sha256": hashlib.sha256(model.read_bytes()).hexdigest()
    }  # fmt: skip
    assert sidecar.profiles == (Profile((1, 64, 64), (1, 128, 256), (4, 192, 256)),)
    assert sidecar.layers["PLUGIN_V3"] == 1
    assert sidecar.model == tiny_info()
    assert sidecar.plugin is not None
    assert sidecar.plugin.sha256 == hashlib.sha256(plugin_library.read_bytes()).hexdigest()
    assert sidecar.plugin.layers[0].attributes["kernel_size"] == 5
    assert sidecar.build["seconds"] > 0
    assert not sidecar.build["tf32"]
    assert sidecar.build["peak_memory_bytes"] > 1 << 20


@pytest.mark.usefixtures("plugin_library")
def test_the_plan_holds_the_serialised_plugin(model: Path, out: Path) -> None:
    build_engine(model, out, RTX)
    plan = out.read_bytes()
    for text in (b"CarafeEncoded", b"kernel_size", b"group_size", b"scale_factor"):
        assert text in plan


def test_a_model_without_custom_nodes_needs_no_plugin_library(
    rtx: Flavour, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carafe_deploy.libraries.PACKAGE_FOLDER", tmp_path)
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    sidecar = build_engine(tiny_model(tmp_path / "plain.onnx", custom=False), out, RTX)
    assert sidecar.plugin is None
    assert "PLUGIN_V3" not in sidecar.layers


@pytest.mark.usefixtures("plugin_library")
def test_options_reach_the_engine(model: Path, out: Path, tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    options = BuildOptions(
        flavour="tensorrt_rtx",
        min=(1, 64, 64),
        opt=(2, 64, 64),
        max=(2, 128, 64),
        workspace=1 << 28,
        compute_capabilities=("7.5", "12.0"),
        tf32=True,
        stages=True,
        log=tmp_path / "logs" / "build.log",
    )
    sidecar = build_engine(model, out, options, progress=lambda *step: heard.append(step))
    assert sidecar.compute_capabilities == ("7.5", "12.0")
    assert sidecar.profiles == (Profile((1, 64, 64), (2, 64, 64), (2, 128, 64)),)
    assert sidecar.model.input.width == (64, 64)
    assert (sidecar.stages, sidecar.build["workspace_bytes"]) == (True, 1 << 28)
    assert sidecar.build["tf32"]
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert (fractions[-1], len(set(fractions)) > 10) == (1.0, True)
    log = (tmp_path / "logs" / "build.log").read_text()
    assert "[VERBOSE]" in log
    # The stage has become an output of the network.
    assert "features" in json.loads(sidecar_path(out).read_text())["model"]["stages"]
    assert b"features" in out.read_bytes()


@pytest.mark.parametrize("tf32", [False, True])
def test_fp32_means_fp32_unless_told_otherwise(
    rtx: Flavour, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool
) -> None:
    trt, asked = rtx.load(), []

    def build(self: object, network: object, config: Any) -> None:
        asked.append(config.get_flag(trt.BuilderFlag.TF32))

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)
    path = tiny_model(model, custom=False)
    _refused(path, out, BuildOptions("tensorrt_rtx", tf32=tf32), EngineError, "cannot build")
    assert asked == [tf32]


@pytest.mark.usefixtures("plugin_library")
def test_an_existing_engine_is_replaced_as_a_whole(model: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"old")
    sidecar = build_engine(model, out, RTX)
    assert out.stat().st_size == sidecar.bytes


# --- what is refused -----------------------------------------------------------------------------


def _edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def _cut(share: float) -> Callable[[Path], object]:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return cut


#: What is done to a model, and what its reader says.
UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "does not exist: export it first"),
    **{
        f"cut at {share}": (_cut(share), "truncated.* export it again|no carafe_deploy metadata")
        for share in (0.0, 0.01, 0.5, 0.99)
    },
    "a page": (
        lambda path: path.write_text("<!doctype html><title>404</title>"),
        "damaged or no ONNX file",
    ),
    "another exporter's": (
        lambda path: tiny_model(path, metadata=False),
        "no carafe_deploy metadata: export the checkpoint",
    ),
    "damaged metadata": (
        lambda path: _edit(path, lambda m: helper.set_model_props(m, {"carafe_deploy": "{}"})),
        r"metadata of .*tiny\.onnx has schema None",
    ),
}
#: The same for what TensorRT says, and what is made of that.
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "without plugin attributes": (
        lambda path: tiny_model(path, plugin=False),
        "1 custom nodes, but TensorRT-RTX made 0 plugin layers of them: upsample lack the "
        'attribute plugin_namespace="carafe", .* Export the model again',
    ),
    "an unknown operator": (
        lambda path: _edit(path, lambda m: setattr(m.graph.node[0], "op_type", "Karafe")),
        r"cannot read .*tiny\.onnx: .*Karafe.* export it again",
    ),
    # 5 * 4 channels are no number of reassembly weights.
    "another kernel size": (
        lambda path: _edit(path, lambda m: setattr(m.graph.node[1].attribute[0], "i", 3)),
        r"TensorRT-RTX .* cannot (read|build) .*tiny\.onnx: .+",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_model_that_cannot_be_read(model: Path, out: Path, case: str) -> None:
    change, message = UNREADABLE[case]
    change(model)
    _refused(model, out, RTX, ArtefactError, message)


@pytest.mark.usefixtures("plugin_library")
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_model_that_tensorrt_cannot_use(model: Path, out: Path, case: str) -> None:
    change, message = UNUSABLE[case]
    change(model)
    _refused(model, out, RTX, EngineError, message)


@pytest.mark.usefixtures("plugin_library")
def test_files_in_8_bits_that_tensorrt_or_a_gpu_does_not_take() -> None:
    quantization = SimpleNamespace(target="cpu")
    source = SimpleNamespace(path="q.onnx", info=SimpleNamespace(quantization=quantization))
    with pytest.raises(EngineError, match=r"q\.onnx was quantized for cpu, .* --for tensorrt"):
        build._check_target(source)
    flavour = choose_flavour("tensorrt_rtx")
    assert build._targets(flavour, BuildOptions(), "int8") == ("8.0+",)
    assert build._targets(flavour, BuildOptions(), "fp8") == ("8.9+",)
    for known in ("8.9", "12.0"):
        options = BuildOptions(compute_capabilities=(known,))
        assert build._targets(flavour, options, "fp8") == (known,)
    with pytest.raises(EngineError, match=r"capability 8\.6 do not compute in fp8: build for 8\.9"):
        build._targets(flavour, BuildOptions(compute_capabilities=("8.9", "8.6")), "fp8")


def test_a_workspace_that_is_too_small(model: Path, out: Path) -> None:
    options = BuildOptions("tensorrt_rtx", workspace=1 << 20)
    _refused(model, out, options, EngineError, r"cannot build .*tiny\.onnx: .*workspace limit")


def test_a_missing_plugin_library(
    rtx: Flavour, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carafe_deploy.libraries.PACKAGE_FOLDER", tmp_path)
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    _refused(
        model, out, RTX, BackendUnavailableError, r"no libcarafe_tensorrt\.so in .*make plugins"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(flavour="openvino"), "'openvino': choose from tensorrt, tensorrt_rtx"),
        (BuildOptions("tensorrt_rtx", max=(9, 64, 64)), "batch 9 of the profile lies outside"),
        (BuildOptions("tensorrt_rtx", opt=(1, 64, 65)), "width 65 .* not a multiple of 64"),
        (BuildOptions("tensorrt_rtx", compute_capabilities=("9.9",)), r"'9\.9': TensorRT-RTX .*12"),
        (BuildOptions("tensorrt_rtx", workspace=0), "workspace is 0 bytes"),
        (BuildOptions("tensorrt_rtx", timing_cache=Path("x")), "TensorRT-RTX .* no timing cache"),
    ],
)
def test_options_that_do_not_fit(
    rtx: Flavour, model: Path, out: Path, options: BuildOptions, message: str
) -> None:
    _refused(model, out, options, EngineError, message)


@pytest.mark.usefixtures("plugin_library")
def test_stages_that_the_model_lacks(tmp_path: Path, out: Path) -> None:
    info: ModelInfo = tiny_info(stages=("features", "C2"))
    model = tiny_model(tmp_path / "tiny.onnx", info=info)
    options = BuildOptions("tensorrt_rtx", stages=True)
    _refused(model, out, options, EngineError, "lacks the stages C2: export it again")


@pytest.mark.usefixtures("plugin_library")
def test_outputs_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CarafeDeployError, match=r"cannot write .*: it is a folder"):
        build_engine(model, tmp_path, RTX)
    (tmp_path / "file").write_text("")
    with pytest.raises(CarafeDeployError, match=r"cannot write .*choose another output path"):
        build_engine(model, tmp_path / "file" / "x.engine", RTX)
    options = BuildOptions("tensorrt_rtx", log=tmp_path / "file" / "x.log")
    with pytest.raises(EngineError, match=r"cannot write .*x\.log: .*choose another log file"):
        build_engine(model, tmp_path / "out" / "x.engine", options)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("plugin_library")
@pytest.mark.parametrize("error", [ZeroDivisionError("by progress"), SystemExit("by progress")])
def test_an_error_of_the_progress_ends_a_build(
    model: Path, out: Path, error: BaseException
) -> None:
    def progress(fraction: float, phase: str) -> None:
        raise error

    with pytest.raises(type(error), match="by progress"):
        build_engine(model, out, RTX, progress=progress)
    assert list(out.parent.iterdir()) == []


@pytest.mark.usefixtures("plugin_library")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_can_be_ended(model: Path, out: Path, number: signal.Signals) -> None:
    """What the program's handler raises comes out, not lost in a callback."""

    def handler(number: int, frame: object) -> None:
        raise SystemExit(f"by signal {number}")

    before = signal.signal(number, handler)
    try:
        with pytest.raises(SystemExit, match=f"by signal {number}"):
            build_engine(model, out, RTX, progress=lambda *step: os.kill(os.getpid(), number))
    finally:
        signal.signal(number, before)
    assert list(out.parent.iterdir()) == []


@pytest.mark.usefixtures("plugin_library")
def test_a_handler_that_raises_nothing_ends_a_build_with_an_error(model: Path, out: Path) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.raises(EngineError, match=r"tiny\.onnx was interrupted"):
            build_engine(
                model, out, RTX, progress=lambda *step: os.kill(os.getpid(), signal.SIGTERM)
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(out.parent.iterdir()) == []
