"""What the compiler made of the CUDA kernels: registers, memory of a thread, instructions.

Reads built libraries with cuobjdump, and nvdisasm for instructions (CUDA toolkit, or PyPI:
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import collections
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Instructions of a loop that counts as arithmetic; smaller ones copy or reduce.
ARITHMETIC = 50


class MissingToolError(Exception):
    """cuobjdump or nvdisasm is not there; the message says what installs it."""


@dataclass
class Loop:
    """An innermost loop: instructions by name, in all ``size``."""

    size: int
    counts: collections.Counter[str]

    @property
    def ffma_share(self) -> float:
        return self.counts["FFMA"] / self.size


@dataclass
class Kernel:
    """One instance in one architecture (compute capability without the point).

    Attributes:
        name: as in the source, with template arguments: ``carafe_any<float>``.
        stack: bytes; arrays that are indexed at run time, and what registers did not hold.
        local: bytes of local memory.
        loops: innermost loops with at least :data:`ARITHMETIC` multiply-adds.
    """

    architecture: int
    name: str
    registers: int
    stack: int
    shared: int
    local: int
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    loops: list[Loop] = field(default_factory=list)

    def accesses(self, kind: str) -> dict[str, int]:
        """Instructions of one kind (``LDG``, ``STS``, ...) by bits that a thread moves."""
        found: collections.Counter[str] = collections.Counter()
        for name, count in self.counts.items():
            first, *parts = name.split(".")
            if first == kind:
                bits = next((part for part in parts if part in ("64", "128")), None)
                narrow = next(
                    (part[1:] for part in parts if re.fullmatch(r"[US](8|16)", part)), "32"
                )
                found[bits or narrow] += count
        return dict(sorted(found.items(), key=lambda item: int(item[0])))

    @property
    def local_accesses(self) -> int:
        """Loads and stores of local memory."""
        return sum(sum(self.accesses(kind).values()) for kind in ("LDL", "STL"))


def find_tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm."""
    found = shutil.which(name)
    for package, pattern in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = None if found else importlib.util.find_spec(package)
        for folder in [] if spec is None else spec.submodule_search_locations or []:
            found = next(
                (
                    str(path / name)
                    for path in Path(folder).glob(pattern)
                    if (path / name).is_file()
                ),
                found,
            )
    if found is None:
        raise MissingToolError(
            f"{name} is missing: install a CUDA toolkit or pip install nvidia-cuda-{name}"
        )
    return found


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _demangled(text: str) -> str:
    return subprocess.run(
        ["c++filt"], input=text, check=True, capture_output=True, text=True
    ).stdout


def _short(signature: str) -> str:
    """``void carafe::f<int, 3>(...)`` -> ``f<int, 3>``; unnamed namespaces go as well."""
    name = signature.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:at]
            break
    return re.sub(r"\b(?:carafe::)+", "", name)


def kernels(library: Path) -> list[Kernel]:
    """Every kernel of a library in every architecture, without instructions."""
    text = _demangled(_run(find_tool("cuobjdump"), "--dump-resource-usage", library))
    found, architecture, name = [], 0, ""
    for line in text.splitlines():
        if arch := re.match(r"arch = sm_(\d+)", line):
            architecture = int(arch[1])
        elif function := re.match(r" Function (.+):$", line):
            name = _short(function[1])
        elif "REG:" in line and name:
            use = dict(re.findall(r"(\w+):(\d+)", line))
            sizes = (int(use[key]) for key in ("REG", "STACK", "SHARED", "LOCAL"))
            found.append(Kernel(architecture, name, *sizes))
            name = ""
    return found


def kernels_with_instructions(library: Path) -> list[Kernel]:
    """As :func:`kernels`, with instructions and loops."""
    folder = Path(find_tool("nvdisasm")).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    text = _demangled(
        subprocess.run(
            [find_tool("cuobjdump"), "--dump-sass", library],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout
    )
    code = {key: body for *key, body in _functions(text) for key in [tuple(key)]}
    found = kernels(library)
    for kernel in found:
        instructions = code[kernel.architecture, kernel.name]
        kernel.counts = collections.Counter(name for _, name, _ in instructions)
        kernel.loops = list(_innermost_loops(instructions))
    return found


#: Address, name and operands.
Instruction = tuple[int, str, str]


def _functions(text: str) -> Iterator[tuple[int, str, list[Instruction]]]:
    architecture = 0
    for part in re.split(r"(?=^arch = sm_|^\s*Function : )", text, flags=re.MULTILINE):
        if arch := re.match(r"arch = sm_(\d+)", part):
            architecture = int(arch[1])
        elif function := re.match(r"\s*Function : (.+)", part):
            found = re.findall(
                r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)([^;]*);",
                part,
                re.MULTILINE,
            )
            instructions = [(int(at, 16), name, operands) for at, name, operands in found]
            yield architecture, _short(function[1]), instructions


def _innermost_loops(instructions: list[Instruction]) -> Iterator[Loop]:
    """Stretches from a backward branch's target to the branch that hold no other such stretch."""
    places = []
    for at, name, operands in instructions:
        target = re.search(r"\b0x([0-9a-f]+)\s*$", operands.strip())
        if name.split(".")[0] == "BRA" and target and int(target[1], 16) <= at:
            body = [name for place, name, _ in instructions if int(target[1], 16) <= place <= at]
            counts = collections.Counter(body)
            if counts["FFMA"] >= ARITHMETIC:
                places.append((int(target[1], 16), at, Loop(len(body), counts)))
    for begin, end, loop in places:
        inner = [1 for first, last, _ in places if begin <= first and last < end]
        if not inner:
            yield loop


# --- occupancy -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processor:
    """Limits of a streaming multiprocessor (CUDA C++ Programming Guide, compute capabilities)."""

    threads: int
    blocks: int
    shared: int
    #: Shared memory that the system takes of every block.
    reserved: int = 1024
    registers: int = 65536


PROCESSORS = {
    75: Processor(threads=1024, blocks=16, shared=64 * 1024, reserved=0),
    80: Processor(threads=2048, blocks=32, shared=164 * 1024),
    86: Processor(threads=1536, blocks=16, shared=100 * 1024),
    89: Processor(threads=1536, blocks=24, shared=100 * 1024),
    90: Processor(threads=2048, blocks=32, shared=228 * 1024),
    100: Processor(threads=2048, blocks=32, shared=228 * 1024),
    120: Processor(threads=1536, blocks=24, shared=100 * 1024),
}


def blocks_at_once(architecture: int, registers: int, threads: int, shared: int) -> int:
    """Blocks of a launch that one multiprocessor holds."""
    limits, warps = PROCESSORS[architecture], -(-threads // 32)
    by_warp = -(-registers * 32 // 256) * 256  # allocated in units of 256, in each of 4 partitions
    return min(
        limits.blocks,
        limits.threads // (32 * warps),
        limits.registers // 4 // by_warp * 4 // warps,
        limits.shared // (shared + limits.reserved) if shared + limits.reserved else limits.blocks,
    )


def occupancy(architecture: int, registers: int, threads: int, shared: int) -> float:
    """Resident warps over the most that a multiprocessor holds."""
    blocks = blocks_at_once(architecture, registers, threads, shared)
    return blocks * -(-threads // 32) * 32 / PROCESSORS[architecture].threads
