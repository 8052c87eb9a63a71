"""Flavours: which is chosen, what they refuse, and what is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from carafe_deploy.engine import flavours
from carafe_deploy.engine.flavours import FLAVOURS, Flavour, choose_flavour, find_flavour
from carafe_deploy.errors import BackendUnavailableError, EngineError
from carafe_deploy.operators import BY_ONNX_NAME


def test_the_first_installed_one_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, expected in (
        ({"tensorrt", "tensorrt_rtx"}, "tensorrt"),
        ({"tensorrt_rtx"}, "tensorrt_rtx"),
    ):
        monkeypatch.setattr(
            flavours.importlib.util, "find_spec", lambda name, i=installed: name in i or None
        )
        assert choose_flavour().name == expected


def test_none_installed_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"\[trt\]' or 'carafe-deploy\[rtx\]'"):
        choose_flavour()


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(EngineError, match="'openvino': choose from tensorrt, tensorrt_rtx"):
        choose_flavour("openvino")


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.name)
def test_one_that_is_not_installed_names_its_extra(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, flavour.name, None)
    with pytest.raises(
        BackendUnavailableError, match=rf"{flavour.title} is not installed: .*\[{flavour.extra}\]"
    ):
        flavour.load()


def test_one_whose_libraries_are_missing_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"cannot be loaded \(libnvinfer\.so\.10"):
        find_flavour("tensorrt").load()


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0.post12"])
def test_one_that_is_too_old_for_the_plugins(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    message = rf"TensorRT {version} is installed, but the plugins need 10 or later: pip install"
    with pytest.raises(BackendUnavailableError, match=message):
        find_flavour("tensorrt").load()


def test_compute_capabilities_of_tensorrt_rtx(rtx: Flavour) -> None:
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(rtx.targets)
    assert rtx.targets == tuple(sorted(rtx.targets, key=float))
    rtx.check_targets(("8.6", "12.0"))
    with pytest.raises(EngineError, match=r"'5\.2': TensorRT-RTX .* builds for 7\.5, "):
        rtx.check_targets(("8.6", "5.2"))


def test_tensorrt_builds_for_its_own_gpu_only() -> None:
    flavour = find_flavour("tensorrt")
    assert flavour.targets == ()
    flavour.check_targets(())
    with pytest.raises(EngineError, match=r"8\.6 was asked for, but TensorRT builds for the GPU"):
        flavour.check_targets(("8.6",))


def test_plugins_are_registered_once(rtx: Flavour, plugin_library: Path) -> None:
    rtx.load_plugins(plugin_library)
    rtx.load_plugins(plugin_library)
    creators = {
        (creator.plugin_namespace, creator.name, creator.plugin_version)
        for creator in rtx.load().get_plugin_registry().all_creators
    }
    assert {("carafe", name, "1") for name in BY_ONNX_NAME} <= creators


def test_something_that_is_no_plugin_library_is_refused(rtx: Flavour, tmp_path: Path) -> None:
    library = tmp_path / "libcarafe_tensorrt.so"
    library.write_bytes(b"no library")
    with pytest.raises(BackendUnavailableError, match=r"does not load the plugins of .*build the"):
        rtx.load_plugins(library)


def test_a_truncated_plugin_library_is_refused(
    rtx: Flavour, plugin_library: Path, tmp_path: Path
) -> None:
    cut = tmp_path / plugin_library.name
    cut.write_bytes(plugin_library.read_bytes()[:20000])
    with pytest.raises(BackendUnavailableError, match=r"libcarafe_tensorrt\.so is truncated"):
        rtx.load_plugins(cut)


def test_without_the_alias_the_parser_is_not_let_loose(rtx: Flavour, tmp_path: Path) -> None:
    # In a process of its own, where no earlier test has loaded the alias.
    code = (
        "import pathlib, sys\n"
        "from carafe_deploy.engine.flavours import find_flavour\n"
        "find_flavour('tensorrt_rtx').prepare_parser(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "libcarafe_tensorrt.so")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("carafe_deploy.errors.BackendUnavailableError: TensorRT-RTX's parser")
    assert "rtx/libtensorrt_rtx.so belongs to libcarafe_tensorrt.so" in message


def test_the_network_is_strongly_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Builder:
        def create_network(self, flags: int) -> None:
            asked.append(flags)

    for value in (0, 1):  # TensorRT 11 has renumbered it
        module = ModuleType("tensorrt")
        flags = type("NetworkDefinitionCreationFlag", (), {"STRONGLY_TYPED": value})
        module.NetworkDefinitionCreationFlag = flags
        module.__version__ = "11.4.0"
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        find_flavour("tensorrt").create_network(Builder())
    assert asked == [1, 2]
