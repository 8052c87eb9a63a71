"""Whole machines: this one, and ones that lack something."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy import backends, environment, libraries, requirements
from carafe_deploy.doctor import (
    Diagnosis,
    Finding,
    Purpose,
    diagnose,
    diagnosis,
    gpu,
    packages,
    plugins,
)
from carafe_deploy.doctor.plugins import CREATORS
from tests.doctor.elf import MACHINE_CODE, PTX, elf, fat_binary

DETECT, EXPORT = "detect with ONNX Runtime", "run PyTorch and export"
BUILD, RUN = "build engines", "run engines"
RTX_5090 = {"name": "RTX 5090", "capability": [12, 0]}
H100 = {"name": "H100", "capability": [9, 0]}
PLUGINS = {"version": "1.7.1", "creators": [[name, "1"] for name in CREATORS]}

#: A machine that has everything.
VERSIONS = {
    "numpy": "2.4",
    "opencv-python-headless": "5.0",
    "pycocotools": "2.0.11",
    "onnxruntime-gpu": "1.32",
    "torch": "2.14",
    "torchvision": "0.29",
    "onnx": "1.23",
    "onnxscript": "0.7",
    "tensorrt": "10.14",
    "tensorrt-cu13": "10.14",
    "tensorrt-rtx-cu13": "1.7.1",
    "pycuda": "2026.1",
    "cuda-bindings": "13.5",
    "matplotlib": "3.11",
    "jinja2": "3.1",
}
ANSWERS: dict[str, dict[str, Any]] = {
    "driver": {"cuda": [13, 0], "gpus": [RTX_5090]},
    "imports": {"numpy": {}, "cv2": {"version": "5.0"}, "pycocotools.mask": {"version": None}},
    "torch": {"version": "2.14+cu130", "cuda": "13.0", "torchvision": {"version": "0.29"}},
    "onnxruntime": {
        "version": "1.32",
        "cuda": "13.0",
        "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "usable": ["CUDAExecutionProvider"],
    },
    "tensorrt": {**PLUGINS, "version": "10.14"},
    "tensorrt_rtx": PLUGINS,
    "onnxruntime_kernels": {"computed": 6.0},
    "kernels": {"version": "0.1.0", "cuda": "13.0.88", "architectures": "75 120"},
}


class Simulated:
    """A machine to take things from; ``diagnose`` looks at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = dict(VERSIONS)
        self.answers = {name: dict(answer) for name, answer in ANSWERS.items()}
        self.smi: tuple[str, ...] = ("RTX 5090, 580.95",)
        self.asked: list[Mapping[str, tuple[str, ...]]] = []

    def without(self, *distributions: str) -> Diagnosis:
        for name in distributions:
            del self.versions[name]
        return diagnose()

    def without_gpu(self) -> Simulated:
        self.smi = ()
        self.answers["driver"] = {"error": "libcuda.so.1: cannot open shared object file"}
        self.answers["torch"]["cuda_error"] = "Found no NVIDIA driver"
        self.answers["onnxruntime"]["usable"] = ["CPUExecutionProvider"]
        return self

    def is_installed(self, module: str) -> bool:
        package = backends.packages()[module]
        return any(name in self.versions for name in package.distributions)

    def ask(self, questions: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        self.asked.append(questions)
        return {name: self.answers[name] for name in questions}


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """A machine with a GPU of the RTX 50 series and everything installed."""
    folder = tmp_path / "lib"
    code = elf(fat_binary((MACHINE_CODE, 75, 0), (MACHINE_CODE, 120, 0), (PTX, 120, 0)))
    names = [*(f"lib{name}.so" for name in environment.LIBRARIES), "rtx/libtensorrt_rtx.so"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(code)
    made = Simulated(folder)
    for module in (plugins, libraries):
        monkeypatch.setattr(module, "PACKAGE_FOLDER", folder)
    for module in (packages, diagnosis):
        monkeypatch.setattr(module, "installed_version", lambda name: made.versions.get(name))
        monkeypatch.setattr(module, "is_installed", made.is_installed)
    monkeypatch.setattr(
        "carafe_deploy.engine.flavours.Flavour.is_installed",
        property(lambda flavour: made.is_installed(flavour.name)),
    )
    monkeypatch.setattr(diagnosis, "ask", made.ask)
    monkeypatch.setattr(gpu, "ask_nvidia_smi", lambda *columns: made.smi)
    monkeypatch.setattr(gpu, "_has_card", lambda: False)
    for variable in ("CARAFE_DEPLOY_PLUGIN", "CARAFE_DEPLOY_KERNELS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    return made


def purpose(diagnosis: Diagnosis, name: str) -> Purpose:
    [found] = [purpose for purpose in diagnosis.purposes if purpose.name == name]
    return found


def finding(diagnosis: Diagnosis, name: str) -> Finding:
    [found] = {f for purpose in diagnosis.purposes for f in purpose.findings if f.name == name}
    return found


def lacks(diagnosis: Diagnosis) -> dict[str, tuple[str, ...]]:
    return {purpose.name: purpose.lacks for purpose in diagnosis.purposes if purpose.lacks}


def test_a_machine_that_has_everything(simulated: Simulated) -> None:
    diagnosis = diagnose()
    assert not diagnosis.wrong
    assert not lacks(diagnosis)
    named = [f.name for purpose in diagnosis.purposes for f in purpose.findings]
    assert len(named) == len(set(named))
    assert finding(diagnosis, "torch").fact == "2.14+cu130 (CUDA 13.0)"
    assert finding(diagnosis, "ONNX Runtime").fact == "1.32 (CUDA, CPU)"
    assert finding(diagnosis, "TensorRT").fact == "10.14 (CUDA 13)"
    assert finding(diagnosis, "driver").fact == "580.95, for CUDA 13.0"
    assert finding(diagnosis, "GPU memory").fact == (
        "by torch (pycuda and cuda-python would do, too)"
    )


def test_everything_but_ok_has_a_remedy_or_none_exists(simulated: Simulated) -> None:
    simulated.versions = {}
    simulated.without_gpu()
    for path in simulated.folder.rglob("*.so"):
        path.unlink()
    diagnosis = diagnose()
    assert not diagnosis.wrong
    without = {
        f.name
        for purpose in diagnosis.purposes
        for f in purpose.findings
        if f.status != "ok" and not f.remedy
    }
    assert without <= {"driver", "GPU", "nvcc"}


# --- no GPU --------------------------------------------------------------------------------------


def test_without_gpu(simulated: Simulated) -> None:
    simulated.without_gpu()
    diagnosis = diagnose()
    assert not diagnosis.wrong
    assert lacks(diagnosis) == {RUN: ("driver", "GPU")}


def test_tensorrt_builds_for_the_gpu_at_hand(simulated: Simulated) -> None:
    assert lacks(simulated.without_gpu().without("tensorrt-rtx-cu13"))[BUILD] == ("GPU",)


# --- no TensorRT ---------------------------------------------------------------------------------


def test_without_tensorrt(simulated: Simulated) -> None:
    diagnosis = simulated.without("tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13")
    assert not diagnosis.wrong
    either = "TensorRT or TensorRT-RTX"
    assert lacks(diagnosis) == {BUILD: (either,), RUN: ("TensorRT for this GPU", either)[::-1]}
    assert finding(diagnosis, "TensorRT").remedy == "pip install 'carafe-deploy[trt]'"
    assert finding(diagnosis, "TensorRT-RTX").remedy == "pip install 'carafe-deploy[rtx]'"
    assert finding(diagnosis, "plugins").fact.startswith("not listed: ")


@pytest.mark.parametrize(
    ("capability", "supported"),
    [((7, 5), True), ((8, 7), True), ((9, 0), False), ((10, 0), False), ((12, 1), True)],
)
def test_gpus_of_tensorrt_rtx(
    capability: tuple[int, int], supported: bool, simulated: Simulated
) -> None:
    code = elf(fat_binary((PTX, 75, 0)))
    (simulated.folder / "libcarafe_tensorrt.so").write_bytes(code)
    simulated.answers["driver"]["gpus"] = [{"name": "A", "capability": list(capability)}]
    diagnosis = simulated.without("tensorrt", "tensorrt-cu13")
    found = finding(diagnosis, "TensorRT for this GPU")
    assert (found.status == "ok") == purpose(diagnosis, RUN).ready == supported
    if not supported:
        assert found.remedy == "pip install 'carafe-deploy[trt]'"
        assert "is for compute capability 7.5, 8.x and 12.x, not for A, " in found.fact


def test_a_flavour_that_does_not_start(simulated: Simulated) -> None:
    simulated.answers["tensorrt_rtx"] = {"error": "libtensorrt_rtx.so.1: no such file"}
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["TensorRT-RTX"]
    assert not lacks(diagnosis)  # the other one works


def test_a_plugin_library_that_ends_the_process(
    simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.answers["tensorrt_rtx"] = {"error": "it ends the process: SIGSEGV"}

    def ask(questions: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        alone = questions.get("tensorrt_rtx", ("", "", "x"))[2] == ""
        return {"tensorrt_rtx": {"version": "1.7"}} if alone else simulated.ask(questions)

    monkeypatch.setattr(diagnosis, "ask", ask)
    found = simulated.without("tensorrt", "tensorrt-cu13")
    assert [f.name for f in found.wrong] == ["plugins"]
    assert "cannot be loaded (it ends the process: SIGSEGV)" in finding(found, "plugins").fact
    assert lacks(found)[BUILD] == ("plugins",)


# --- no plugin library ---------------------------------------------------------------------------


def test_without_libraries(simulated: Simulated) -> None:
    for path in simulated.folder.rglob("*.so"):
        path.unlink()
    diagnosis = diagnose()
    assert not diagnosis.wrong
    assert lacks(diagnosis) == {
        BUILD: ("libcarafe_tensorrt.so",),
        RUN: ("libcarafe_tensorrt.so",),
    }
    assert finding(diagnosis, "libcarafe_kernels.so").remedy == (
        "pip install --force-reinstall --no-deps carafe-deploy"
    )


def test_a_variable_that_points_nowhere(
    simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", "/empty")
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["CARAFE_DEPLOY_PLUGIN"]
    assert lacks(diagnosis) == {
        EXPORT: ("CARAFE_DEPLOY_PLUGIN",),
        BUILD: ("libcarafe_tensorrt.so",),
        RUN: ("libcarafe_tensorrt.so",),
    }


def test_a_truncated_library(simulated: Simulated) -> None:
    for name in ("kernels", "tensorrt"):
        path = simulated.folder / f"libcarafe_{name}.so"
        path.write_bytes(path.read_bytes()[:-1])
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["libcarafe_kernels.so", "libcarafe_tensorrt.so"]
    assert all(set(asked) <= {*ANSWERS} - {"kernels"} for asked in simulated.asked)
    assert lacks(diagnosis)[EXPORT] == ("libcarafe_kernels.so",)


def test_a_library_without_code_for_the_gpu(simulated: Simulated) -> None:
    simulated.answers["driver"]["gpus"] = [H100]
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["GPU code in kernels", "GPU code in tensorrt"]
    assert lacks(diagnosis) == {RUN: ("GPU code in tensorrt",)}
    assert finding(diagnosis, "TensorRT for this GPU").fact == "TensorRT"


# --- a deployment target -------------------------------------------------------------------------


def test_a_target_without_torch(simulated: Simulated) -> None:
    names = ("torch", "torchvision", "onnx", "onnxscript", "pycuda")
    diagnosis = simulated.without(*names)
    assert not diagnosis.wrong
    assert purpose(diagnosis, DETECT).ready
    assert purpose(diagnosis, RUN).ready
    assert purpose(diagnosis, EXPORT).lacks == ("torch", "torchvision", "onnx", "onnxscript")
    assert purpose(diagnosis, BUILD).lacks == ("onnx",)
    assert finding(diagnosis, "GPU memory").fact == "by cuda-python"


def test_no_way_to_memory(simulated: Simulated) -> None:
    diagnosis = simulated.without("torch", "pycuda", "cuda-bindings")
    assert finding(diagnosis, "GPU memory").remedy == "pip install 'carafe-deploy[cuda-python]'"


def test_torch_for_the_cpu_only_takes_the_memory(simulated: Simulated) -> None:
    simulated.answers["torch"]["cuda"] = None
    diagnosis = diagnose()
    assert not diagnosis.wrong
    assert finding(diagnosis, "torch").fact == "2.14+cu130 (for the CPU only)"
    assert lacks(diagnosis) == {RUN: ("GPU memory",)}
    assert (
        finding(diagnosis, "GPU memory").remedy == finding(diagnosis, "PyTorch on the GPU").remedy
    )


# --- versions of CUDA ----------------------------------------------------------------------------


def test_an_old_driver(simulated: Simulated) -> None:
    simulated.answers["driver"]["cuda"] = [12, 4]
    simulated.answers["torch"]["cuda_error"] = "The NVIDIA driver on your system is too old"
    diagnosis = diagnose()
    assert {f.name for f in diagnosis.wrong} == {"driver", "PyTorch on the GPU"}
    assert finding(diagnosis, "driver").fact == (
        "580.95, for CUDA 12.4, is too old for what is built here: torch for CUDA 13.0, "
        "ONNX Runtime for CUDA 13.0, libcarafe_kernels.so for CUDA 13.0, TensorRT for CUDA 13.0, "
        "TensorRT-RTX for CUDA 13.0"
    )
    assert finding(diagnosis, "PyTorch on the GPU").remedy.endswith("/whl/cu126")


def test_onnxruntime_without_cuda_provider(simulated: Simulated) -> None:
    simulated.answers["onnxruntime"] = {"version": "1.32", "providers": ["CPUExecutionProvider"]}
    found = finding(diagnose(), "ONNX Runtime on the GPU")
    assert (found.status, found.needed) == ("missing", False)
    assert found.remedy == (
        "pip uninstall -y onnxruntime-gpu && pip install 'carafe-deploy[ort-gpu]'"
    )


def test_onnxruntime_whose_cuda_provider_does_not_start(simulated: Simulated) -> None:
    error = "Failed to load library x.so: libcudnn.so.9: cannot open shared object file: No such"
    simulated.answers["onnxruntime"] |= {"usable": ["CPUExecutionProvider"], "stderr": error}
    found = finding(diagnose(), "ONNX Runtime on the GPU")
    assert found.status == "wrong"
    assert found.fact == "its CUDA provider does not start: libcudnn.so.9 is missing"


KERNELS = "libcarafe_onnxruntime.so"


def test_kernels_in_onnxruntime(simulated: Simulated) -> None:
    found = finding(diagnose(), KERNELS)
    assert (found.status, found.needed) == ("ok", False)
    assert (
        found.fact == f"it computes on the CPU and has code for GPUs, {simulated.folder / KERNELS}"
    )


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ({"error": "undefined symbol: x"}, "undefined symbol: x; function bodies run in its place"),
        ({"computed": 5.0}, r"it computes 3 \* 2 = 5.0"),
    ],
)
def test_broken_kernels_in_onnxruntime(
    simulated: Simulated, answer: dict[str, Any], fact: str
) -> None:
    simulated.answers["onnxruntime_kernels"] = answer
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == [KERNELS]
    assert re.match(fact, finding(diagnosis, KERNELS).fact)
    assert purpose(diagnosis, DETECT).ready  # by function bodies


@pytest.mark.parametrize(("version", "more"), [("1.32.0", False), ("1.26.1", True)])
def test_no_kernels_in_onnxruntime(simulated: Simulated, version: str, more: bool) -> None:
    (simulated.folder / KERNELS).unlink()
    simulated.answers["onnxruntime"]["version"] = version
    found = finding(diagnose(), KERNELS)
    assert (found.status, found.needed) == ("missing", False)
    assert "function bodies run in its place, which is slower" in found.fact
    assert found.fact.endswith("several settings need 1.27 then") == more


@pytest.mark.parametrize(
    ("answer", "status", "fact"),
    [
        ({"runs": "X on cpu", "several": [], "has_bodies": True}, "ok", "X on cpu"),
        ({"runs": "X on cpu", "several": ["Carafe"], "has_bodies": False}, "ok", "X on cpu"),
        (
            {"runs": "X on cpu", "several": ["Carafe"], "has_bodies": True},
            "ok",
            "X on cpu; function bodies of Carafe take ONNX Runtime 1.27 or newer",
        ),
        ({"error": "too old: mend it"}, "wrong", "too old: mend it"),
    ],
)
def test_an_artefact(simulated: Simulated, answer: dict[str, Any], status: str, fact: str) -> None:
    simulated.answers["a.onnx"] = answer
    found = finding(diagnose([Path("a.onnx")]), "a.onnx")
    assert (found.status, found.fact) == (status, fact)
    assert simulated.asked[-1] == {"a.onnx": ("opens", "a.onnx")}


def test_two_onnxruntimes(simulated: Simulated) -> None:
    simulated.versions["onnxruntime"] = "1.31"
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["ONNX Runtime"]
    assert not purpose(diagnosis, DETECT).ready


def test_torch_too_old(simulated: Simulated) -> None:
    simulated.answers["torch"]["version"] = "2.4.1"
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["torch"]
    assert finding(diagnosis, "torch").remedy == "pip install --upgrade 'torch>=2.11'"


def test_torchvision_of_another_torch(simulated: Simulated) -> None:
    simulated.answers["torch"]["torchvision"] = {
        "error": "operator torchvision::nms does not exist"
    }
    diagnosis = diagnose()
    assert [f.name for f in diagnosis.wrong] == ["torchvision"]
    assert not purpose(diagnosis, EXPORT).ready


# --- this machine --------------------------------------------------------------------------------


def test_here_everything_that_is_installed_works() -> None:
    """Tests run where `make setup` and `make plugins` ran."""
    diagnosis = diagnose()
    for name in (DETECT, EXPORT, "read images and masks", "measure and plot"):
        assert purpose(diagnosis, name).ready
    broken = {f.name for f in diagnosis.wrong}
    assert not {"torch", "libcarafe_kernels.so", "libcarafe_tensorrt.so", "plugins"} & broken


def test_here_without_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, find_spec: Callable[..., None]
) -> None:
    find_spec("torch", "tensorrt_rtx", "tensorrt")
    for module in (plugins, libraries):
        monkeypatch.setattr(module, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    diagnosis = diagnose()
    assert {"libcarafe_tensorrt.so", "TensorRT or TensorRT-RTX"} <= set(
        purpose(diagnosis, BUILD).lacks
    )
    assert purpose(diagnosis, DETECT).ready


@pytest.fixture
def find_spec(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hide modules, and forget the distributions that bring them."""

    def hide(*modules: str) -> None:
        real = requirements.importlib.util.find_spec
        version = requirements.installed_version
        hidden = {d for module in modules for d in backends.packages()[module].distributions}
        monkeypatch.setattr(
            requirements.importlib.util,
            "find_spec",
            lambda name, package=None: None if name in modules else real(name, package),
        )
        for module in (packages, diagnosis):
            monkeypatch.setattr(
                module, "installed_version", lambda name: None if name in hidden else version(name)
            )

    return hide
