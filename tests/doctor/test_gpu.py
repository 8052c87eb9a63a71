"""The driver and its GPUs: a fake libcuda, and what is made of its answers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from carafe_deploy.doctor import gpu
from carafe_deploy.doctor.findings import ok
from carafe_deploy.doctor.gpu import (
    Driver,
    Gpu,
    check_driver,
    check_gpus,
    read_cuda,
    read_driver,
)
from carafe_deploy.doctor.probes import ask

H100 = Gpu("NVIDIA H100", (9, 0))
NEW = Driver(cuda=(13, 0), gpus=(H100,), release="580.95", seen=("NVIDIA H100",))
OLD = Driver(cuda=(12, 4), gpus=(H100,), release="550.54", seen=("NVIDIA H100",))
NO_DEVICE = Driver(cuda=(13, 0), status=(100, "CUDA_ERROR_NO_DEVICE"))

#: libcuda.so.1 of a machine with one GPU, or where cuInit fails.
FAKE = """
#include <string.h>
int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
int cuInit(unsigned) { return STATUS; }
int cuGetErrorName(int, char const** name) { *name = "CUDA_ERROR_SOMETHING"; return 0; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int, int device) {
    strcpy(name, device ? "NVIDIA B" : "NVIDIA A"); return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? device + 6 : -1; return 0;
}
"""


@pytest.fixture
def driver_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Driver]:
    """A driver read from a fake libcuda, whose cuInit returns what is given."""

    def read(status: int) -> Driver:
        compiler = shutil.which("cc") or shutil.which("c++")
        assert compiler is not None
        (tmp_path / "fake.cpp").write_text(f'extern "C" {{{FAKE}}}')
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                f"-DSTATUS={status}",
                tmp_path / "fake.cpp",
                "-o",
                tmp_path / "libcuda.so.1",
            ],
            check=True,
        )
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        return read_driver(ask({"x": ("driver",)})["x"])

    return read


@pytest.fixture(autouse=True)
def smi(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decide what nvidia-smi lists; there is none until then."""

    def decide(*lines: str) -> None:
        monkeypatch.setattr(gpu, "ask_nvidia_smi", lambda *columns: lines)

    def none(*columns: str) -> tuple[str, ...]:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpu, "ask_nvidia_smi", none)
    return decide


def test_what_libcuda_tells(driver_of: Callable[[int], Driver], smi: Callable[..., None]) -> None:
    smi("NVIDIA A, 570.1", "NVIDIA B, 570.1")
    assert driver_of(0) == Driver(
        cuda=(12, 8),
        gpus=(Gpu("NVIDIA A", (8, 6)), Gpu("NVIDIA B", (8, 7))),
        release="570.1",
        seen=("NVIDIA A", "NVIDIA B"),
    )


def test_a_libcuda_that_does_not_start(driver_of: Callable[[int], Driver]) -> None:
    driver = driver_of(803)
    assert driver == Driver(cuda=(12, 8), status=(803, "CUDA_ERROR_SOMETHING"))
    finding = check_driver(driver, {})
    assert (finding.status, finding.remedy) == ("wrong", "sudo reboot")
    assert finding.fact == "for CUDA 12.8; CUDA does not start: CUDA_ERROR_SOMETHING (803)"


def test_a_driver_that_serves_all() -> None:
    runtimes = {"torch": (13, 2), "TensorRT-RTX": (12, 0)}  # within 13, all of 13 runs
    assert check_driver(NEW, runtimes) == ok("driver", "580.95, for CUDA 13.0")


def test_a_driver_too_old_for_what_is_built_here() -> None:
    finding = check_driver(OLD, {"torch": (13, 0), "TensorRT": (12, 9), "ORT": (13, 1)})
    assert finding.status == "wrong"
    assert finding.fact == (
        "550.54, for CUDA 12.4, is too old for what is built here: "
        "torch for CUDA 13.0, ORT for CUDA 13.1"
    )
    assert finding.remedy == "install driver 580 or newer"


def test_a_driver_without_gpu_is_too_old_for_nothing() -> None:
    assert check_driver(NO_DEVICE, {"torch": (99, 0)}).status == "ok"


def test_no_driver_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_has_card", lambda: False)
    finding = check_driver(Driver(error="libcuda.so.1: no such file"), {"torch": (13, 0)})
    assert (finding.status, finding.remedy) == ("missing", "")
    assert "no GPU of NVIDIA here" in finding.fact


@pytest.mark.parametrize(
    ("container", "remedy"),
    [(True, "docker run --gpus all"), (False, "install it from https://www.nvidia.com/drivers")],
)
def test_a_gpu_without_driver(
    container: bool, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_has_card", lambda: True)
    monkeypatch.setattr(gpu, "_in_container", lambda: container)
    finding = check_driver(Driver(error="libcuda.so.1: no such file"), {})
    assert (finding.status, finding.remedy) == ("missing", remedy)


def test_a_driver_of_which_only_nvidia_smi_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_in_container", lambda: True)
    finding = check_driver(Driver(error="libcuda.so.1: no such file", seen=("NVIDIA A",)), {})
    assert finding.status == "wrong"
    assert finding.remedy.endswith("NVIDIA_DRIVER_CAPABILITIES=compute,utility")


def test_gpus() -> None:
    assert check_gpus(NEW) == ok("GPU", "NVIDIA H100, compute capability 9.0")
    assert check_gpus(NO_DEVICE).status == "missing"


def test_gpus_that_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = check_gpus(Driver(cuda=(13, 0), status=(100, "x"), seen=("NVIDIA A",)))
    assert (finding.status, finding.remedy) == ("missing", "unset CUDA_VISIBLE_DEVICES")
    assert finding.fact == "CUDA_VISIBLE_DEVICES is '', which hides NVIDIA A"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("13.0.88", (13, 0)), ("12", (12, 0)), ("", None), (None, None), ("none", None)],
)
def test_version_of_cuda(text: str | None, expected: tuple[int, int] | None) -> None:
    assert read_cuda(text) == expected
