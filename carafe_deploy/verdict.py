"""Verdicts of comparisons: passed, failed, or none where there was nothing to compare."""

from __future__ import annotations

__all__ = ["mark_of", "state_of"]


def state_of(passed: bool | None) -> str:
    """``"passed"``, ``"failed"`` or, of None, ``"nothing compared"``."""
    return "nothing compared" if passed is None else "passed" if passed else "failed"


def mark_of(passed: bool | None) -> str:
    """In one character."""
    return "–" if passed is None else "✓" if passed else "✗"
