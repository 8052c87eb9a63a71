"""Questions asked of other processes: answers, errors, and processes that end."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from carafe_deploy import onnxruntime_library
from carafe_deploy.doctor import probes
from carafe_deploy.doctor.plugins import CREATORS
from carafe_deploy.doctor.probes import ask
from carafe_deploy.libraries import require_library


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that asked processes find; its code goes into the file beside."""
    monkeypatch.syspath_prepend(tmp_path)
    return "a_module_to_probe"


def write(tmp_path: Path, module: str, code: str) -> None:
    (tmp_path / f"{module}.py").write_text(code)


def test_versions_of_what_can_be_imported() -> None:
    answer = ask({"x": ("imports", "numpy", "cv2", "no_such_module")})["x"]
    assert answer["numpy"] == {"version": np.__version__}
    assert answer["cv2"] == {"version": cv2.__version__}
    assert answer["no_such_module"] == {"error": "No module named 'no_such_module'"}


def test_what_is_printed_is_no_answer(tmp_path: Path, module: str) -> None:
    code = "import os; print('hello'); os.write(1, b'raw'); os.write(2, b'noise'); __version__='1'"
    write(tmp_path, module, code)
    answer = ask({"x": ("imports", module)})["x"]
    assert answer == {module: {"version": "1"}, "stderr": "noise"}


def test_an_end_by_signal_is_an_answer(tmp_path: Path, module: str) -> None:
    write(tmp_path, module, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    answers = ask({"bad": ("imports", module), "good": ("imports", "json")})
    assert answers["bad"] == {"error": "it ends the process: SIGSEGV"}
    assert "error" not in answers["good"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os, sys; sys.stderr.write('cannot go on\\n'); os._exit(3)", "cannot go on"),
        ("import os; os._exit(3)", "exit status 3"),
        ("raise SystemExit", "it ends the process"),
        ("import os; os.write(1, b'text'); os._exit(0)", "it ends the process"),
    ],
)
def test_an_exit_is_an_answer(tmp_path: Path, module: str, code: str, error: str) -> None:
    write(tmp_path, module, code)
    assert ask({"x": ("imports", module)})["x"] == {"error": error}


def test_one_that_never_answers_is_ended(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "TIMEOUT", 1)
    write(tmp_path, module, "import time; time.sleep(60)")
    assert ask({"x": ("imports", module)})["x"] == {"error": "no answer in 1 s"}


def test_the_current_folder_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "cv2.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert ask({"x": ("imports", "cv2")})["x"]["cv2"] == {"version": cv2.__version__}


def test_torch() -> None:
    import torch
    import torchvision

    answer = ask({"x": ("torch",)})["x"]
    assert answer["version"] == torch.__version__
    assert answer["cuda"] == torch.version.cuda
    assert answer["torchvision"] == {"version": torchvision.__version__}
    on_gpu = answer["cuda"] is not None and "cuda_error" not in answer
    assert on_gpu == torch.cuda.is_available()


def test_onnxruntime() -> None:
    import onnxruntime

    answer = ask({"x": ("onnxruntime",)})["x"]
    assert answer["version"] == onnxruntime.__version__
    assert answer["providers"] == onnxruntime.get_available_providers()
    assert set(answer["usable"]) <= set(answer["providers"])


def test_our_kernels_in_onnxruntime(tmp_path: Path) -> None:
    library = onnxruntime_library()
    answers = ask({"x": ("onnxruntime_kernels", library), "y": ("onnxruntime_kernels", __file__)})
    assert answers["x"]["computed"] == 6
    assert "error" in answers["y"]


def test_the_model_is_one() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(probes._MODEL, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.float32([2])}) == [4]


def test_kernels_need_no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)
    answer = ask({"x": ("kernels", str(require_library("carafe_kernels")))})["x"]
    assert {"version", "cuda", "architectures"} <= answer.keys()


def test_kernels_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"text")
    error = ask({"x": ("kernels", str(tmp_path / "lib.so"))})["x"]["error"]
    assert error.startswith(f"{tmp_path / 'lib.so'} cannot be loaded (")


def test_plugins_are_listed_by_the_registry() -> None:
    pytest.importorskip("tensorrt_rtx")
    library = str(require_library("carafe_tensorrt"))
    answer = ask({"x": ("plugins", "tensorrt_rtx", library)})["x"]
    assert sorted(answer["creators"]) == [[name, "1"] for name in sorted(CREATORS)]
    assert not {"error", "plugin_error", "parser_error"} & answer.keys()


def test_a_library_without_plugins_is_refused_by_the_registry(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "lib.so").write_bytes(b"text")
    answer = ask({"x": ("plugins", "tensorrt_rtx", str(tmp_path / "lib.so"))})["x"]
    assert "does not load the plugins of" in answer["plugin_error"]
    assert answer["version"]


def test_a_flavour_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    answer = ask({"x": ("plugins", "tensorrt", "")})["x"]
    assert "TensorRT cannot be loaded (libnvinfer.so.10" in answer["error"]
