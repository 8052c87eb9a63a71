"""Facts that only loading something tells, each asked in a process of its own.

Whatever is broken can then end that process and not this one, and slow imports run side by side.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.types import DOMAIN

#: Facts by name; ``"error"`` tells why there are none, or no more.
Answer = Mapping[str, Any]

#: Seconds; importing torch for the first time from a slow disk takes long.
TIMEOUT = 120

#: Sees the modules that this process sees: ``python -c`` would put the current folder first.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "from carafe_deploy.termination import end_with_parent; end_with_parent(int(sys.argv[2])); "
    "from carafe_deploy.doctor.probes import main; main(sys.argv[3:])"
)

#: An ONNX file, y = Carafe(x, w), one float each: a kernel of ours alone computes it.
_CARAFE_MODEL = (
    b'\x08\x08:\xb1\x01\nU\n\x01x\n\x01w\x12\x01y"\x06Carafe*\x11\n\ngroup_size\x18\x01\xa0\x01'
    b"\x02*\x12\n\x0bkernel_size\x18\x01\xa0\x01\x02*\x13\n\x0cscale_factor\x18\x01\xa0\x01\x02:"
    b"\x06carafe\x12\x01gZ\x1b\n\x01x\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x01\n"
    b"\x02\x08\x01\n\x02\x08\x01Z\x1b\n\x01w\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02"
    b"\x08\x01\n\x02\x08\x01\n\x02\x08\x01b\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08"
    b"\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\x11B\n\n\x06carafe\x10\x01"
)
#: An ONNX file: y = x + x, one float.
_MODEL = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12'
    b"\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def ask(questions: Mapping[str, tuple[str, ...]]) -> dict[str, Answer]:
    """Ask all at once.

    Args:
        questions: by a name of the caller's, the name of one of the functions below without its
            underscore, and its arguments.
    """
    running = {name: _start(question) for name, question in questions.items()}
    return {name: _answer(process) for name, process in running.items()}


def _start(question: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "\n".join(sys.path), str(os.getpid()), *question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _answer(process: subprocess.Popen[str]) -> Answer:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"error": f"no answer in {TIMEOUT} s"}
    if process.returncode == 0:
        try:
            return {**json.loads(out.splitlines()[-1]), "stderr": err}
        except (IndexError, ValueError):
            return {"error": "it ends the process"}
    if process.returncode < 0:
        return {"error": f"it ends the process: {signal.Signals(-process.returncode).name}"}
    return {"error": _last_line(err) or f"exit status {process.returncode}"}


def main(question: list[str]) -> None:
    """Answer one question of a process on the last line of stdout; does not return."""
    name, *arguments = question
    try:
        answer = _FUNCTIONS[name](*arguments)
    except Exception as error:
        answer = {"error": _text(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what libraries do at their end does not matter any more


def _text(error: Exception) -> str:
    text = str(error) if isinstance(error, CarafeDeployError) else _last_line(str(error))
    return text or type(error).__name__


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip()[:300]


# --- questions -----------------------------------------------------------------------------------


def _imports(*modules: str) -> dict[str, Any]:
    """Version of each module, or its error."""
    answer: dict[str, Any] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            answer[name] = {"error": _text(error)}
        else:
            answer[name] = {"version": getattr(module, "__version__", None)}
    return answer


def _torch() -> dict[str, Any]:
    """Version and CUDA of torch, whether it computes on a GPU; and the same of torchvision.

    ``without_cpp`` tells why libcarafe_torch.so does not serve, and is empty where it does.
    """
    import torch

    answer = {"version": torch.__version__, "cuda": torch.version.cuda}
    if torch.version.cuda is not None:
        try:
            torch.ones(2, device="cuda").sum().item()
        except Exception as error:
            answer["cuda_error"] = str(error).partition("\n")[0] or type(error).__name__
    answer.update(_imports("torchvision"))
    _only_files_of("carafe_deploy.ops")
    from carafe_deploy.ops._torch_library import torch_library

    return {**answer, "without_cpp": torch_library().reason}


def _onnxruntime() -> dict[str, Any]:
    """Version and providers, and which of those for GPUs take a model."""
    import onnxruntime

    try:
        from onnxruntime.capi.build_and_package_info import cuda_version
    except ImportError:  # not in every build
        cuda_version = None
    providers = onnxruntime.get_available_providers()
    usable = []
    for provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        if provider in providers:
            session = onnxruntime.InferenceSession(_MODEL, providers=[provider])
            usable += session.get_providers()[:1]
    return {
        "version": onnxruntime.__version__,
        "cuda": cuda_version,
        "providers": providers,
        "usable": usable,
    }


def _onnxruntime_kernels(library: str) -> dict[str, Any]:
    """Whether ONNX Runtime computes by our kernels."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(
        _CARAFE_MODEL, options, providers=["CPUExecutionProvider"]
    )
    inputs = {
        name: np.full((1, 1, 1, 1), value, np.float32) for name, value in (("x", 3), ("w", 2))
    }
    return {"computed": session.run(None, inputs)[0].item()}


def _opens(path: str) -> dict[str, Any]:
    """How an artefact would be run on its usual device."""
    from carafe_deploy.artefacts import open_runner
    from carafe_deploy.backends import title_of
    from carafe_deploy.operators import several_structures
    from carafe_deploy.runners._onnx_metadata import read_metadata

    is_onnx = Path(path).suffix == ".onnx" and Path(path).is_file()
    if is_onnx and read_metadata(path) is None:
        return _opens_network(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is told in the answer
        with open_runner(path) as runner:
            info, by = runner.info, runner.implementations[0]
            words = [f"{title_of(runner.backend)} {info.precision} on {runner.device}"]
            words += [f"operators by {by}"] * bool(by)
            several = several_structures(info.operators)
            return {"runs": ", ".join(words), "several": several, "has_bodies": bool(by)}


def _opens_network(path: str) -> dict[str, Any]:
    """The same of an ONNX file that is no detector of ours, on the CPU."""
    from carafe_deploy.engine.onnx_model import custom_nodes, read_onnx
    from carafe_deploy.operators import BY_ONNX_NAME, several_structures
    from carafe_deploy.runners._onnxruntime_session import (
        Opener,
        check_bodies,
        kernels_for,
        provider_options,
    )
    from carafe_deploy.runners.base import BODIES, KERNELS
    from carafe_deploy.types import OperatorCall

    nodes = custom_nodes(read_onnx(path))
    calls = [OperatorCall(BY_ONNX_NAME[n.operator].name, (), n.attributes) for n in nodes]
    kernels = kernels_for("cpu", None)
    if kernels is None:
        check_bodies(path, calls)
    plain = provider_options("cpu", 0, tf32=False, half=False, static=False, given={})
    Opener(Path(path), plain, kernels=kernels).open(path)
    by = f", operators by {KERNELS if kernels else BODIES}" if calls else ""
    several = several_structures(calls)
    return {"runs": f"ONNX Runtime on cpu{by}", "several": several, "has_bodies": bool(calls)}


def _plugins(flavour_name: str, library: str) -> dict[str, Any]:
    """Version of a flavour; and what becomes of the plugin library, unless that is empty."""
    from carafe_deploy.engine.flavours import find_flavour

    flavour = find_flavour(flavour_name)
    answer: dict[str, Any] = {"version": flavour.version}
    if not library:
        return answer
    try:
        flavour.load_plugins(Path(library))
    except CarafeDeployError as error:
        return {**answer, "plugin_error": str(error)}
    registry = flavour.load().get_plugin_registry()
    answer["creators"] = [
        [creator.name, creator.plugin_version]
        for creator in registry.all_creators
        if creator.plugin_namespace == DOMAIN
    ]
    try:
        flavour.prepare_parser(Path(library))
    except CarafeDeployError as error:
        answer["parser_error"] = str(error)
    return answer


def _kernels(library: str) -> dict[str, Any]:
    """What the kernel library says of itself."""
    from carafe_deploy.kernels import KernelLibrary

    return vars(KernelLibrary(library).info)


def _only_files_of(package: str) -> None:
    """Lets files of a package be imported without what importing the package does."""
    name = package.rpartition(".")[2]
    folder = ModuleType(package)
    folder.__path__ = [str(Path(__file__).parents[1] / name)]
    sys.modules[package] = folder


def _driver() -> dict[str, Any]:
    """CUDA version of the driver, name and compute capability of each GPU."""
    cuda = ctypes.CDLL("libcuda.so.1")
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    answer: dict[str, Any] = {
        "cuda": [version.value // 1000, version.value % 1000 // 10],
        "gpus": [],
    }
    status = cuda.cuInit(0)
    if status:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(name))
        return {**answer, "status": status, "status_name": (name.value or b"unknown").decode()}
    count, device, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    text = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(text, len(text), device)
        capability = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, MINOR
            cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            capability.append(number.value)
        answer["gpus"].append({"name": text.value.decode(), "capability": capability})
    return answer


_FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "imports": _imports,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "onnxruntime_kernels": _onnxruntime_kernels,
    "opens": _opens,
    "plugins": _plugins,
    "kernels": _kernels,
    "driver": _driver,
}
