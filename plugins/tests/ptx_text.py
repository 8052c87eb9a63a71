"""Kernels and their instructions in the text of a PTX module.

Whatever is not understood raises: what is skipped would count as right.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


class NotUnderstoodError(ValueError):
    """PTX that this reader does not know."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: not understood: {' '.join(text.split())}")


@dataclass(frozen=True)
class Instruction:
    """``line`` counts from 1; ``text`` has neither predicate nor semicolon."""

    line: int
    text: str
    predicated: bool = False

    @functools.cached_property
    def parts(self) -> list[str]:
        """``["ld", "shared", "v4", "u32"]``."""
        return self.text.partition(" ")[0].split(".")

    @functools.cached_property
    def operands(self) -> list[str]:
        """Without blanks: ``["{%r1,%r2}", "[%rd4+8]"]``."""
        return _OPERAND.findall(self.text.partition(" ")[2].replace(" ", ""))

    @functools.cached_property
    def results(self) -> list[str]:
        """Registers that it assigns."""
        name, *kinds = self.parts
        if not self.operands or (name in _WITHOUT_RESULT and "red" not in kinds):
            return []
        if name == "call" and not self.operands[0].startswith("("):
            return []
        return registers(self.operands[0])


@dataclass
class Kernel:
    """A kernel, or a function.

    Attributes:
        parameters: those of a kernel, by name; a function has none, its caller chooses them.
        symbols: alignment by declaration, of parameters and variables.
        labels: the instructions that they stand before.
        calls: it declares parameters for the functions that it calls.
    """

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    parameters: set[str] = field(default_factory=set)
    symbols: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    calls: bool = False


_DECLARED = re.compile(
    r"\.(?:shared|global|const|local|param)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.(?:pred|[a-z]+(\d+))\s+(?:\.ptr\s+(?:\.(?!align)[a-z]+\s+)?(?:\.align\s+\d+\s+)?)?([A-Za-z_$%][\w$%]*)"
)
_ENTRY = re.compile(r"\.(entry|func)\b(?:\s*\([^()]*\))?\s+([\w$%]+)")
_IGNORED = re.compile(
    r'/\*.*?\*/|//[^\n]*|"[^"\n]*"'
    # Directives without a semicolon.
    r"|\.loc\s+\d+\s+\d+\s+\d+"
    r"(?:\s*,\s*function_name\s+[\w$]+(?:\s*\+\s*\d+)?\s*,\s*inlined_at\s+\d+\s+\d+\s+\d+)?"
    r'|\.file\s+\d+\s+"[^"\n]*"(?:\s*,\s*\d+\s*,\s*\d+)?',
    re.DOTALL,
)
_BODY = re.compile(r"[{;]")
_BLANK = re.compile(r"\s+")
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
_STATEMENT = re.compile(
    r"(@\s*!?\s*[\w$%]+\s+)?([a-z]\w*(?:\.[\w:]+)*)((?:[\s{(\[].*)?)$", re.DOTALL
)
_DIRECTIVE = re.compile(r"\.(\w+)")
#: In the body of a kernel; they declare nothing that holds a value.
_WITHOUT_VALUE = ("pragma", "callprototype", "branchtargets", "calltargets")
_NAME = re.compile(r"(?<![\w$%.])[A-Za-z_$][\w$]*")
_OPERAND = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|[^,]+")
_WITHOUT_RESULT = (
    *("st", "red", "bra", "brx", "ret", "exit", "trap", "bar", "barrier", "membar", "fence"),
    *("prefetch", "prefetchu", "cp", "nanosleep", "discard"),
)


def registers(operand: str) -> list[str]:
    return re.findall(r"%[\w.$]+", operand)


@functools.cache
def integer(operand: str) -> int | None:
    digits = operand.removesuffix("U")
    if not re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)", digits):
        return None
    octal = re.fullmatch(r"(-?)0(\d+)", digits)
    return int(octal[1] + octal[2], 8) if octal else int(digits, 0)


#: Whatever operands they have.
_OF_MEMORY = ("ld", "ldu", "st", "atom", "red", "cp", "wgmma", "tcgen05", "tex", "suld", "sust")
_WAITING = (["commit_group"], ["wait_group"], ["wait_all"])


def of_parameters(instruction: Instruction) -> bool:
    return any(part.partition("::")[0] == "param" for part in instruction.parts)


def _size(instruction: Instruction) -> int:
    elements = [re.fullmatch(r"[busf]f?(\d+)(?:x(\d))?", part) for part in instruction.parts]
    sizes = [int(match[1]) * int(match[2] or 1) for match in elements if match]
    vectors = [int(part[1:]) for part in instruction.parts if re.fullmatch(r"v\d", part)]
    if not sizes:
        raise NotUnderstoodError(instruction.line, instruction.text)
    return sizes[-1] // 8 * (vectors[0] if vectors else 1)


def accessed(instruction: Instruction) -> list[tuple[str, int]]:
    """Addresses, each with its bytes.

    Raises:
        NotUnderstoodError: it is not known what the instruction accesses.
    """
    name, *kinds = instruction.parts
    addresses = [text for text in instruction.operands if text.startswith("[")]
    match name:
        case "ld" | "st" if of_parameters(instruction):
            return []
        case "ld" | "ldu" | "st" | "atom" | "red" if len(addresses) == 1 and not (
            {"async", "bulk"} & set(kinds)
        ):
            return [(addresses[0], _size(instruction))]
        case "cp" if kinds[:1] == ["async"] and kinds[1:2] in (["ca"], ["cg"]):
            size = integer(instruction.operands[2])
            if len(addresses) == 2 and size in (4, 8, 16):
                return [(address, size) for address in addresses]
        case "prefetch" | "prefetchu":  # of whole lines
            return []
        case _ if not addresses and name not in _OF_MEMORY:
            return []
    if name == "cp" and kinds[1:] in _WAITING:
        return []
    raise NotUnderstoodError(instruction.line, instruction.text)


def kernels(text: str) -> list[Kernel]:
    """All kernels and functions of a PTX module.

    Raises:
        NotUnderstoodError: a statement is neither an instruction nor a known directive.
    """
    text = _IGNORED.sub(lambda match: "\n" * match[0].count("\n") or " ", text)
    found: list[Kernel] = []
    outside, end = "", 0
    while head := _ENTRY.search(text, end):
        start = _BODY.search(text, head.end())
        if start is None:
            raise NotUnderstoodError(text.count("\n", 0, head.start()) + 1, head[0])
        outside += text[end : head.start()]
        end = start.end()
        if start[0] == ";":  # declared only
            continue
        line = text.count("\n", 0, start.end()) + 1
        signature = text[head.start() : start.start()]
        if re.search(r"\.reg\b", signature):
            raise NotUnderstoodError(line, signature)
        body = _Body(Kernel(head[2]), text, start.end(), line)
        end = body.end
        parameters = dict(_declarations(signature))
        if head[1] == "entry":
            body.kernel.parameters = parameters.keys() - body.kernel.symbols.keys()
        _declare(body.kernel.symbols, parameters.items())
        found.append(body.kernel)
    everywhere = list(_declarations(outside + text[end:]))
    for kernel in found:
        _declare(kernel.symbols, everywhere)
    return found


def _declarations(text: str) -> Iterator[tuple[str, int]]:
    for match in _DECLARED.finditer(text):
        yield match[3], int(match[1] or int(match[2] or 8) // 8)


def _declare(symbols: dict[str, int], declared: Iterable[tuple[str, int]]) -> None:
    """Of several with one name, in different blocks, the smallest alignment counts."""
    for name, alignment in declared:
        symbols[name] = min(alignment, symbols.get(name, alignment))


class _Body:
    """Reads the statements between a kernel's braces.

    Registers without a percent sign get one, so that they differ from symbols and labels; those of
    one name in different blocks get different ones.
    """

    def __init__(self, kernel: Kernel, text: str, start: int, line: int) -> None:
        self.kernel = kernel
        #: By block: names, and what stands for them; a symbol stands for itself.
        self.blocks: list[dict[str, str]] = [{}]
        self.numbered: list[dict[str, str]] = [{}]
        self.count = 0
        position = start
        while self.blocks:
            if blank := _BLANK.match(text, position):
                line += blank[0].count("\n")
                position = blank.end()
            if text[position : position + 1] == "{":
                self.blocks.append({})
                self.numbered.append({})
                position += 1
            elif text[position : position + 1] == "}":
                self.blocks.pop()
                self.numbered.pop()
                position += 1
            elif label := _LABEL.match(text, position):
                places = kernel.labels.setdefault(label[1], [])
                places.append(len(kernel.instructions))
                line += label[0].count("\n")
                position = label.end()
            else:
                stop = text.find(";", position)
                if stop < 0:
                    raise NotUnderstoodError(line, text[position : position + 80])
                self._statement(text[position:stop], line)
                line += text.count("\n", position, stop)
                position = stop + 1
        self.end = position

    def _statement(self, text: str, line: int) -> None:
        if not text.strip():
            return
        if directive := _DIRECTIVE.match(text):
            self._directive(directive[1], text, line)
            return
        match = _STATEMENT.match(text)
        if match is None:
            raise NotUnderstoodError(line, text)
        operands = match[3]
        if self.count:
            operands = _NAME.sub(lambda name: self._meant(name[0]), operands)
        line += text.count("\n", 0, match.start(2))
        content = " ".join(f"{match[2]} {operands}".split())
        self.kernel.instructions.append(Instruction(line, content, match[1] is not None))

    def _meant(self, name: str) -> str:
        prefix = name.rstrip("0123456789")
        for names, numbered in zip(reversed(self.blocks), reversed(self.numbered), strict=True):
            if name in names:
                return names[name]
            if prefix in numbered:
                return numbered[prefix] + name.removeprefix(prefix)
        return name

    def _directive(self, kind: str, text: str, line: int) -> None:
        if kind in _WITHOUT_VALUE:
            return
        if kind == "reg":
            declared = re.fullmatch(r"\.reg\s+(?:\.v\d\s+)?\.\w+\s+(.*)", text.strip(), re.DOTALL)
            if declared is None:
                raise NotUnderstoodError(line, text)
            for name in re.split(r"\s*,\s*", declared[1]):
                self._register(name.strip(), line)
            return
        symbols = list(_declarations(text))
        if not symbols:
            raise NotUnderstoodError(line, text)
        self.kernel.calls |= kind == "param"
        _declare(self.kernel.symbols, symbols)
        self.blocks[-1].update((symbol, symbol) for symbol, _ in symbols)

    def _register(self, name: str, line: int) -> None:
        match = re.fullmatch(r"([\w$%]+?)(\s*<\s*\d+\s*>)?", name)
        if match is None:
            raise NotUnderstoodError(line, name)
        if match[1].startswith("%"):
            return
        self.count += 1
        names = self.numbered if match[2] else self.blocks
        names[-1][match[1]] = f"%{match[1]}${self.count}" + ("$" if match[2] else "")


class Flow:
    """Which instructions have run whenever another one runs."""

    def __init__(self, kernel: Kernel) -> None:
        instructions = kernel.instructions
        starts = {0} | {place for places in kernel.labels.values() for place in places}
        starts |= {number + 1 for number, at in enumerate(instructions) if _turns(at)}
        self.starts = sorted(start for start in starts if start < len(instructions))
        self.block_of: list[int] = []
        for block, start in enumerate(self.starts):
            end = self.starts[block + 1] if block + 1 < len(self.starts) else len(instructions)
            self.block_of += [block] * (end - start)
        before: list[set[int]] = [set() for _ in self.starts]
        for block in range(len(self.starts)):
            for place in self._next(kernel, block):
                if place < len(instructions):
                    before[self.block_of[place]].add(block)
        # Sets of blocks as bits.
        everything = (1 << len(self.starts)) - 1
        self.dominators = [1] + [everything] * (len(self.starts) - 1)
        changed = True
        while changed:
            changed = False
            for block in range(1, len(self.starts)):
                common = everything
                for other in before[block]:
                    common &= self.dominators[other]
                common |= 1 << block
                if common != self.dominators[block]:
                    self.dominators[block], changed = common, True

    def _next(self, kernel: Kernel, block: int) -> Iterator[int]:
        end = self.starts[block + 1] if block + 1 < len(self.starts) else len(self.block_of)
        last = kernel.instructions[end - 1]
        name = last.parts[0]
        if name == "bra":
            target = last.operands[0]
            if target not in kernel.labels:
                raise NotUnderstoodError(last.line, last.text)
            yield from kernel.labels[target]
        elif name == "brx":  # to any label
            for places in kernel.labels.values():
                yield from places
        if last.predicated or not _turns(last):
            yield end

    def precedes(self, first: int, second: int) -> bool:
        """Whether no way leads to the second instruction but through the first."""
        if self.block_of[first] == self.block_of[second]:
            return first < second
        return bool(self.dominators[self.block_of[second]] >> self.block_of[first] & 1)


def _turns(instruction: Instruction) -> bool:
    return instruction.parts[0] in ("bra", "brx", "ret", "exit", "trap")
