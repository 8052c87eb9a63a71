"""Results of the self check as Markdown, for a bug report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carafe_deploy.parity import LEVELS
from carafe_deploy.report.markdown import markdown_table
from carafe_deploy.report.parity import level_summary

if TYPE_CHECKING:
    from carafe_deploy.selfcheck import SelfCheck

__all__ = ["selfcheck_report"]


def selfcheck_report(result: SelfCheck) -> str:
    """Markdown with the verdict on each backend and what the machine has, for a bug report."""
    rows, tracebacks = [], []
    for check in result.checks:
        levels = [level_summary(check.parity, level) if check.parity else "" for level in LEVELS]
        name = f"{check.detector.partition('-')[0]}, {check.backend}"
        reason = " ".join(check.reason.split())
        rows.append([name, check.status, *levels, f"{check.seconds:.1f} s", reason])
        if check.status == "failed" and check.traceback:
            tracebacks += ["<details>", f"<summary>{name}: traceback</summary>", "", "```"]
            tracebacks += [check.traceback.strip(), "```", "", "</details>", ""]
    lines = [
        "# carafe-deploy selfcheck",
        "",
        "Every backend that runs here agrees." if result.passed else "**Something failed.**",
        "Compared with PyTorch's own operators on the CPU: the largest error relative to the "
        "largest magnitude in its tensor, and how many detections found their partner.",
        "",
        *markdown_table(["", "", *LEVELS, "time", "reason"], rows),
        "",
        *tracebacks,
        *markdown_table(["machine", ""], result.environment.items()),
    ]
    return "\n".join(lines) + "\n"
