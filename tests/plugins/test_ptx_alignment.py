"""The CUDA kernels access multiples of what they access, and ptx_alignment.py, which shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.plugins.built import ROOT, build_folder, script

#: nvcc 13.0 has a compiler for GPUs up to compute capability 9.0, and another for later ones.
KINDS = {"up to 9.0": range(75, 91), "from 10.0": range(100, 130)}


@pytest.fixture(scope="module")
def ptx() -> ModuleType:
    return script("ptx_alignment")


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_access_multiples_of_the_size(ptx: ModuleType, kind: str) -> None:
    found = ptx.of_build(build_folder())
    architectures = sorted({arch for _, arch in found if arch in KINDS[kind]})
    if not architectures:
        pytest.skip(f"{build_folder()} has no code for a compute capability {kind}")
    # One is enough: release-check does the same for all.
    for source in ptx.SOURCES:
        accesses = list(ptx.accesses(found[source, architectures[0]].read_text()))
        least = 5 if source == "candidates" else 20
        assert sum(access.vector for access in accesses) > least
        assert [str(access) for access in accesses if not access.aligned] == []


#: What nvcc 13.0 makes of `Axis const axis = which == 0 ? rows : columns` for sm_75 to sm_90, where
#: both lie in shared memory, 20 bytes apart.
CHOSEN = """
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 memory[];

.visible .entry chosen(
	.param .align 8 .b8 chosen_param_0[384],
	.param .u64 chosen_param_1
)
.maxntid 256, 1, 1
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<20>;
	ld.param.u32 	%r1, [chosen_param_0+24];
	mov.u32 	%r2, %tid.x;
	div.s32 	%r3, %r2, %r1;
	setp.eq.s32 	%p1, %r3, 0;
	mov.u32 	%r4, memory;
	add.s32 	%r5, %r4, 20;
	selp.b32 	%r6, %r4, %r5, %p1;
	ld.shared.v4.u32 	{%r7, %r8, %r9, %r10}, [%r6];
	ret;

}
"""


def test_address_that_a_condition_chose(ptx: ModuleType) -> None:
    (access,) = ptx.misaligned(CHOSEN)
    assert str(access) == (
        "chosen, line 22: ld.shared.v4.u32 {%r7, %r8, %r9, %r10}, [%r6]: 16 bytes at an address"
        " that is 0 modulo 4: line 21 has selp.b32 %r6, %r4, %r5, %p1, which joins 0 modulo 16 and"
        " 4 modulo 16"
    )


@pytest.mark.parametrize("distance", [4, 8, 12, 20, 36, -20])
def test_candidates_at_other_distances(ptx: ModuleType, distance: int) -> None:
    assert ptx.misaligned(CHOSEN.replace("%r4, 20", f"%r4, {distance}"))


@pytest.mark.parametrize("distance", [0, 16, 32, -16, 160])
def test_candidates_at_multiples_of_the_size(ptx: ModuleType, distance: int) -> None:
    assert ptx.misaligned(CHOSEN.replace("%r4, 20", f"%r4, {distance}")) == []


@pytest.mark.parametrize(("align", "wrong"), [(32, 0), (16, 0), (8, 1), (4, 1)])
def test_symbols_are_aligned_as_declared(ptx: ModuleType, align: int, wrong: int) -> None:
    text = CHOSEN.replace(".align 16", f".align {align}").replace("%r4, 20", "%r4, 64")
    assert len(ptx.misaligned(text)) == wrong


def kernel(*lines: str) -> str:
    """PTX with arguments p (a pointer), q (another) and n (a number), in %rd1, %rd2 and %r1."""
    body = "\n\t".join(lines)
    return f"""
.extern .shared .align 16 .b8 memory[];
.entry f(.param .u64 p, .param .u64 q, .param .u32 n)
{{
	.local .align 16 .b8 	depot[64];
	ld.param.u64 %rd1, [p];
	ld.param.u64 %rd2, [q];
	ld.param.u32 %r1, [n];
	mov.u32 %r2, %tid.x;
	{body}
	ret;
}}
"""


@pytest.mark.parametrize(
    "lines",
    [
        # A symbol's own offset.
        ["ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [memory+32];"],
        ["st.shared.v2.f32 [memory+24], {%f1, %f2};"],
        ["mov.u64 %rd3, memory;", "ld.v4.b32 {%r3, %r4, %r5, %r6}, [%rd3+-16];"],
        # Arguments: pointers, pitches, what is a multiple of them, quotients.
        ["selp.b64 %rd3, %rd1, %rd2, %p1;", "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd3];"],
        [
            "mul.lo.s32 %r3, %r1, %r2;",
            "mul.wide.s32 %rd3, %r3, 4;",
            "add.s64 %rd4, %rd1, %rd3;",
            "ld.global.nc.v4.f32 {%f1, %f2, %f3, %f4}, [%rd4];",
        ],
        [
            "div.s32 %r3, %r1, %r1;",
            "cvt.s64.s32 %rd3, %r3;",
            "add.s64 %rd4, %rd1, %rd3;",
            "st.global.v2.u32 [%rd4], {%r1, %r2};",
        ],
        # Shifts, masks, products.
        ["shl.b32 %r3, %r2, 4;", "cvt.u64.u32 %rd3, %r3;", "st.local.v4.u32 [%rd3], {0, 0, 0, 0};"],
        ["and.b32 %r3, %r2, -16;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
        ["mad.lo.s32 %r3, %r2, 48, 32;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
        ["shl.b32 %r3, %r2, 4;", "or.b32 %r4, %r3, 8;", "st.shared.v2.u32 [%r4], {0, 0};"],
        ["sub.s32 %r3, 64, 16;", "neg.s32 %r4, %r3;", "st.shared.v4.u32 [%r4], {0, 0, 0, 0};"],
        ["mul.lo.s32 %r3, %r2, %r2;", "shl.b32 %r4, %r3, 3;", "st.shared.u64 [%r4], %rd1;"],
        # Sixteen times an unknown number, in two parts; none of it (nvcc 13.2 writes so).
        [
            "shr.u32 %r3, %r2, 5;",
            "shl.b32 %r4, %r3, 2;",
            "mov.b32 %r5, memory;",
            "add.s32 %r6, %r5, %r4;",
            "mad.lo.s32 %r7, %r3, 12, %r6;",
            "ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [%r7+256];",
        ],
        ["shl.b32 %r3, %r2, 2;", "sub.s32 %r4, %r3, %r3;", "st.shared.v4.u32 [%r4], {0, 0, 0, 0};"],
        # Twice what is known to be even, a loop's variable too (NVRTC 12.9 writes so).
        [
            "mov.u32 %r3, %r2;",
            "@%p1 mov.u32 %r3, 3;",
            "shl.b32 %r4, %r3, 1;",
            "add.s32 %r5, %r4, 8;",
            "add.s32 %r6, %r5, %r5;",
            "st.shared.u32 [%r6], 0;",
            "add.s32 %r7, %r3, %r3;",
            "st.shared.u16 [%r7], 0;",
        ],
        # Loops that advance by multiples of the size.
        [
            "mov.u32 %r3, memory;",
            "$L_1:",
            "st.shared.v4.u32 [%r3], {0, 0, 0, 0};",
            "add.s32 %r3, %r3, 32;",
            "@%p1 bra $L_1;",
        ],
        # A value of the same turn.
        [
            "$L_1:",
            "ld.global.u32 %r3, [%rd1];",
            "@%p1 bra $L_2;",
            "mov.u32 %r5, %r3;",
            "sub.s32 %r4, %r3, %r5;",
            "st.shared.v4.u32 [%r4], {0, 0, 0, 0};",
            "$L_2:",
            "@%p2 bra $L_1;",
        ],
        # Counts of shifts are unsigned: nothing is left.
        ["shl.b32 %r3, %r2, -1;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
        # Arguments at an address that was computed; blocks whose registers have the same name.
        ["mov.b64 %rd3, p;", "ld.param.u64 %rd4, [%rd3+8];", "st.global.v2.u32 [%rd4], {0, 0};"],
        [
            "{ .reg .b32 t; mov.b32 t, 4; st.shared.u32 [t], 0; }",
            "{ .reg .b32 t; mov.b32 t, 16; st.shared.v4.u32 [t], {0, 0, 0, 0}; }",
        ],
        ["red.global.add.noftz.f16x2 [%rd1+4], %r1;"],
        ["cp.async.commit_group;", "cp.async.wait_group 0;", "prefetch.global.L2 [%rd1+4];"],
        ["cp.async.ca.shared.global [memory+8], [%rd1+24], 8, 4;"],
        # Candidates that agree, words put together, one value a thread.
        ["min.s32 %r3, 16, 48;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
        ["mov.b64 %rd3, {%r1, %r2};", "st.shared.v4.u32 [%rd3], {0, 0, 0, 0};"],
        ["mov.u32 %r3, 4;", "@%p1 mov.u32 %r3, 8;", "st.shared.u32 [%r3], 0;"],
        ["add.s32 %r3, %r2, 3;", "st.shared.u8 [%r3], 0;"],
        # Blocks within a kernel, comments, several statements a line.
        ["{ .reg .b32 t; mov.b32 t, 4; }", "/* st.shared.v4.u32 [memory+4] */ // ld.v4"],
        ["shl.b32 %r3, %r2, 2; st.shared.u32 [%r3], 0;"],
        # Parameters lie where the compiler puts them.
        ["ld.param.v4.u32 {%r3, %r4, %r5, %r6}, [p+4];"],
    ],
)
def test_aligned(ptx: ModuleType, lines: list[str]) -> None:
    assert [str(access) for access in ptx.misaligned(kernel(*lines))] == []


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (["ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [memory+8];"], "its own offset"),
        (["ld.shared.v2.f32 {%f1, %f2}, [memory+20];"], "its own offset"),
        (["ld.shared.u64 %rd3, [memory+4];"], "its own offset"),
        (["st.shared.v8.b32 [memory], {0, 0, 0, 0, 0, 0, 0, 0};"], "its own offset"),
        # A choice, a maximum, several assignments, under a condition too.
        (
            [
                "add.s64 %rd3, %rd1, 20;",
                "selp.b64 %rd4, %rd1, %rd3, %p1;",
                "ld.v4.f32 {%f1, %f2, %f3, %f4}, [%rd4];",
            ],
            "line 11 has selp.b64 %rd4, %rd1, %rd3, %p1, which joins 0 modulo 64 and 20 modulo 64",
        ),
        (
            ["max.s32 %r3, 16, 40;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
            "line 10 has max.s32 %r3, 16, 40, which joins 16 modulo 64 and 40 modulo 64",
        ),
        (
            ["mov.u32 %r3, 0;", "@%p1 mov.u32 %r3, 20;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
            "%r3, assigned in lines 10, 11, is 0 modulo 64 or 20 modulo 64",
        ),
        # What was chosen is used in an address further on.
        (
            [
                "mov.u64 %rd3, depot;",
                "cvta.local.u64 %rd4, %rd3;",
                "add.u64 %rd5, %rd4, 4;",
                "selp.b64 %rd6, %rd4, %rd5, %p1;",
                "mov.u64 %rd7, %rd6;",
                "st.v2.u32 [%rd7+8], {0, 0};",
            ],
            "line 13 has selp.b64 %rd6, %rd4, %rd5, %p1, which joins 0 modulo 16 and 4 modulo 16",
        ),
        # A loop in steps of 20 bytes, and elements of 20 bytes.
        (
            [
                "mov.u32 %r3, memory;",
                "$L_1:",
                "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3];",
                "add.s32 %r3, %r3, 20;",
                "@%p1 bra $L_1;",
            ],
            "%r3, assigned in lines 10, 13, is 0 modulo 16 or 0 modulo 4",
        ),
        (
            [
                "mul.wide.u32 %rd3, %r2, 20;",
                "add.s64 %rd4, %rd1, %rd3;",
                "ld.global.nc.v4.f32 {%f1, %f2, %f3, %f4}, [%rd4];",
            ],
            "line 9 has mov.u32 %r2, %tid.x",
        ),
        # Sixteen times in two parts, of two numbers.
        (
            [
                "shr.u32 %r3, %r2, 5;",
                "shr.u32 %r4, %r2, 4;",
                "shl.b32 %r5, %r3, 2;",
                "mad.lo.s32 %r6, %r4, 12, %r5;",
                "st.shared.v4.u32 [%r6], {0, 0, 0, 0};",
            ],
            "line 11 has shr.u32 %r4, %r2, 4",
        ),
        # Twice something odd; a variable before and after a change is not the same.
        (
            ["add.s32 %r3, %r2, 1;", "add.s32 %r4, %r3, %r3;", "st.shared.u32 [%r4], 0;"],
            "line 9 has mov.u32 %r2, %tid.x",
        ),
        (
            [
                "mov.u32 %r3, %r2;",
                "mov.u32 %r4, %r3;",
                "add.s32 %r3, %r3, 1;",
                "sub.s32 %r5, %r3, %r4;",
                "st.shared.u16 [%r5], 0;",
            ],
            "line 9 has mov.u32 %r2, %tid.x",
        ),
        # Values from memory, shifts to the right, quotients that are not of arguments, floats.
        (
            ["ld.shared.u32 %r3, [memory];", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has ld.shared.u32 %r3, [memory]",
        ),
        (
            ["shr.u32 %r3, 64, 4;", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has shr.u32 %r3, 64, 4",
        ),
        (
            ["div.s32 %r3, 256, %r1;", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has div.s32 %r3, 256, %r1",
        ),
        (
            ["cvt.rzi.s32.f32 %r3, %f1;", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has cvt.rzi.s32.f32 %r3, %f1",
        ),
        # The low bits of an argument are not known when they are asked for.
        (
            ["and.b32 %r3, %r1, 4;", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has and.b32 %r3, %r1, 4",
        ),
        # The high half of two words is another word.
        (
            ["mov.b64 {%r3, %r4}, %rd1;", "st.shared.v2.u32 [%r4], {0, 0};"],
            "line 10 has mov.b64 {%r3, %r4}, %rd1",
        ),
        (
            ["mov.b64 {_, %r3}, %rd1;", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has mov.b64 {_, %r3}, %rd1",
        ),
        (
            ["mov.b64 {%r3, %r3}, %rd1;", "st.shared.v2.u32 [%r3], {0, 0};"],
            "line 10 has mov.b64 {%r3, %r3}, %rd1",
        ),
        # Another thread's value, one that may be cut off to 0, sums of halves.
        (
            [
                "shfl.sync.idx.b32 %r3|%p1, %r2, 0, 31, -1;",
                "sub.s32 %r4, %r3, %r2;",
                "st.shared.v2.u32 [%r4], {0, 0};",
            ],
            "line 9 has mov.u32 %r2, %tid.x",
        ),
        (
            [
                "mad.lo.s32 %r3, %r2, 16, 12;",
                "min.s32.relu %r4, %r3, %r3;",
                "st.shared.v4.u32 [%r4+4], {0, 0, 0, 0};",
            ],
            "line 11 has min.s32.relu %r4, %r3, %r3, which joins 0 modulo 64 and 12 modulo 16",
        ),
        *(
            (
                [f"add{kind} %r3, 16, 16;", "st.shared.v4.u32 [%r3], {0, 0, 0, 0};"],
                f"line 10 has add{kind} %r3, 16, 16",
            )
            for kind in (".rn.bf16x2", ".f16x2", ".u16x2", ".s16x2")
        ),
        # Directives that no semicolon ends stand before an instruction.
        ([".loc 1 10 5", "st.shared.v2.u32 [memory+4], {0, 0};"], "its own offset"),
        (
            [
                ".loc 1 9 3, function_name $L_s0+4, inlined_at 1 10 5",
                "st.shared.v2.u32 [memory+4], {0, 0};",
            ],
            "its own offset",
        ),
        (['.file 1 "a;b{//c.cu", 5, 6', "st.shared.v2.u32 [memory+4], {0, 0};"], "its own offset"),
        (['.pragma "nounroll";', "st.shared.v2.u32 [memory+4], {0, 0};"], "its own offset"),
        (
            ["mov.u32 %r3, 0;", ".loc 1 10 5", "mov.u32 %r3, 4;", "st.shared.u64 [%r3], %rd1;"],
            "%r3, assigned in lines 10, 12, is 0 modulo 64 or 4 modulo 64",
        ),
        # Names without a percent sign, blocks after a label.
        ([".reg .pred p;", "@p st.global.v2.u32 [%rd1+4], {0, 0};"], "its own offset"),
        ([".reg .pred p<3>;", "@ !p2 st.global.v2.u32 [%rd1+4], {0, 0};"], "its own offset"),
        (["L1: { st.global.v2.u32 [%rd1+4], {0, 0}; }"], "its own offset"),
        (["L1: @%p1 st.global.v2.u32 [%rd1+4], {0, 0};"], "its own offset"),
        (
            [
                "{ .reg .b32 t, u<4>;",
                "mov.b32 u3, 4;",
                "add.s32 t, u3, memory;",
                "st.shared.v2.u32 [t], {0, 0}; }",
            ],
            "line 11 has mov.b32 %u$2$3, 4",
        ),
        # A register that is called like a symbol.
        (
            [
                "mov.u32 %r3, memory;",
                "{ .reg .b32 memory;",
                "add.s32 memory, %r3, 4;",
                "st.shared.v2.u32 [memory], {0, 0}; }",
            ],
            "line 12 has add.s32 %memory$1, %r3, 4",
        ),
        # What a function returns, in its parameter or in a register, may be anything.
        (
            [
                "{ .param .b64 retval0;",
                "call.uni (retval0), g, ();",
                "ld.param.b64 %rd3, [retval0]; }",
                "st.global.v2.u32 [%rd3], {0, 0};",
            ],
            "line 12 has ld.param.b64 %rd3, [retval0]",
        ),
        (
            [
                "mov.u64 %rd3, %rd1;",
                "call (%rd3, %rd4), g, (%rd1);",
                "st.global.v2.u32 [%rd3], {0, 0};",
            ],
            "%rd3, assigned in lines 10, 11, is 0 modulo 64 or unknown",
        ),
        (
            [
                "mov.u32 %r3, 0;",
                "barrier.red.popc.u32 %r3, 0, %p1;",
                "st.global.v2.u32 [%r3], {0, 0};",
            ],
            "%r3, assigned in lines 10, 11, is 0 modulo 64 or unknown",
        ),
        # What is left of an earlier turn of a loop, or where a branch or predicate goes past.
        (
            [
                "$L_1:",
                "ld.global.u32 %r3, [%rd1];",
                "@%p1 bra $L_2;",
                "sub.s32 %r4, %r3, %r5;",
                "st.shared.v2.u32 [%r4], {0, 0};",
                "$L_2:",
                "mov.u32 %r5, %r3;",
                "bra $L_1;",
            ],
            "line 11 has ld.global.u32 %r3, [%rd1]",
        ),
        (
            [
                "$L_1:",
                "ld.global.u32 %r3, [%rd1];",
                "@%p1 bra $L_2;",
                "mov.u32 %r5, %r3;",
                "$L_2:",
                "sub.s32 %r4, %r3, %r5;",
                "st.shared.v2.u32 [%r4], {0, 0};",
                "bra $L_1;",
            ],
            "line 11 has ld.global.u32 %r3, [%rd1]",
        ),
        (
            [
                "$L_1:",
                "ld.global.u32 %r3, [%rd1];",
                "@%p1 mov.u32 %r5, %r3;",
                "sub.s32 %r4, %r3, %r5;",
                "st.shared.v2.u32 [%r4], {0, 0};",
                "bra $L_1;",
            ],
            "line 11 has ld.global.u32 %r3, [%rd1]",
        ),
        (["@!%p1 st.global.v2.u32 [%rd1+4], {0, 0};"], "its own offset"),
        (["red.global.add.noftz.f16x2 [%rd1+2], %r1;"], "its own offset"),
        (["atom.shared.add.u64 %rd3, [memory+4], 1;"], "its own offset"),
    ],
)
def test_misaligned(ptx: ModuleType, lines: list[str], cause: str) -> None:
    (access,) = ptx.misaligned(kernel(*lines))
    assert access.cause == cause


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("cp.async.cg.shared.global [memory+4], [%rd1], 16;", 1),
        ("cp.async.cg.shared::cta.global.L2::128B [memory], [%rd1+8], 16;", 1),
        ("cp.async.ca.shared.global [memory+4], [%rd1+4], 8, %r1;", 2),
    ],
)
def test_both_addresses_of_a_copy(ptx: ModuleType, line: str, wrong: int) -> None:
    assert len(ptx.misaligned(kernel(line))) == wrong


def test_symbols_of_one_name_have_the_smallest_alignment(ptx: ModuleType) -> None:
    blocks = [
        f"{{ .shared .align {align} .b8 s[16]; ld.shared.v4.u32 {{%r3, %r4, %r5, %r6}}, [s]; }}"
        for align in (4, 16)
    ]
    assert len(ptx.misaligned(kernel(*blocks))) == 2
    # That of the module counts as well.
    text = ".shared .align 8 .b8 s[16];" + kernel(blocks[1])
    assert len(ptx.misaligned(text)) == 1


@pytest.mark.parametrize(
    ("head", "wrong"),
    [
        (".visible .entry g(.param .u64 p)", 0),
        (".visible .entry g(.param .u64 .ptr .align 1 p)", 0),
        (".visible .entry g(.param .u64 .ptr .global .align 8 p)", 0),
        (".func g(.param .u64 p)", 1),
        (".visible .func (.param .b32 r) g(.param .u64 p)", 1),
    ],
)
def test_only_parameters_of_kernels_are_multiples(ptx: ModuleType, head: str, wrong: int) -> None:
    body = "{ ld.param.u64 %rd1, [p]; st.global.v2.u32 [%rd1], {0, 0}; ret; }"
    # A declaration without a body, and a section for debuggers, are no code.
    rest = ".section .debug_str { .b8 102, 0 }"
    text = f".extern .func (.param .b32 r) h(.param .u64 p);\n{head}\n{body}\n{rest}\n"
    assert [access.aligned for access in ptx.accesses(text)] == [not wrong]


@pytest.mark.parametrize(
    "line",
    [
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [memory];",
        "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%r3, %r4}, [%rd1], %r1;",
        "mbarrier.init.shared.b64 [memory], 1;",
        "cp.async.bulk.shared::cluster.global.mbarrier [memory], [%rd1], 16, [memory+64];",
        "cp.async.mbarrier.arrive.shared.b64 [memory];",
        "cp.async.cg.shared.global [memory], [%rd1], %r1;",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [memory], %r1, [memory+8];",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1}, %rd1, %rd2, 1, 1, 1, 0, 0;",
        "ld.global %r3, [%rd1];",
        ".unheard of;",
        "? %r3;",
        "bra $L_nowhere;",
    ],
)
def test_not_understood(ptx: ModuleType, line: str) -> None:
    text = kernel("mov.u32 %r3, 0;", line, "st.shared.u32 [%r3], 0;")
    with pytest.raises(ptx.NotUnderstoodError) as raised:
        list(ptx.accesses(text))
    assert str(raised.value) == f"line 11: not understood: {line.removesuffix(';')}"


@pytest.mark.parametrize(
    "text", ["ret }", ".func (.reg .u32 r) f(.reg .u32 p) { ret; }", ".entry f("]
)
def test_not_understood_as_a_whole(ptx: ModuleType, text: str) -> None:
    with pytest.raises(ptx.NotUnderstoodError, match=r"line \d+: not understood"):
        list(ptx.accesses(text if text.startswith(".") else kernel(text).rstrip("\n;}")))


def test_every_kernel_is_read(ptx: ModuleType) -> None:
    text = kernel("ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [memory];")
    other = text.replace(".entry f", ".visible .entry g").replace("[memory]", "[memory+4]")
    found = [(access.kernel, access.aligned) for access in ptx.accesses(text + other)]
    assert found == [("f", True), ("g", False)]


@pytest.mark.parametrize(
    ("parts", "size"),
    [("v4.u32", 16), ("v2.f64", 16), ("v8.b32", 32), ("u16", 2), ("b128", 16), ("v4.bf16", 8)],
)
def test_sizes(ptx: ModuleType, parts: str, size: int) -> None:
    (access,) = ptx.accesses(kernel(f"ld.global.{parts} %r9, [%rd1];"))
    assert (access.size, access.vector) == (size, parts.startswith("v"))


def test_command(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "plugins/tests/ptx_alignment.py")]
    (tmp_path / "a.ptx").write_text(CHOSEN)
    (tmp_path / "b.ptx").write_text(CHOSEN.replace("%r4, 20", "%r4, 16"))
    done = subprocess.run(
        [*program, tmp_path / "a.ptx", tmp_path / "b.ptx"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "a.ptx: 1 accesses, 1 of them vectors, 1 misaligned",
        "b.ptx: 1 accesses, 1 of them vectors, 0 misaligned",
    ]
    assert done.stderr.startswith("error: a.ptx: chosen, line 22: ld.shared.v4.u32")
    (tmp_path / "c.ptx").write_text(CHOSEN.replace("ret;", "mbarrier.init.b64 [%r6], 1;"))
    unknown = subprocess.run(
        [*program, tmp_path / "c.ptx", tmp_path / "b.ptx"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert unknown.returncode == 1
    assert unknown.stderr == ("error: c.ptx: line 23: not understood: mbarrier.init.b64 [%r6], 1\n")
    assert unknown.stdout.splitlines()[0] == "c.ptx: not read"
    good = subprocess.run([*program, tmp_path / "b.ptx"], capture_output=True, check=False)
    assert good.returncode == 0


def test_build_without_ptx(ptx: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "CMakeCache.txt").write_text("CMAKE_CUDA_ARCHITECTURES:STRING=75;90-real\n")
    with pytest.raises(FileNotFoundError, match=r"candidates.compute_75.ptx.*CARAFE_KEEP_PTX"):
        ptx.of_build(tmp_path)


def test_build_has_a_file_a_source_and_architecture(ptx: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "CMakeCache.txt").write_text("CMAKE_CUDA_ARCHITECTURES:STRING=75;120-real\n")
    (tmp_path / "ptx").mkdir()
    names = [f"{source}.compute_{arch}.ptx" for source in ptx.SOURCES for arch in (75, 120)]
    for name in [*names, "carafe.compute_80.ptx"]:  # of an earlier build
        (tmp_path / "ptx" / name).touch()
    assert sorted(path.name for path in ptx.of_build(tmp_path).values()) == sorted(names)
    assert {"candidates", "carafe", "nms", "preprocess", "roi_align"} == set(ptx.SOURCES)
