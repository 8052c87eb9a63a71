"""``carafe-deploy doctor``: exit status, what is printed, and machines that lack packages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy import doctor
from carafe_deploy.doctor.findings import Diagnosis, make_purpose, missing, ok, optional, wrong
from carafe_deploy.libraries import require_library

Run = Callable[..., Any]
NUMPY = ok("NumPy", "2.4")
PLOT = optional(missing("matplotlib", "not installed", "pip install 'carafe-deploy[bench]'"))
TORCH = missing("torch", "not installed", "pip install 'carafe-deploy[torch]'")
ORT = wrong("ONNX Runtime", "two are installed", "pip uninstall -y onnxruntime")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decide what is found."""

    def decide(*findings: Any) -> None:
        purposes = (make_purpose("detect", findings), make_purpose("plot", [PLOT]))
        monkeypatch.setattr(doctor, "diagnose", lambda paths: Diagnosis(purposes))

    return decide


def test_success(run: Run, found: Callable[..., None]) -> None:
    found(NUMPY)
    outcome = run("doctor")
    assert outcome.status == 0
    assert outcome.out.splitlines() == [
        "detect: ready",
        "  ✓ NumPy 2.4",
        "",
        "plot: ready",
        "  – matplotlib not installed",
        "               pip install 'carafe-deploy[bench]'",
        "",
        "PASS nothing is wrong",
    ]


def test_files_are_opened(run: Run, onnx_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_file.read_bytes()[:1000])
    outcome = run("doctor", onnx_file, broken, "--json")
    assert outcome.status == 1
    purposes = {each["name"]: each for each in json.loads(outcome.out)["purposes"]}
    assert purposes[f"run {onnx_file}"]["ready"]
    [found] = purposes[f"run {onnx_file}"]["findings"]
    assert found["fact"] == "ONNX Runtime fp32 on cpu, operators by kernels"
    [found] = purposes[f"run {broken}"]["findings"]
    assert (found["status"], found["name"]) == ("wrong", "broken.onnx")
    assert "is truncated, damaged or no ONNX file" in found["fact"]


def test_a_network_of_ones_own_is_opened(run: Run, tmp_path: Path) -> None:
    import torch

    from carafe_deploy.graph.onnx_export import export_operator_network
    from carafe_deploy.ops import CARAFEPack

    packs = torch.nn.Sequential(CARAFEPack(4, 2), CARAFEPack(4, 2, up_kernel=3)).eval()
    path = tmp_path / "network.onnx"
    export_operator_network(packs, (torch.zeros(1, 4, 3, 3),), path)
    purposes = json.loads(run("doctor", path, "--json").out)["purposes"]
    [found] = purposes[-1]["findings"]
    assert found["fact"] == (
        "ONNX Runtime on cpu, operators by kernels; function bodies of CarafeEncoded take ONNX "
        "Runtime 1.27 or newer"
    )


def test_what_is_missing_is_no_failure(run: Run, found: Callable[..., None]) -> None:
    found(NUMPY, TORCH)
    outcome = run("doctor")
    assert outcome.status == 0
    assert "detect: lacks torch\n" in outcome.out


def test_what_is_wrong_is_status_1(run: Run, found: Callable[..., None]) -> None:
    found(NUMPY, TORCH, ORT)
    outcome = run("doctor")
    assert outcome.status == 1
    assert "detect: lacks torch, ONNX Runtime\n" in outcome.out
    assert "  ✗ ONNX Runtime two are installed" in outcome.out
    assert outcome.out.splitlines()[-1] == "FAIL 1 fault: ONNX Runtime"


def test_commands_are_not_wrapped(run: Run, found: Callable[..., None]) -> None:
    command = "make -C /" + "very/long/" * 20 + " plugins"
    found(wrong("library", "broken [sic] " + "text " * 60, command))
    lines = run("doctor").out.splitlines()
    assert f"            {command}" in lines
    assert "[sic]" in lines[1]


def test_json_is_all_of_stdout(run: Run, found: Callable[..., None]) -> None:
    found(NUMPY, ORT)
    outcome = run("doctor", "--json")
    assert outcome.status == 1
    assert outcome.json["ok"] is False
    [detect, plot] = outcome.json["purposes"]
    assert (detect["ready"], detect["lacks"], plot["ready"]) == (False, ["ONNX Runtime"], True)
    assert detect["findings"][1] == {
        "name": "ONNX Runtime",
        "status": "wrong",
        "fact": "two are installed",
        "remedy": "pip uninstall -y onnxruntime",
        "needed": True,
    }


# --- in processes of their own -------------------------------------------------------------------


def statuses(text: str) -> dict[str, str]:
    return {
        finding["name"]: finding["status"]
        for purpose in json.loads(text)["purposes"]
        for finding in purpose["findings"]
    }


def test_a_variable_that_points_nowhere(process: Run) -> None:
    outcome = process("doctor", "--json", env={"CARAFE_DEPLOY_PLUGIN": "/empty"})
    assert outcome.status == 1
    found = statuses(outcome.out)
    assert [name for name, status in found.items() if status == "wrong"] == ["CARAFE_DEPLOY_PLUGIN"]


def test_truncated_libraries_do_not_end_the_process(process: Run, tmp_path: Path) -> None:
    # Not where the process runs: cv2, once imported, lets its children load libraries from there.
    (folder := tmp_path / "lib").mkdir()
    for name in ("carafe_kernels", "carafe_tensorrt"):
        content = require_library(name).read_bytes()
        (folder / f"lib{name}.so").write_bytes(content[: len(content) // 2])
    outcome = process("doctor", env={"CARAFE_DEPLOY_PLUGIN": str(folder)})
    assert outcome.status == 1
    assert "FAIL 2 faults: libcarafe_kernels.so, libcarafe_tensorrt.so" in outcome.out
    assert " ".join(outcome.out.split()).count("is truncated") == 2
    assert "unset CARAFE_DEPLOY_PLUGIN" in outcome.out


def test_libraries_full_of_zeros_do_not_end_the_process(process: Run, tmp_path: Path) -> None:
    """Their headers are whole, so only loading them shows it."""
    for name in ("carafe_kernels", "carafe_tensorrt"):
        path = shutil.copy(require_library(name), tmp_path)
        size = Path(path).stat().st_size
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(bytes(size // 2))
    outcome = process("doctor", "--json", env={"CARAFE_DEPLOY_PLUGIN": str(tmp_path)})
    assert outcome.status == 1
    found = statuses(outcome.out)
    assert found["libcarafe_kernels.so"] == "wrong"
    assert found["torch"] == "ok"


def closure(*names: str) -> list[metadata.Distribution]:
    """Distributions by name, and all that they require."""
    found: dict[str, metadata.Distribution] = {}
    names_left = list(names)
    while names_left:
        name = names_left.pop()
        if name not in found:
            found[name] = metadata.distribution(name)
            lines = found[name].requires or ()
            names_left += [re.split(r"[^\w.-]", line)[0] for line in lines if ";" not in line]
    return list(found.values())


def test_with_numpy_typer_and_rich_only(process: Run, tmp_path: Path) -> None:
    """The packages of a bare virtual environment, as links in a folder of their own."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for distribution in closure("numpy", "typer", "rich"):
        for name in {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}:
            path = Path(str(distribution.locate_file(name)))
            if path.exists():
                (folder / name).symlink_to(path)
    root = Path(doctor.__file__).parents[2]
    code = (
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
        f"sys.path += [{str(folder)!r}, {str(root)!r}]"
    )
    outcome = process("doctor", "--json", code=code)
    assert outcome.err.endswith(" s\n")
    assert outcome.status == 0
    found = statuses(outcome.out)
    assert (found["Python"], found["NumPy"]) == ("ok", "ok")
    for name in ("torch", "onnx", "ONNX Runtime", "OpenCV", "TensorRT", "GPU memory"):
        assert found[name] == "missing"
    ready = {p["name"] for p in json.loads(outcome.out)["purposes"] if p["ready"]}
    assert "every command" in ready
    assert not {"detect with ONNX Runtime", "run PyTorch and export"} & ready
