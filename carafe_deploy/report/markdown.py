"""Sections as Markdown: text and tables, without figures, pictures and what is folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from carafe_deploy.report.document import Block, Heading, Items, Section, Table, Text

__all__ = ["markdown_table", "section_markdown", "table_markdown"]

_MARKS = {"good": "✓ ", "bad": "✗ ", "warn": "⚠ "}
PARTIAL = "Interrupted: partial. This is what had been measured by then."


def section_markdown(section: Section) -> str:
    """A section under a heading of the second level."""
    lines = [f"## {_escaped(section.title)}", ""]
    if section.partial:
        lines += [f"**⚠ {PARTIAL}**", ""]
    for text in section.verdict:
        lines += [_text(text), ""]
    if section.subtitle:
        lines += [_escaped(section.subtitle), ""]
    heading: list[str] = []
    for block in section.blocks:
        if isinstance(block, Heading):  # written only if something follows that Markdown can show
            heading = [f"### {_escaped(block.text)}", ""]
        elif written := _block(block):
            lines += [*heading, *written, ""]
            heading = []
    return "\n".join(lines).rstrip("\n") + "\n"


def table_markdown(table: Table) -> str:
    """A table alone, without its note."""
    return "\n".join(_table(table))


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str = ""
) -> list[str]:
    """Lines of a table; ``align`` is ``l`` or ``r`` a column, by default ``lrr...``."""
    align = align or "l" + "r" * (len(header) - 1)
    rules = ["---:" if side == "r" else "---" for side in align]
    return [f"| {' | '.join(map(_cell, row))} |" for row in (header, rules, *rows)]


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [_text(block)]
    if isinstance(block, Items):
        mark = _MARKS.get(block.tone, "")
        title = [f"{block.title}:", ""] if block.title else []
        rows = [f"- {mark}{_escaped(name)}: {_escaped(remark)}" for name, remark in block.rows]
        return [*title, *rows]
    if isinstance(block, Table):
        note = ["", _escaped(block.note)] if block.note else []
        return [*_table(block), *note]
    return []


def _table(table: Table) -> list[str]:
    rows = [[_escaped(cell) for cell in row] for row in table.rows]
    for index in table.best:
        rows[index][table.key] = f"**{rows[index][table.key]}**"
    return markdown_table(table.header, rows, table.align)


def _text(text: Text) -> str:
    return f"{_MARKS.get(text.tone, '')}{_escaped(text.text)}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _escaped(text: str) -> str:
    """GitHub renders HTML inside Markdown: names must not become tags."""
    return text.replace("<", "&lt;")
