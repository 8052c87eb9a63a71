"""The facts for a bug report, on this machine and on machines that lack everything."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import carafe_deploy
from carafe_deploy import libraries, requirements
from carafe_deploy.environment import LIBRARIES, describe_environment
from carafe_deploy.files import sha256_of
from carafe_deploy.requirements import installed_version, is_installed


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a program named nvidia-smi, made of shell commands, first on PATH."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_versions_are_those_of_the_packages() -> None:
    facts = describe_environment()
    assert facts["carafe-deploy"] == carafe_deploy.__version__
    assert facts["Python"] == platform.python_version()
    assert facts["NumPy"] == np.__version__
    assert facts["torch"].startswith(f"{torch.__version__} (")
    assert facts["processor"].endswith(" cores")
    assert all(isinstance(value, str) and value for value in facts.values())


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise requirements.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(requirements.importlib.metadata, "version", nothing)
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: None)
    facts = describe_environment()
    for name in ("torch", "ONNX Runtime", "onnx", "tensorrt", "tensorrt-rtx-cu13", "pycuda"):
        assert facts[name] == "not installed"


def test_nothing_is_imported_for_it() -> None:
    program = (
        "import sys, carafe_deploy.environment; "
        "print(*{'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA A, 8.9, 570.1'", "NVIDIA A, 8.9, 570.1"),
        ("echo 'A, 8.9, 1'; echo 'B, 9.0, 1'", "A, 8.9, 1; B, 9.0, 1"),
        ("true", "none"),
    ],
)
def test_gpus_are_what_the_driver_tells(smi: Any, script: str, expected: str) -> None:
    smi(script)
    assert describe_environment()["GPU"] == expected


def test_a_driver_that_fails_is_no_gpu(smi: Any) -> None:
    smi("exit 9")
    assert describe_environment()["GPU"].startswith("none (nvidia-smi: ")
    assert "exit status 9" in describe_environment()["GPU"]


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment()["GPU"] == "none (there is no nvidia-smi)"


def test_libraries_are_named_with_their_hash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "libcarafe_kernels.so"
    library.write_bytes(b"kernels")
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(tmp_path))
    monkeypatch.setattr(libraries, "PACKAGE_FOLDER", tmp_path / "nowhere")
    facts = describe_environment()
    assert facts["libcarafe_kernels.so"] == f"{library} (SHA-256 {sha256_of(library)[:16]})"
    assert facts["libcarafe_torch.so"] == "not found"


def test_a_wrong_variable_is_a_fact_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", "/no/such/folder")
    facts = describe_environment()
    for name in LIBRARIES:
        assert "'/no/such/folder', which does not exist" in facts[f"lib{name}.so"]


def test_a_folder_left_behind_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "left_behind" / "__pycache__").mkdir(parents=True)
    (tmp_path / "single.py").write_text("raise ZeroDivisionError('nothing is imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("single")
    for name in ("left_behind", "left_behind.inside", "no_such_module", "no_such.module"):
        assert not is_installed(name)


def test_versions_by_the_name_on_pypi() -> None:
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-distribution") is None


@pytest.mark.parametrize(("module", "fact"), [("torch", "torch"), ("onnxruntime", "ONNX Runtime")])
def test_a_package_that_breaks_on_import_is_a_fact(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, fact: str
) -> None:
    """As where its CUDA libraries are missing: a bug report must come about all the same."""
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("raise OSError('libcudart.so.13: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    found = describe_environment()[fact]
    assert found.endswith("cannot be imported (OSError: libcudart.so.13: not found)")
