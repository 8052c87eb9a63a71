"""Find accesses of CUDA kernels at addresses that are no multiple of their size, without a GPU.

Usage: python ptx_alignment.py FILE.ptx ...

Compilers join accesses: four neighbouring words become one of 16 bytes where the compiler believes
that the address allows it. Where it is wrong, a GPU stops with "misaligned address" and nothing
else shows it. CUDA 12.9, 13.0 and 13.2 are wrong, up to compute capability 9.0, where a structure
is copied through an address that a condition chose: it gets the alignment of the first candidate.

So every integer register is followed through its kernel as a remainder, "r modulo m", m a power of
two, plus multiples of unknown registers. Additions, products, shifts, masks and conversions keep
what is known of them; where a `selp`, `min` or `max`, or several assignments (PTX has no phi) join
values, what they have in common remains. Each load and store of shared, global, local and generic
memory, vectors and single values alike, must then have an address that is a multiple of its size.
Arguments of kernels, and products with them, count as multiples of whatever is needed: the host
checks pointers and pitches before a launch. Whatever is loaded from memory, what a function is
given or returns, and what a thread asks of the hardware, counts as unknown. The parts of an address
in an unknown register may cancel or add up only where each is assigned once, before every use:
otherwise a loop may bring them from an earlier turn.

Of instructions that access memory, loads, stores, atomic ones and cp.async are known; any other,
such as ldmatrix or an mbarrier's, and what is no PTX, is an error, "not understood".
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptx_text import (
    Flow,
    Instruction,
    Kernel,
    NotUnderstoodError,
    accessed,
    integer,
    kernels,
    of_parameters,
    registers,
)

#: Of the kernels, without suffix.
SOURCES = sorted(path.stem for path in (Path(__file__).parents[1] / "kernels").glob("*.cu"))
#: Remainders are known modulo this at most; no access is wider.
MOST = 64


@dataclass(frozen=True)
class Known:
    """``remainder`` modulo ``modulus``, a power of two up to :data:`MOST`, plus ``terms``.

    Attributes:
        argument: it holds an argument of the kernel, which counts as a multiple of everything.
        terms: registers of unknown value, each with its factor modulo :data:`MOST`.
    """

    modulus: int
    remainder: int
    argument: bool = False
    terms: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        flat = self.flat()
        return f"{flat.remainder} modulo {flat.modulus}" if flat.modulus > 1 else "unknown"

    def flat(self) -> Known:
        """The same without terms, of which their factors remain."""
        if not self.terms:
            return self
        modulus = math.gcd(self.modulus, *(factor for _, factor in self.terms))
        return Known(modulus, self.remainder % modulus, self.argument)

    def is_multiple_of(self, size: int) -> bool:
        flat = self.flat()
        return flat.modulus >= size and flat.remainder % size == 0

    @property
    def is_constant(self) -> bool:
        return self.modulus == MOST and not self.argument and not self.terms


UNKNOWN = Known(1, 0)
ARGUMENT = Known(MOST, 0, argument=True)


def constant(value: int) -> Known:
    return Known(MOST, value % MOST)


def named(value: Known, register: str) -> Known:
    """A register's value: what is not known of it is its own term, the same wherever it is used."""
    if value.modulus == MOST:
        return value
    return add(
        Known(MOST, value.remainder, value.argument, value.terms),
        Known(MOST, 0, terms=((register, value.modulus),)),
    )


def add(first: Known, second: Known) -> Known:
    modulus = min(first.modulus, second.modulus)
    remainder = (first.remainder + second.remainder) % modulus
    terms = dict(first.terms)
    for register, factor in second.terms:
        terms[register] = (terms.get(register, 0) + factor) % MOST
    return Known(
        modulus,
        remainder,
        first.argument or second.argument,
        tuple(sorted((register, factor) for register, factor in terms.items() if factor)),
    )


def multiply(first: Known, second: Known) -> Known:
    if second.is_constant:
        first, second = second, first
    if not first.is_constant:
        first, second = first.flat(), second.flat()
    factors = first.remainder * second.modulus, second.remainder * first.modulus
    modulus = math.gcd(MOST, first.modulus * second.modulus, *factors)
    remainder = first.remainder * second.remainder % modulus
    terms = tuple(
        (register, factor * first.remainder % MOST)
        for register, factor in second.terms
        if factor * first.remainder % MOST
    )
    return Known(modulus, remainder, first.argument or second.argument, terms)


def negative(value: Known) -> Known:
    return multiply(constant(-1), value)


def join(first: Known, second: Known) -> Known:
    """What holds of both."""
    if first == second:
        return first
    first, second = first.flat(), second.flat()
    modulus = math.gcd(first.modulus, second.modulus, first.remainder - second.remainder)
    return Known(modulus, first.remainder % modulus, first.argument or second.argument)


def _bits(value: Known, *, of_arguments: bool) -> tuple[int, int]:
    """The low bits that are known, as a mask, and their values."""
    flat = value.flat()
    return (0, 0) if flat.argument and not of_arguments else (flat.modulus - 1, flat.remainder)


def _from_bits(known: int, ones: int, argument: bool) -> Known:
    modulus = 1
    while modulus < MOST and known & modulus:
        modulus *= 2
    return Known(modulus, ones % modulus, argument)


def bit_and(first: Known, second: Known) -> Known:
    for value, mask in ((first, second), (second, first)):
        if not mask.argument and mask == constant(-1):
            return value
    (known1, ones1), (known2, ones2) = (
        _bits(value, of_arguments=False) for value in (first, second)
    )
    zeros = known1 & ~ones1 | known2 & ~ones2
    return _from_bits(zeros | known1 & known2, ones1 & ones2, argument=False)


def bit_or(first: Known, second: Known, *, exclusive: bool = False) -> Known:
    (known1, ones1), (known2, ones2) = (
        _bits(value, of_arguments=True) for value in (first, second)
    )
    known, ones = known1 & known2, ones1 ^ ones2 if exclusive else ones1 | ones2
    if not exclusive:
        known |= ones1 | ones2
    return _from_bits(known, ones, first.argument or second.argument)


def shift_left(value: Known, count: Known, by: int | None) -> Known:
    if by is not None:  # a negative count is a large one
        return multiply(value, constant(1 << min(by % (1 << 32), MOST)))
    flat = value.flat()
    return Known(math.gcd(flat.modulus, flat.remainder), 0, value.argument or count.argument)


# --- values --------------------------------------------------------------------------------------

_JOINING = ("selp", "min", "max")
#: Instructions that _computed() knows.
_FOLLOWED = (
    *("mov", "cvta", "cvt", "shfl", "add", "sub", "neg", "mul", "mul24", "mad", "mad24", "shl"),
    *("and", "or", "xor", "not", "div", *_JOINING),
)
#: Floating point, or bits that are not the low ones.
_NOT_FOLLOWED = re.compile(r"b?f\d+|tf32|\w+x\d+|sat|hi|cc|pred|pack")


@functools.cache
def _sources(instruction: Instruction) -> list[str]:
    """Operands that its result depends on, where it is followed."""
    name, *kinds = instruction.parts
    if name not in _FOLLOWED or any(map(_NOT_FOLLOWED.fullmatch, kinds)):
        return []
    sources = instruction.operands[1:]
    if name == "mov" and sources[0].startswith("{"):
        return [sources[0].strip("{}").partition(",")[0]]  # the low part
    if name in _JOINING:
        return [*sources[:2], "0"] if "relu" in kinds else sources[:2]
    return sources


class Values:
    """What is known of a kernel's registers over all their assignments, of those that addresses
    need.

    Args:
        addresses: operands, each with its instruction's number.
    """

    def __init__(self, kernel: Kernel, addresses: Iterable[tuple[int, str]]) -> None:
        self.kernel = kernel
        self.known: dict[str, Known] = {}
        self.assignments: dict[str, list[Instruction]] = {}
        numbers: dict[str, list[int]] = {}
        for number, instruction in enumerate(kernel.instructions):
            for register in instruction.results:
                self.assignments.setdefault(register, []).append(instruction)
                numbers.setdefault(register, []).append(number)
        queue = [(number, register) for number, text in addresses for register in registers(text)]
        uses: dict[str, list[int]] = {}
        while queue:
            use, register = queue.pop()
            if register not in uses:
                for number in numbers.get(register, ()):
                    for source in _sources(kernel.instructions[number]):
                        queue += [(number, name) for name in registers(source)]
            uses.setdefault(register, []).append(use)
        flow = Flow(kernel)
        #: Assigned once, before every use: a name stands for one value wherever it is used.
        self.single = {
            register
            for register, (first, *others) in numbers.items()
            if not others
            and not kernel.instructions[first].predicated
            and all(flow.precedes(first, use) for use in uses.get(register, ()))
        }
        in_order = [register for register in self.assignments if register in uses]
        changed = True
        while changed:
            changed = False
            for register in in_order:
                before = self.known.get(register)
                after = self._merged(register, before)
                if after is not None and after != before:
                    changed = True
                    self.known[register] = after

    def _merged(self, register: str, before: Known | None) -> Known | None:
        assignments = self.assignments[register]
        if register in self.single:
            value = self.assigned(assignments[0], register)
            return None if value is None else named(value, register)
        after = before
        for instruction in assignments:
            value = self.assigned(instruction, register)
            if value is not None:
                after = value.flat() if after is None else join(after, value.flat())
        return after

    def operand(self, text: str) -> Known | None:
        """None of a register that nothing has reached yet."""
        number = integer(text)
        if number is not None:
            return constant(number)
        if text in self.assignments:
            return self.known.get(text)
        if text in self.kernel.symbols:
            return Known(min(self.kernel.symbols[text], MOST), 0)
        return UNKNOWN  # of the hardware

    def address(self, operand: str) -> Known:
        """Of ``[register]``, ``[symbol+4]`` and the like."""
        total = constant(0)
        for sign, term in re.findall(r"([+-]?)([^+\-\[\]]+)", operand):
            value = self.operand(term) or UNKNOWN
            total = add(total, negative(value) if sign == "-" else value)
        return total

    def _of_kernel(self, address: str) -> bool:
        """Whether an address in the space of parameters is one of the kernel's own parameters."""
        if address.startswith("[%"):  # of a call's parameters none is had
            return bool(self.kernel.parameters) and not self.kernel.calls
        return re.split(r"[\[\]+]", address)[1] in self.kernel.parameters

    def assigned(self, instruction: Instruction, register: str) -> Known | None:
        """What it makes of a register; None where nothing has reached its operands yet."""
        name = instruction.parts[0]
        if name == "ld" and of_parameters(instruction):
            return ARGUMENT if self._of_kernel(instruction.operands[1]) else UNKNOWN
        sources = _sources(instruction)
        if not sources:
            return UNKNOWN
        first, *others = re.split(r"[,|]", instruction.operands[0].strip("{}"))
        if register != first or register in others:  # the high part, a predicate
            return UNKNOWN
        values = [self.operand(source) for source in sources]
        present = [value for value in values if value is not None]
        if name in _JOINING:  # starts from what is known: a loop may end in it
            return functools.reduce(join, present) if present else None
        return _computed(name, present, sources) if len(present) == len(values) else None


def _computed(name: str, values: Sequence[Known], sources: Sequence[str]) -> Known:
    match name:
        case "mov" | "cvta" | "cvt":
            return values[0]
        case "shfl":
            return values[0].flat()  # of another thread
        case "add" if sources[0] == sources[1]:
            return multiply(constant(2), values[0])
        case "add":
            return add(values[0], values[1])
        case "sub":
            return add(values[0], negative(values[1]))
        case "neg":
            return negative(values[0])
        case "not":
            return add(negative(values[0]), constant(-1))
        case "mul" | "mul24":
            return multiply(values[0], values[1])
        case "mad" | "mad24":
            return add(multiply(values[0], values[1]), values[2])
        case "shl":
            return shift_left(values[0], values[1], integer(sources[1]))
        case "and":
            return bit_and(values[0], values[1])
        case "or" | "xor":
            return bit_or(values[0], values[1], exclusive=name == "xor")
        case "div" if values == [ARGUMENT, ARGUMENT]:
            return ARGUMENT  # channels a group
        case _:
            return UNKNOWN


# --- accesses ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """A load or store.

    Attributes:
        size: bytes.
        cause: the instruction that joined addresses, or lost track of them; "" where it is aligned.
    """

    kernel: str
    instruction: Instruction
    size: int
    vector: bool
    address: Known
    cause: str = ""

    @property
    def aligned(self) -> bool:
        return self.address.is_multiple_of(self.size)

    def __str__(self) -> str:
        return (
            f"{demangled(self.kernel)}, line {self.instruction.line}: {self.instruction.text}: "
            f"{self.size} bytes at an address that is {self.address}: {self.cause}"
        )


def accesses(text: str) -> Iterator[Access]:
    """All loads and stores of a PTX module but those of parameters.

    Raises:
        NotUnderstoodError: it has a statement, or an access, that is not known.
    """
    for kernel in kernels(text):
        found = [
            (number, address, size)
            for number, instruction in enumerate(kernel.instructions)
            for address, size in accessed(instruction)
        ]
        values = Values(kernel, ((number, operand) for number, operand, _ in found))
        for number, operand, size in found:
            instruction, address = kernel.instructions[number], values.address(operand)
            vector = any(re.fullmatch(r"v\d", part) for part in instruction.parts)
            cause = "" if address.is_multiple_of(size) else _cause(values, operand, size)
            yield Access(kernel.name, instruction, size, vector, address, cause)


def misaligned(text: str) -> list[Access]:
    """Those whose address need not be a multiple of their size."""
    return [access for access in accesses(text) if not access.aligned]


def _cause(values: Values, operand: str, size: int) -> str:
    """Goes back from an address to where alignment is lost."""
    seen: set[str] = set()
    queue = registers(operand)
    while queue:
        register = queue.pop(0)
        if register in seen or values.known.get(register, UNKNOWN).is_multiple_of(size):
            continue
        seen.add(register)
        assigned = values.assignments.get(register, [])
        joined = {str(values.assigned(instruction, register)) for instruction in assigned}
        if len(joined) > 1:
            lines = ", ".join(str(instruction.line) for instruction in assigned)
            return f"{register}, assigned in lines {lines}, is {' or '.join(sorted(joined))}"
        for instruction in assigned:
            sources = _sources(instruction)
            before = [register for source in sources for register in registers(source)]
            sides = {str(values.operand(source)) for source in sources}
            if sources and instruction.parts[0] in _JOINING and len(sides) > 1:
                joins = " and ".join(sorted(sides))
                return f"line {instruction.line} has {instruction.text}, which joins {joins}"
            lost = [
                source
                for source in before
                if source in values.assignments
                and not values.known.get(source, UNKNOWN).is_multiple_of(size)
            ]
            if not lost:
                return f"line {instruction.line} has {instruction.text}"
            queue += lost
    return "its own offset"


def demangled(name: str) -> str:
    if shutil.which("c++filt") is None:
        return name
    done = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True)
    return done.stdout.strip().replace("(anonymous namespace)::", "").partition("(")[0]


def of_build(build: Path) -> dict[tuple[str, int], Path]:
    """PTX by source and architecture (compute capability without the point), all that a build made.

    Raises:
        FileNotFoundError: some is missing: the build was configured without ``CARAFE_KEEP_PTX``.
    """
    cache = (build / "CMakeCache.txt").read_text()
    listed = re.search(r"^CMAKE_CUDA_ARCHITECTURES:\w+=(.*)", cache, re.MULTILINE)
    if listed and listed[1] == "native":
        listed = re.search(r"^CMAKE_CUDA_ARCHITECTURES_NATIVE:\w+=(.*)", cache, re.MULTILINE)
    architectures = sorted(set(map(int, re.findall(r"\d+", listed[1] if listed else ""))))
    found = {}
    for source in SOURCES:
        for architecture in architectures:
            # Of a single architecture nvcc leaves the number out.
            name = f".compute_{architecture}" if len(architectures) > 1 else ""
            path = build / "ptx" / f"{source}{name}.ptx"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: configure with -DCARAFE_KEEP_PTX=ON")
            found[source, architecture] = path
    return found


def report(paths: Iterable[Path]) -> tuple[list[str], list[str]]:
    """A line a file, and a line a misaligned access, or what of the file is not understood."""
    lines, problems = [], []
    for path in paths:
        try:
            found = list(accesses(path.read_text()))
        except NotUnderstoodError as error:
            lines.append(f"{path.name}: not read")
            problems.append(f"{path.name}: {error}")
            continue
        vectors = sum(access.vector for access in found)
        wrong = [access for access in found if not access.aligned]
        counts = f"{len(found)} accesses, {vectors} of them vectors, {len(wrong)} misaligned"
        lines.append(f"{path.name}: {counts}")
        problems += [f"{path.name}: {access}" for access in wrong]
    return lines, problems


def main(arguments: Sequence[str]) -> int:
    lines, problems = report(map(Path, arguments))
    print("\n".join(lines))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
