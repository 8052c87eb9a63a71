"""Look at everything, and sort it by what it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from carafe_deploy.backends import BACKENDS, packages
from carafe_deploy.doctor import plugins, tools
from carafe_deploy.doctor.findings import (
    Diagnosis,
    Finding,
    Purpose,
    make_purpose,
    missing,
    ok,
    optional,
    wrong,
)
from carafe_deploy.doctor.gpu import Cuda, check_driver, check_gpus, read_cuda, read_driver
from carafe_deploy.doctor.packages import check_package, check_python, installed
from carafe_deploy.doctor.probes import Answer, ask
from carafe_deploy.engine.flavours import FLAVOURS, PLUGIN_LIBRARY
from carafe_deploy.requirements import installed_version, is_installed

#: GPUs of TensorRT-RTX by NVIDIA's documentation.
_RTX = re.compile(r"7\.5|8\.\d|12\.\d")
_RTX_TEXT = "compute capability 7.5, 8.x and 12.x"


def diagnose(artefacts: Sequence[Path] = ()) -> Diagnosis:
    """Look at everything, and open these artefacts; takes as long as importing torch does."""
    machine = _Machine().diagnose()
    answers = ask({str(path): ("opens", str(path)) for path in artefacts})
    opened = (make_purpose(f"run {path}", [_judge(path, answers[str(path)])]) for path in artefacts)
    return Diagnosis((*machine.purposes, *opened))


def _judge(path: Path, answer: Answer) -> Finding:
    """What came of opening an artefact."""
    if "error" in answer:
        return wrong(path.name, answer["error"])
    fact = answer["runs"]
    if answer["several"] and answer["has_bodies"]:
        fact += (
            f"; function bodies of {', '.join(answer['several'])} take ONNX Runtime 1.27 or newer"
        )
    return ok(path.name, fact)


class _Machine:
    """What is known of this machine, and what follows."""

    def __init__(self) -> None:
        names = (
            *("carafe_kernels", "carafe_onnxruntime", PLUGIN_LIBRARY),
            *("carafe_tensorrt_register", "carafe_torch"),
        )
        found = map(plugins.look_for, names)
        self.kernels, self.onnxruntime, self.plugins, self.register, self.torch_library = found
        self.packages = packages()
        self.flavours = [flavour for flavour in FLAVOURS if flavour.is_installed]
        self.answers = ask(self._questions())
        self.answers.update(self._ask_flavours_alone())
        self.driver = read_driver(self.answers["driver"])
        self.findings = {
            module: check_package(package, self._answer(module), self._note(module))
            for module, package in self.packages.items()
        }

    def _questions(self) -> dict[str, tuple[str, ...]]:
        """The slowest first."""
        questions: dict[str, tuple[str, ...]] = {
            name: (name,) for name in ("torch", "onnxruntime") if is_installed(name)
        }
        library = "" if self.plugins.path is None else str(self.plugins.path)
        for flavour in self.flavours:
            questions[flavour.name] = ("plugins", flavour.name, library)
        if self.kernels.path is not None:
            questions["kernels"] = ("kernels", str(self.kernels.path))
        if self.onnxruntime.path is not None and is_installed("onnxruntime"):
            path = str(self.onnxruntime.path)
            questions["onnxruntime_kernels"] = ("onnxruntime_kernels", path)
        questions["imports"] = ("imports", "numpy", "cv2", "pycocotools.mask")
        questions["driver"] = ("driver",)
        return questions

    def _ask_flavours_alone(self) -> dict[str, Answer]:
        """A flavour that ended the process may work, and the plugin library be what is broken."""
        failed = [
            flavour.name for flavour in self.flavours if "error" in self.answers[flavour.name]
        ]
        if self.plugins.path is None or not failed:
            return {}
        return {
            name: alone if "error" in alone else {**alone, "plugin_error": self._broken(name)}
            for name, alone in ask({name: ("plugins", name, "") for name in failed}).items()
        }

    def _broken(self, flavour: str) -> str:
        return f"{self.plugins.path} cannot be loaded ({self.answers[flavour]['error']})"

    def _answer(self, module: str) -> Answer:
        """What importing a module told, or nothing where it was not imported."""
        if module == "torchvision":
            answer: Answer = self.answers.get("torch", {}).get(module, {})
        elif module in self.answers:
            answer = self.answers[module]
        else:
            names = {"pycocotools": "pycocotools.mask"}
            answer = self.answers["imports"].get(names.get(module, module), {})
        return answer

    def _note(self, module: str) -> str:
        """What is worth saying beside a version."""
        answer = self.answers.get(module, {})
        if module == "torch" and answer:
            return f" (CUDA {answer['cuda']})" if answer.get("cuda") else " (for the CPU only)"
        if module == "onnxruntime" and answer:
            short = (name.removesuffix("ExecutionProvider") for name in answer.get("providers", ()))
            return f" ({', '.join(short)})"
        cuda = _cuda_of(module)
        return f" (CUDA {cuda})" if cuda else ""

    # --- purposes --------------------------------------------------------------------------------

    def diagnose(self) -> Diagnosis:
        """By what it is for."""
        found = self.findings
        always = [check_python(), found["numpy"]]
        images = [found["cv2"], found["pycocotools"]]
        variable = [checked] if (checked := plugins.check_variable()) else []
        purposes = (
            make_purpose("every command", [*always, *map(optional, variable)]),
            make_purpose("read images and masks", images, always),
            self._detect([*always, *images]),
            self._export([*always, *variable]),
            self._build(always),
            self._run([*always, *images]),
            self._bench(always),
            self._compile(),
        )
        return Diagnosis((*purposes, *self._others(purposes, [*always, *images])))

    def _others(self, told: Sequence[Purpose], also: list[Finding]) -> Iterator[Purpose]:
        """Backends with packages that no purpose so far has told of."""
        names = {finding.name for purpose in told for finding in purpose.findings}
        for backend in BACKENDS.values():
            findings = [self.findings[package.module] for package in backend.packages]
            if any(finding.name not in names for finding in findings):
                yield make_purpose(f"detect with {backend.title}", findings, also)

    def _detect(self, also: list[Finding]) -> Purpose:
        findings = [self.findings["onnxruntime"]]
        if findings[0].status == "ok":
            kernels = self.answers.get("onnxruntime_kernels", {})
            found = plugins.check_onnxruntime(self.onnxruntime, self.kernels.code, kernels)
            if found.status != "ok" and self._older_than_overloads():
                fact = "files with one operator in several settings need 1.27 then"
                found = replace(found, fact=f"{found.fact}; {fact}")
            findings.append(optional(found))
        if self.driver.gpus and findings[0].status == "ok":
            findings.append(optional(self._onnxruntime_on_gpu()))
        return make_purpose("detect with ONNX Runtime", findings, also)

    def _older_than_overloads(self) -> bool:
        """This ONNX Runtime takes one function body of an operator for all its nodes."""
        version = self.answers["onnxruntime"]["version"]
        return tuple(map(int, version.split(".")[:2])) < (1, 27)

    def _onnxruntime_on_gpu(self) -> Finding:
        name, answer = "ONNX Runtime on the GPU", self.answers["onnxruntime"]
        names = installed(self.packages["onnxruntime"])
        replace = f"pip uninstall -y {' '.join(names)} && pip install 'carafe-deploy[ort-gpu]'"
        if "CUDAExecutionProvider" not in answer.get("providers", ()):
            fact = "this ONNX Runtime has no CUDA provider"
            return missing(name, fact, replace if names else "pip install 'carafe-deploy[ort-gpu]'")
        usable = answer.get("usable", ())
        if "CUDAExecutionProvider" in usable:
            others = "" if "TensorrtExecutionProvider" in usable else ", no TensorRT provider"
            return ok(name, f"CUDA provider{others}")
        lacking = re.search(r"lib\S+\.so\S*(?=: cannot open)", answer.get("stderr", ""))
        reason = f": {lacking.group()} is missing" if lacking else ""
        remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return wrong(name, f"its CUDA provider does not start{reason}", remedy)

    def _export(self, also: list[Finding]) -> Purpose:
        findings = [self.findings[name] for name in ("torch", "torchvision", "onnx", "onnxscript")]
        if self.driver.gpus and findings[0].status == "ok":
            findings.append(optional(self._torch_on_gpu()))
        kernels = plugins.check_kernels(self.kernels, self.answers.get("kernels", {}))
        # Operators are computed by PyTorch where there is no library, not where it is broken.
        findings.append(kernels if kernels.status == "wrong" else optional(kernels))
        if self.kernels.path is not None:
            code = plugins.check_gpu_code(self.kernels, self.driver, self._built_with())
            findings.append(optional(code))
        in_cpp = plugins.check_torch_library(self.torch_library, self.answers.get("torch", {}))
        findings.append(optional(in_cpp))
        return make_purpose("run PyTorch and export", findings, also)

    def _torch_on_gpu(self) -> Finding:
        name, answer = "PyTorch on the GPU", self.answers["torch"]
        if answer.get("cuda") is None:
            return missing(
                name,
                "this torch is for the CPU only",
                "pip uninstall -y torch torchvision && pip install 'carafe-deploy[torch]'",
            )
        if "cuda_error" not in answer:
            return ok(name, "it computes")
        remedy = ""
        cuda = read_cuda(answer["cuda"])
        if cuda is not None and not self.driver.serves(cuda) and self.driver.cuda[0] == 12:
            index = "https://download.pytorch.org/whl/cu126"
            packages = "'torch>=2.11' torchvision"
            remedy = f"pip install --force-reinstall {packages} --index-url {index}"
        return wrong(name, answer["cuda_error"], remedy or "nvidia-smi")

    def _build(self, also: list[Finding]) -> Purpose:
        findings = [*self._flavours(), self.plugins.finding]
        if self.plugins.path is not None:
            answers = {flavour.title: self.answers[flavour.name] for flavour in self.flavours}
            creators = plugins.check_creators(self.plugins.path, answers)
            findings.append(creators if creators.status == "wrong" else optional(creators))
            alias = plugins.check_alias(self.plugins.path, self.answers.get("tensorrt_rtx"))
            findings.append(alias if self._works("tensorrt_rtx") else optional(alias))
        findings.append(optional(self.register.finding))
        also = [*also, self.findings["onnx"], self._a_flavour()]
        if self._works("tensorrt") and not self._works("tensorrt_rtx"):
            also.append(check_gpus(self.driver))  # it builds for the GPU at hand
        return make_purpose("build engines", findings, also)

    def _flavours(self) -> list[Finding]:
        return [optional(self.findings[flavour.name]) for flavour in FLAVOURS]

    def _a_flavour(self) -> Finding:
        """One of the two is enough."""
        name = " or ".join(flavour.title for flavour in FLAVOURS)
        if any(self._works(flavour.name) for flavour in FLAVOURS):
            return ok(name, "one works")
        return missing(name, "neither works")

    def _run(self, also: list[Finding]) -> Purpose:
        findings = [check_driver(self.driver, self._runtimes()), check_gpus(self.driver)]
        if self.driver.gpus:
            findings.append(self._flavour_for_gpu())
        if self.plugins.path is not None:
            built_with = self._built_with()
            findings.append(plugins.check_gpu_code(self.plugins, self.driver, built_with))
        findings.append(self._memory())
        return make_purpose(
            "run engines", findings, [*also, self._a_flavour(), self.plugins.finding]
        )

    def _flavour_for_gpu(self) -> Finding:
        """Whether what is installed supports the GPUs."""
        name = "TensorRT for this GPU"
        if self._works("tensorrt"):
            return ok(name, "TensorRT")
        foreign = [
            gpu for gpu in self.driver.gpus if not _RTX.fullmatch("{}.{}".format(*gpu.capability))
        ]
        if foreign:
            fact = f"TensorRT-RTX is for {_RTX_TEXT}, not for {foreign[0]}"
            return missing(name, fact, self.packages["tensorrt"].install)
        if self._works("tensorrt_rtx"):
            return ok(name, "TensorRT-RTX")
        return missing(name, "neither works", self.packages["tensorrt_rtx"].install)

    def _memory(self) -> Finding:
        """How an engine's buffers would be allocated."""
        name, install = "GPU memory", self.packages["cuda.bindings"].install
        modules = {"torch": "torch", "pycuda": "pycuda", "cuda-python": "cuda.bindings"}
        usable = [title for title, module in modules.items() if self._works(module)]
        if not usable:
            return missing(name, f"none of {', '.join(modules)} is installed", install)
        if usable[0] == "torch" and self.driver.gpus and self._torch_on_gpu().status != "ok":
            fact = "by torch, which is taken where it is installed and does not reach the GPU"
            return missing(name, fact, self._torch_on_gpu().remedy)
        others = f" ({' and '.join(usable[1:])} would do, too)" if usable[1:] else ""
        return ok(name, f"by {usable[0]}{others}")

    def _bench(self, also: list[Finding]) -> Purpose:
        findings = [self.findings[name] for name in ("matplotlib", "jinja2")]
        return make_purpose("measure and plot", findings, also)

    def _compile(self) -> Purpose:
        findings = [tools.check_compiler(), tools.check_cmake(), optional(tools.check_nvcc())]
        return make_purpose("compile the libraries", findings)

    # --- what hangs together ---------------------------------------------------------------------

    def _works(self, module: str) -> bool:
        return self.findings[module].status == "ok"

    def _built_with(self) -> Cuda | None:
        """Version of CUDA that the libraries were compiled with, by the one that says so."""
        return read_cuda(self.answers.get("kernels", {}).get("cuda"))

    def _runtimes(self) -> dict[str, Cuda]:
        """Version of CUDA that each thing here was built for."""
        versions = {
            "torch": self.answers.get("torch", {}).get("cuda"),
            "ONNX Runtime": self.answers.get("onnxruntime", {}).get("cuda"),
            self.kernels.finding.name: self.answers.get("kernels", {}).get("cuda"),
            **{flavour.title: _cuda_of(flavour.name) for flavour in self.flavours},
        }
        found = ((name, read_cuda(version)) for name, version in versions.items())
        return {name: cuda for name, cuda in found if cuda is not None}


def _cuda_of(flavour: str) -> str:
    """Major version of CUDA in the name of NVIDIA's package; empty where it has none."""
    stem = {"tensorrt": "tensorrt-cu", "tensorrt_rtx": "tensorrt-rtx-cu"}.get(flavour)
    majors = range(11, 16) if stem else ()
    return next((str(major) for major in majors if installed_version(f"{stem}{major}")), "")
