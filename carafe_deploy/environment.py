"""What this machine has: the facts that a bug report needs. Nothing missing is imported."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from carafe_deploy import __version__
from carafe_deploy.backends import packages
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.failures import first_line
from carafe_deploy.files import sha256_of
from carafe_deploy.libraries import find_library
from carafe_deploy.requirements import installed_version, is_installed

__all__ = ["LIBRARIES", "ask_nvidia_smi", "cores", "describe_environment", "processor"]

#: Our shared libraries, without ``lib`` and ``.so``.
LIBRARIES = (
    "carafe_kernels",
    "carafe_tensorrt",
    "carafe_tensorrt_register",
    "carafe_torch",
    "carafe_onnxruntime",
)


def describe_environment() -> Mapping[str, str]:
    """Facts by name, in the order people read them; what is not installed says so."""
    facts = {
        "carafe-deploy": __version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{processor()}, {cores()} cores",
        "GPU": _gpus(),
        "NumPy": _version("numpy"),
        "torch": _torch(),
        "ONNX Runtime": _onnxruntime(),
    }
    for package in packages().values():
        listed = package.distributions[: package.reported]
        facts.update((name, _version(name)) for name in listed)
    facts.update((f"lib{name}.so", _library(name)) for name in LIBRARIES)
    return facts


def ask_nvidia_smi(*columns: str) -> tuple[str, ...]:
    """What the driver tells of each GPU, a line each, values separated by comma and space.

    Raises:
        OSError: there is no nvidia-smi.
        subprocess.SubprocessError: it fails, or does not answer.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return tuple(filter(None, done.stdout.split("\n")))


def processor() -> str:
    """Model name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return models[0].strip() if models else platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> str:
    """As the driver tells them: name, compute capability, driver version."""
    try:
        lines = ask_nvidia_smi("name", "compute_cap", "driver_version")
    except FileNotFoundError:
        return "none (there is no nvidia-smi)"
    except (OSError, subprocess.SubprocessError) as error:
        return f"none (nvidia-smi: {error})"
    return "; ".join(lines) or "none"


def _version(package: str) -> str:
    return installed_version(package) or "not installed"


def _torch() -> str:
    if not is_installed("torch"):
        return "not installed"
    try:
        import torch
    except Exception as error:  # its libraries do not fit this machine
        return f"{_version('torch')} cannot be imported ({first_line(error)})"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return f"{torch.__version__} ({build}, {torch.cuda.device_count()} devices)"


def _onnxruntime() -> str:
    if not is_installed("onnxruntime"):
        return "not installed"
    try:
        import onnxruntime
    except Exception as error:  # likewise
        return f"cannot be imported ({first_line(error)})"
    return f"{onnxruntime.__version__} ({', '.join(onnxruntime.get_available_providers())})"


def _library(name: str) -> str:
    try:
        path = find_library(name)
    except CarafeDeployError as error:
        return str(error)
    return "not found" if path is None else f"{path} (SHA-256 {sha256_of(path)[:16]})"
