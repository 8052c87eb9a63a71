"""libcarafe_torch.so takes from torch what shim.h declares, as torch's own headers do."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.plugins.built import ROOT, built

FOLDER = ROOT / "plugins/torch"


@pytest.fixture(scope="module")
def library() -> Path:
    return built("libcarafe_torch.so")


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def declared() -> set[str]:
    text = (FOLDER / "shim.h").read_text(encoding="utf-8")
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", text))


def test_only_functions_of_the_shim_are_taken_from_torch(library: Path) -> None:
    undefined = [
        line.split()[-1] for line in output_of("nm", "-D", "--undefined-only", library).splitlines()
    ]
    ours = {name for name in undefined if name.startswith("carafe_")}
    assert {"carafe_forward", "carafe_multilevel_roi_align", "carafe_batched_nms"} <= ours
    # The rest has a version, which torch's libraries have not: C and C++ runtime.
    without_version = {name for name in undefined if "@" not in name}
    weak = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    assert without_version - ours - weak <= declared()
    assert len(without_version & declared()) > 40


def test_needs_no_torch_of_a_certain_kind(library: Path) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", library)))
    assert {"libcarafe_kernels.so", "libtorch_cpu.so"} <= needed
    runtime = re.compile(r"lib(stdc\+\+|gcc_s|c|m|dl)\.so\.\d|ld-linux.*")
    others = needed - {"libcarafe_kernels.so", "libtorch_cpu.so"}
    assert [name for name in others if not runtime.fullmatch(name)] == []


def test_needs_no_newer_cpp_runtime_than_torch(library: Path) -> None:
    """manylinux_2_28, which torch's own wheels are for."""
    found = re.findall(r"GLIBCXX_3\.4\.(\d+)", output_of("nm", "-D", "--undefined-only", library))
    assert max(map(int, found)) <= 24


def test_exports_its_interface_alone(library: Path) -> None:
    lines = output_of("nm", "-D", "--defined-only", library).splitlines()
    assert {line.split()[-1] for line in lines} == {
        "carafe_torch_abi_version",
        "carafe_torch_has",
        "carafe_torch_offer_pytorch",
        "carafe_torch_prefer_pytorch",
    }


def test_declarations_are_those_of_torch() -> None:
    """Compiled for the release that the library speaks, against the headers of this torch."""
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        [
            *(os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only", "-DUSE_CUDA"),
            *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", include),
            FOLDER / "headers.cpp",
        ],
        check=True,
    )


def test_a_wrong_declaration_is_noticed(tmp_path: Path) -> None:
    text = (FOLDER / "shim.h").read_text(encoding="utf-8")
    wrong = text.replace("std::uint32_t* threads", "std::int32_t* threads")
    assert wrong != text
    (tmp_path / "shim.h").write_text(wrong, encoding="utf-8")
    (tmp_path / "headers.cpp").write_bytes((FOLDER / "headers.cpp").read_bytes())
    include = Path(torch.__file__).parent / "include"
    done = subprocess.run(
        [
            *(os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only"),
            *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", include),
            tmp_path / "headers.cpp",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "torch_get_num_threads" in done.stderr
