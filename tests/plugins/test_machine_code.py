"""What the compiler made of CARAFE's kernels, and machine_code.py, which reads it."""

from __future__ import annotations

from collections import Counter
from types import ModuleType

import pytest

from tests.plugins.built import built, script


@pytest.fixture(scope="module")
def machine_code() -> ModuleType:
    return script("machine_code")


@pytest.fixture(scope="module")
def kernels(machine_code: ModuleType) -> list:
    """CARAFE's, of the build under test."""
    library = built("libcarafe_kernels.so")
    try:
        found = machine_code.kernels_with_instructions(library)
    except machine_code.MissingToolError as error:
        pytest.skip(str(error))
    return [kernel for kernel in found if kernel.name.startswith("carafe_")]


def test_kernels_keep_everything_in_registers(kernels: list) -> None:
    assert len(kernels) >= 33  # five designs, three types, two kinds of masks; `any` has three
    spilled = [
        (kernel.architecture, kernel.name)
        for kernel in kernels
        if kernel.stack or kernel.local or kernel.local_accesses
    ]
    assert spilled == []


@pytest.mark.parametrize(
    ("name", "loads", "stores"),
    [
        # Bits of one access of features and of the result.
        ("carafe_strips<float, 5, 2, true, 4, 4>", "128", "128"),
        ("carafe_strips<float, 5, 2, true, 2, 8>", "128", "128"),
        ("carafe_strips<__half, 5, 2, true, 4, 4>", "64", "64"),
        ("carafe_strips<__half, 5, 2, true, 2, 8>", "128", "128"),
        ("carafe_strips<__nv_bfloat16, 5, 2, false, 2, 8>", "128", "128"),
        ("carafe_row_pairs<float, 5, 2, true>", "32", "128"),
        ("carafe_row_pairs<__half, 5, 2, true>", "16", "64"),
    ],
)
def test_accesses_are_wide(kernels: list, name: str, loads: str, stores: str) -> None:
    instances = [kernel for kernel in kernels if kernel.name == name]
    assert instances
    for kernel in instances:
        assert loads in kernel.accesses("LDG"), kernel.architecture
        assert stores in kernel.accesses("STG"), kernel.architecture
        shared = "128" if "strips" in name else "64"
        assert shared in kernel.accesses("LDS"), kernel.architecture


def test_most_of_a_hot_loop_is_arithmetic(kernels: list) -> None:
    """Registers are reused: a multiply-add needs no load of its own."""
    least = {"carafe_strips": 0.66, "carafe_row_pairs": 0.75}
    for kernel in kernels:
        share = least.get(kernel.name.partition("<")[0])
        rounds_in_software = kernel.architecture < 80 and "bfloat16" in kernel.name
        if share is not None and not rounds_in_software:
            assert max(loop.ffma_share for loop in kernel.loops) >= share, (
                kernel.architecture,
                kernel.name,
            )


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "blocks"),
    [
        (90, 128, 256, 0, 2),  # 65536 registers
        (90, 129, 256, 0, 1),  # are allocated in eights a thread
        (90, 168, 128, 12800, 3),
        (90, 32, 1024, 0, 2),  # 2048 threads
        (120, 32, 1024, 0, 1),  # 1536
        (90, 16, 32, 0, 32),  # 32 blocks
        (75, 32, 128, 16384, 4),  # 64 KB
        (90, 32, 128, 48 * 1024, 4),  # 228 KB, of which each block takes one more
    ],
)
def test_blocks_at_once(
    machine_code: ModuleType,
    architecture: int,
    registers: int,
    threads: int,
    shared: int,
    blocks: int,
) -> None:
    sizes = architecture, registers, threads, shared
    assert machine_code.blocks_at_once(*sizes) == blocks
    most = machine_code.PROCESSORS[architecture].threads
    assert machine_code.occupancy(*sizes) == blocks * threads / most


def test_innermost_loops(machine_code: ModuleType) -> None:
    arithmetic = [(16 * at, "FFMA", "") for at in range(4, 64)]
    instructions = [
        (0, "MOV", ""),
        (16, "LDG.E.128.CONSTANT", ""),
        *arithmetic,
        (1024, "BRA", " 0x40"),  # the inner loop
        (1040, "STG.E.128", ""),
        (1056, "BRA", " 0x10"),  # around it
        (1072, "BRA", " 0x500"),  # forward
    ]
    (loop,) = machine_code._innermost_loops(instructions)
    assert loop.size == 61
    assert loop.counts == Counter(FFMA=60, BRA=1)


def test_accesses_by_width(machine_code: ModuleType) -> None:
    counts = {
        "LDG.E.128.CONSTANT": 3,
        "LDG.E.U16.CONSTANT": 2,
        "LDG.E": 1,
        "LDGSTS.E": 9,
        "LDL.64": 4,
    }
    kernel = machine_code.Kernel(90, "f<int>", 32, 0, 0, 0, Counter(counts))
    assert kernel.accesses("LDG") == {"16": 2, "32": 1, "128": 3}
    assert kernel.local_accesses == 4


def test_names(machine_code: ModuleType) -> None:
    short = machine_code._short
    assert (
        short("void carafe::f<__half, 5, true>(carafe::P, __half const*)") == "f<__half, 5, true>"
    )
    assert short("carafe::(anonymous namespace)::sort(unsigned long*)") == "sort"
