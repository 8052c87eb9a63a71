"""What the modules of tables share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are numbers, on the right."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def machine(result: Mapping[str, Any]) -> str:
    """The processor of the machine that a result is of."""
    environment = result["environment"]
    return f"{environment['cores']} cores of {environment['cpu']}"
