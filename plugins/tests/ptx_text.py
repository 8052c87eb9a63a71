"""Kernels and their instructions in the text of a PTX module."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """``line`` counts from 1; ``text`` has neither predicate nor semicolon."""

    line: int
    text: str

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
        if self.parts[0] in _WITHOUT_RESULT or not self.operands:
            return []
        return re.findall(r"%[\w.$]+", self.operands[0])


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction] = field(default_factory=list)
    #: Alignment by declaration, of parameters and variables.
    symbols: dict[str, int] = field(default_factory=dict)


_DECLARED = re.compile(
    r"\.(?:shared|global|const|local|param)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.(?:pred|[a-z]+(\d+))\s+(?:\.ptr\s+(?:\.[a-z]+\s+)?(?:\.align\s+\d+\s+)?)?([\w$.%]+)"
)
_ENTRY = re.compile(r"\.(?:entry|func)\b(?:\s*\([^()]*\))?\s+([\w$]+)")
_STATEMENT = re.compile(
    r"(?:[\w$]+:\s*)*(?:@!?%\w+\s+)?([a-z]\w*(?:\.[\w:]+)*(?:\s.*)?)$", re.DOTALL
)
_OPERAND = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|[^,]+")
_WITHOUT_RESULT = (
    *("st", "red", "bra", "brx", "ret", "exit", "trap", "bar", "barrier", "membar", "fence"),
    *("prefetch", "prefetchu", "call", "cp", "pragma", "nanosleep", "discard"),
)


def kernels(text: str) -> list[Kernel]:
    """All kernels and functions of a PTX module."""
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    everywhere: dict[str, int] = {}
    found: list[Kernel] = []
    heads = list(_ENTRY.finditer(text))
    ends = [head.start() for head in heads] + [len(text)]
    for name, align in _declarations(text[: ends[0]]):
        everywhere[name] = align
    for head, end in zip(heads, ends[1:], strict=True):
        body = text[head.start() : end]
        kernel = Kernel(head[1], symbols=dict(everywhere) | dict(_declarations(body)))
        found.append(kernel)
        number = text.count("\n", 0, head.start()) + 1
        kernel.instructions = list(_instructions(body, number))
    return found


def _declarations(text: str) -> Iterator[tuple[str, int]]:
    for match in _DECLARED.finditer(text):
        yield match[3], int(match[1] or int(match[2] or 8) // 8)


def _instructions(body: str, line: int) -> Iterator[Instruction]:
    """Of a kernel's text, which begins on ``line``."""
    start = body.find("{")
    line += body.count("\n", 0, start)
    for statement in body[start + 1 :].split(";"):
        # A brace before an opcode opens or closes a block; those of vectors come later.
        stripped = statement.lstrip("{} \t\n")
        line_of = line + statement.count("\n", 0, len(statement) - len(stripped))
        line += statement.count("\n")
        if match := _STATEMENT.match(stripped):
            before = stripped.count("\n", 0, match.start(1))
            yield Instruction(line_of + before, " ".join(match[1].split()))
