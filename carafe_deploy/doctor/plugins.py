"""Our own libraries: found, whole, with code for the GPU at hand, and taken by TensorRT."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carafe_deploy.brief import OneLine
from carafe_deploy.doctor.fatbin import GpuCode, read_gpu_code
from carafe_deploy.doctor.findings import Finding, missing, ok, wrong
from carafe_deploy.doctor.gpu import Cuda, Driver, Gpu
from carafe_deploy.doctor.probes import Answer
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.kernels import ENVIRONMENT_VARIABLE as _KERNELS_VARIABLE
from carafe_deploy.libraries import ENVIRONMENT_VARIABLE, PACKAGE_FOLDER, check_whole, find_library
from carafe_deploy.operators import BY_ONNX_NAME

#: Plugins that an exported detector can ask for.
CREATORS = tuple(BY_ONNX_NAME)


@dataclass(frozen=True, repr=False)
class Library(OneLine):
    """One of the libraries.

    Attributes:
        name: without ``lib`` and ``.so``.
        path: where it is whole, else None.
        finding: where and with what code, or what is the matter.
        code: for GPUs; None where it cannot be told.
    """

    name: str
    path: Path | None
    finding: Finding
    code: tuple[GpuCode, ...] | None = None


def find_sources() -> Path | None:
    """The repository, where the package lies in one; a wheel leaves the libraries' sources out."""
    folder = PACKAGE_FOLDER.parents[1]
    return folder if (folder / "plugins" / "CMakeLists.txt").is_file() else None


def rebuild(path: Path | None = None, gpus: Sequence[Gpu] = ()) -> str:
    """Command that brings a library, for the given GPUs; ``path`` is that of a bad one."""
    if path is not None and PACKAGE_FOLDER.resolve() not in path.resolve().parents:
        return f"unset {ENVIRONMENT_VARIABLE}"
    sources = find_sources()
    if sources is None:
        return "pip install --force-reinstall --no-deps carafe-deploy"
    where = [] if sources == Path.cwd() else ["-C", str(sources)]
    architectures = ";".join(sorted({"{}{}".format(*gpu.capability) for gpu in gpus}))
    variable = [f"CUDA_ARCHITECTURES={architectures}"] if gpus else []
    return shlex.join(["make", *where, "plugins", *variable])


def check_variable() -> Finding | None:
    """What ``CARAFE_DEPLOY_PLUGIN`` points to; None where it is not set."""
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    if not value:
        return None
    try:
        find_library("carafe_kernels")
    except BackendUnavailableError as error:
        fact = str(error).removeprefix(f"{ENVIRONMENT_VARIABLE} is ")
        return wrong(ENVIRONMENT_VARIABLE, fact, f"unset {ENVIRONMENT_VARIABLE}")
    return ok(ENVIRONMENT_VARIABLE, value)


def look_for(name: str) -> Library:
    """Find a library and read what code it holds, without loading it."""
    file = f"lib{name}.so"
    try:
        path = find_library(name)
    except BackendUnavailableError:
        fact = f"not sought, since {ENVIRONMENT_VARIABLE} is wrong"
        return Library(name, None, missing(file, fact, f"unset {ENVIRONMENT_VARIABLE}"))
    if path is None:
        given = os.environ.get(ENVIRONMENT_VARIABLE)
        places = f"{given} or {PACKAGE_FOLDER}" if given else PACKAGE_FOLDER
        return Library(name, None, missing(file, f"not in {places}", rebuild()))
    try:
        check_whole(path)
        code = read_gpu_code(path)
    except (BackendUnavailableError, OSError, ValueError) as error:
        return Library(name, None, wrong(file, str(error), rebuild(path)))
    return Library(name, path, ok(file, str(path)), code)


def check_gpu_code(library: Library, driver: Driver, built_with: Cuda | None = None) -> Finding:
    """Tell for which GPUs a library has code, and whether those here are among them.

    Args:
        library: that the code is in.
        driver: with the GPUs.
        built_with: version of CUDA that made the library's PTX; None where unknown.
    """
    name, code = f"GPU code in {library.name.removeprefix('carafe_')}", library.code
    if code is None:
        return ok(name, "unknown: it is laid out in a way not known here")
    too_new = built_with is not None and driver.cuda != (0, 0) and driver.cuda < built_with
    usable = [kind for kind in code if not (kind.ptx and too_new)]
    without = [gpu for gpu in driver.gpus if not any(k.runs_on(gpu.capability) for k in usable)]
    fact = _describe(code)
    if not code:
        return missing(name, fact, rebuild(library.path, without))
    if without:
        fact = f"{fact}; none for {'; '.join(map(str, without))}"
        if too_new and built_with is not None:
            fact += ", as the driver takes no PTX of CUDA {}.{}".format(*built_with)
        return wrong(name, fact, rebuild(library.path, without))
    return ok(name, fact)


def _describe(code: Sequence[GpuCode]) -> str:
    if not code:
        return "none, it was built without CUDA"
    lists = (
        (title, ", ".join(str(kind) for kind in code if kind.ptx == ptx))
        for title, ptx in (("machine code", False), ("PTX", True))
    )
    return "; ".join(f"{title} for {names}" for title, names in lists if names)


def check_kernels(library: Library, answer: Mapping[str, Any]) -> Finding:
    """Judge the kernel library by what it says of itself."""
    name = library.finding.name
    choice = os.environ.get(_KERNELS_VARIABLE) or "auto"
    if choice not in ("auto", "off"):
        fact = f"{_KERNELS_VARIABLE} is {choice!r}, expected 'auto' or 'off'"
        return wrong(name, fact, f"unset {_KERNELS_VARIABLE}")
    if library.path is None:
        return library.finding
    if "error" in answer:
        return wrong(name, answer["error"], rebuild(library.path))
    made = f"CUDA {answer['cuda']}" if answer["cuda"] else "CPU only"
    state = f", switched off by {_KERNELS_VARIABLE}" if choice == "off" else ""
    return ok(name, f"{answer['version']} ({made}){state}, {library.path}")


def check_torch_library(library: Library, answer: Answer) -> Finding:
    """Judge the library of torch operators, without which Python calls the kernels by ctypes.

    Args:
        library: of the operators.
        answer: of torch, which has tried to load it.
    """
    name, instead = library.finding.name, "Python calls the kernels in its place, which is slower"
    if library.path is None:
        return replace(library.finding, fact=f"{library.finding.fact}; {instead}")
    reason = answer.get("without_cpp")
    if not reason:
        return library.finding
    if os.environ.get(_KERNELS_VARIABLE):
        return ok(name, f"not used, since {reason}")
    return missing(name, f"{reason}; {instead}", rebuild(library.path))


def check_onnxruntime(library: Library, code: Sequence[GpuCode] | None, answer: Answer) -> Finding:
    """Judge the library of kernels for ONNX Runtime, which runs function bodies without it.

    Args:
        library: of the kernels.
        code: for GPUs, of libcarafe_kernels.so; None where it cannot be told.
        answer: of a session with it.
    """
    name, instead = library.finding.name, "function bodies run in its place, which is slower"
    if library.path is None:
        return replace(library.finding, fact=f"{library.finding.fact}; {instead}")
    if "error" in answer:
        return wrong(name, f"{answer['error']}; {instead}", rebuild(library.path))
    if answer["computed"] != 6:
        fact = f"it computes 3 * 2 = {answer['computed']}"
        return wrong(name, fact, rebuild(library.path))
    on_gpus = "has none" if code == () else "has code"
    return ok(name, f"it computes on the CPU and {on_gpus} for GPUs, {library.path}")


def check_alias(library: Path, answer: Mapping[str, Any] | None) -> Finding:
    """Judge the name by which TensorRT-RTX's parser opens TensorRT-RTX.

    Args:
        library: with the plugins.
        answer: of TensorRT-RTX, where that is installed.
    """
    name = "rtx/libtensorrt_rtx.so"
    path = library.parent / name
    try:
        check_whole(path)
    except BackendUnavailableError as error:
        return wrong(name, str(error), rebuild(path))
    if answer is not None and "parser_error" in answer:
        judge = wrong if path.is_file() else missing
        return judge(name, answer["parser_error"], rebuild(path))
    if path.is_file():
        return ok(name, str(path))
    if answer is not None and "creators" in answer:
        return ok(name, "that of TensorRT-RTX itself")
    return missing(name, f"not in {library.parent}", rebuild(path))


def check_creators(library: Path, answers: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Judge what TensorRT's registry lists once it has loaded the library.

    Args:
        library: with the plugins.
        answers: by the title of each flavour that is installed.
    """
    name = "plugins"
    facts = []
    for title, answer in answers.items():
        if "plugin_error" in answer:
            return wrong(name, answer["plugin_error"], rebuild(library))
        if "creators" not in answer:
            continue
        found = dict(answer["creators"])
        lacking = [creator for creator in CREATORS if creator not in found]
        if lacking:
            fact = f"{library} lacks {', '.join(lacking)}, as {title} lists them"
            return wrong(name, fact, rebuild(library))
        listed = ", ".join(f"{creator} {version}" for creator, version in found.items())
        facts.append(f"{listed} (listed by {title})")
    if facts:
        return ok(name, "; ".join(facts))
    reason = "none that is installed starts" if answers else "none is installed"
    fact = f"not listed: that takes a TensorRT's registry, and {reason}"
    return missing(name, fact, "pip install 'carafe-deploy[rtx]'")
