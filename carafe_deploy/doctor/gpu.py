"""The driver, its GPUs, and whether it is new enough for what was built for a version of CUDA."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carafe_deploy.brief import OneLine
from carafe_deploy.doctor.findings import Finding, missing, ok, wrong
from carafe_deploy.environment import ask_nvidia_smi

#: Major and minor version.
Cuda = tuple[int, int]

_DRIVERS = "https://www.nvidia.com/drivers"
#: Major version of CUDA -> first driver for it, on Linux.
_FIRST_DRIVER = {11: "450", 12: "525", 13: "580"}
_NO_DEVICE = 100
#: Status of cuInit -> what helps.
_REMEDIES = {
    34: "unset LD_LIBRARY_PATH",  # a toolkit's stub of libcuda
    802: "sudo systemctl restart nvidia-fabricmanager",
    803: "sudo reboot",  # the driver was updated, its kernel module is still the old one
    804: "unset LD_LIBRARY_PATH",  # a compatibility libcuda that this GPU does not take
    999: "sudo modprobe nvidia_uvm",
}


@dataclass(frozen=True)
class Gpu:
    """One GPU, as CUDA numbers them."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return "{}, compute capability {}.{}".format(self.name, *self.capability)


@dataclass(frozen=True, repr=False)
class Driver(OneLine):
    """What is known of the driver.

    Attributes:
        error: why libcuda cannot be loaded; empty where it can.
        cuda: version that it is for.
        status: of cuInit, with its name; (0, "") where it went well.
        gpus: that CUDA sees.
        release: of the driver, empty where unknown.
        seen: GPUs that nvidia-smi lists.
    """

    error: str = ""
    cuda: Cuda = (0, 0)
    status: tuple[int, str] = (0, "")
    gpus: tuple[Gpu, ...] = ()
    release: str = ""
    seen: tuple[str, ...] = ()

    def serves(self, runtime: Cuda) -> bool:
        """Whether code for this version of CUDA runs: within a major version, all of it does."""
        return not self.cuda[0] or runtime[0] <= self.cuda[0]


def read_cuda(text: str | None) -> Cuda | None:
    """``"13.0.88"`` -> (13, 0), ``"13"`` too; None where there is no number."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text or "")
    return (int(found[1]), int(found[2] or 0)) if found else None


def read_driver(answer: Mapping[str, Any]) -> Driver:
    """Put together what libcuda and nvidia-smi tell."""
    try:
        lines = [line.rpartition(", ") for line in ask_nvidia_smi("name", "driver_version")]
    except (OSError, subprocess.SubprocessError):
        lines = []
    return Driver(
        error=answer.get("error", ""),
        cuda=tuple(answer.get("cuda", (0, 0))),
        status=(answer.get("status", 0), answer.get("status_name", "")),
        gpus=tuple(Gpu(gpu["name"], tuple(gpu["capability"])) for gpu in answer.get("gpus", ())),
        release=lines[0][2] if lines else "",
        seen=tuple(name for name, _, _ in lines),
    )


def check_driver(driver: Driver, runtimes: Mapping[str, Cuda]) -> Finding:
    """Judge the driver.

    Args:
        driver: see :func:`read_driver`.
        runtimes: version of CUDA that each thing installed was built for.
    """
    name = "driver"
    if driver.error:
        return _no_driver(name, driver)
    version = "{}for CUDA {}.{}".format(driver.release and f"{driver.release}, ", *driver.cuda)
    code, status = driver.status
    if code not in (0, _NO_DEVICE):
        remedy = _REMEDIES.get(code, "nvidia-smi")
        return wrong(name, f"{version}; CUDA does not start: {status} ({code})", remedy)
    late = {what: cuda for what, cuda in runtimes.items() if not driver.serves(cuda)}
    if driver.gpus and late:
        wanted = ", ".join("{} for CUDA {}.{}".format(what, *cuda) for what, cuda in late.items())
        first = _FIRST_DRIVER.get(max(late.values())[0])
        remedy = f"install driver {first} or newer" if first else "install the newest driver"
        return wrong(name, f"{version}, is too old for what is built here: {wanted}", remedy)
    return ok(name, version)


def _no_driver(name: str, driver: Driver) -> Finding:
    if driver.seen:
        fact = f"nvidia-smi lists {driver.seen[0]}, but {driver.error}"
        remedy = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return wrong(name, fact, remedy if _in_container() else f"install it from {_DRIVERS}")
    if not _has_card():
        return missing(name, "none, and no GPU of NVIDIA here: run engines on a machine with one")
    remedy = "docker run --gpus all" if _in_container() else f"install it from {_DRIVERS}"
    return missing(name, f"none, though there is a GPU of NVIDIA ({driver.error})", remedy)


def check_gpus(driver: Driver) -> Finding:
    """Judge what CUDA sees."""
    if driver.gpus:
        return ok("GPU", "; ".join(map(str, driver.gpus)))
    if "CUDA_VISIBLE_DEVICES" in os.environ and driver.seen:
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        fact = f"CUDA_VISIBLE_DEVICES is {value!r}, which hides {', '.join(driver.seen)}"
        return missing("GPU", fact, "unset CUDA_VISIBLE_DEVICES")
    return missing("GPU", "none")


def _has_card() -> bool:
    """Whether a graphics card or accelerator of NVIDIA is on the PCI bus."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        try:
            kind = (vendor.parent / "class").read_text()
            if vendor.read_text().strip() == "0x10de" and kind.startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
