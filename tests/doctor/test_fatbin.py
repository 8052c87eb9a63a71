"""Which GPUs a library has code for: what is read, and where that runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from carafe_deploy.doctor.fatbin import GpuCode, read_gpu_code
from tests.doctor.elf import MACHINE_CODE, PTX, A, F, elf, fat_binary
from tests.plugins.built import built


def read(tmp_path: Path, content: bytes) -> tuple[GpuCode, ...] | None:
    (tmp_path / "lib.so").write_bytes(content)
    return read_gpu_code(tmp_path / "lib.so")


def test_every_kind_is_told_once_and_sorted(tmp_path: Path) -> None:
    first = fat_binary((PTX, 120, 0), (MACHINE_CODE, 120, 0), (MACHINE_CODE, 75, 0))
    second = fat_binary((MACHINE_CODE, 75, 0), (MACHINE_CODE, 90, A), (MACHINE_CODE, 103, F))
    assert read(tmp_path, elf(first + second)) == (
        GpuCode((7, 5), "", False),
        GpuCode((9, 0), "a", False),
        GpuCode((10, 3), "f", False),
        GpuCode((12, 0), "", False),
        GpuCode((12, 0), "", True),
    )


def test_fat_binaries_begin_at_multiples_of_eight(tmp_path: Path) -> None:
    first = fat_binary((PTX, 75, 0), size=21)
    code = first + b"\0" * 3 + fat_binary((PTX, 80, 0))
    assert len(first) % 8 == 5
    assert read(tmp_path, elf(code)) == (GpuCode((7, 5), "", True), GpuCode((8, 0), "", True))


@pytest.mark.parametrize("content", [elf(None), elf(b"", ".nv_fatbin"), elf(b"x", ".nv_fat")])
def test_a_library_without_code(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == ()


@pytest.mark.parametrize(
    "section",
    [
        b"\0" * 32,
        b"short",
        fat_binary((PTX, 75, 0))[:40],
        fat_binary((7, 75, 0)),
        fat_binary((PTX, 7, 0)),
        (0xBA55ED50).to_bytes(4, "little") + b"\0" * 12,
    ],
    ids=["zeros", "short", "cut", "kind", "architecture", "empty header"],
)
def test_another_layout_is_unknown(tmp_path: Path, section: bytes) -> None:
    assert read(tmp_path, elf(section)) is None


@pytest.mark.parametrize(
    "content", [b"", b"text", elf(None)[:64], b"\x7fELF\x01" + b"\0" * 99], ids=str
)
def test_what_is_no_library(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"lib\.so is "):
        read(tmp_path, content)


RUNS_ON = [
    ("sm_86", (8, 6), True),
    ("sm_86", (8, 9), True),
    ("sm_86", (8, 0), False),
    ("sm_86", (9, 0), False),
    ("sm_86", (8, 7), False),  # Orin takes its own machine code only
    ("sm_87", (8, 9), False),
    ("sm_87", (8, 7), True),
    ("sm_90a", (9, 0), True),
    ("sm_100f", (10, 3), True),
    ("sm_100f", (12, 0), False),
    ("sm_100a", (10, 3), False),
    ("compute_75", (8, 7), True),
    ("compute_75", (12, 1), True),
    ("compute_90", (8, 9), False),
    ("compute_90a", (12, 0), False),
    ("compute_100f", (10, 3), True),
    ("compute_100f", (12, 0), False),
]


@pytest.mark.parametrize(("name", "capability", "expected"), RUNS_ON)
def test_where_code_runs(name: str, capability: tuple[int, int], expected: bool) -> None:
    kind, number, suffix = re.fullmatch(r"(sm|compute)_(\d+)(\w?)", name).groups()
    code = GpuCode(divmod(int(number), 10), suffix, kind == "compute")
    assert code.runs_on(capability) is expected


@pytest.mark.parametrize("name", ["libcarafe_kernels.so", "libcarafe_tensorrt.so"])
def test_the_libraries_hold_what_cmake_was_told(name: str) -> None:
    """CMake writes ``75-real`` for machine code, ``75-virtual`` for PTX, ``75`` for both."""
    text = subprocess.run(
        ["grep", "-aoE", '"architectures": "[^"]*"', built("libcarafe_kernels.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = set()
    for number, suffix, kind in re.findall(r"(\d+)([af]?)(-real|-virtual)?\b", text):
        capability = divmod(int(number), 10)
        kinds = {"-real": (False,), "-virtual": (True,)}.get(kind, (False, True))
        expected |= {GpuCode(capability, suffix, ptx) for ptx in kinds}
    assert expected
    assert set(read_gpu_code(built(name)) or ()) == expected
