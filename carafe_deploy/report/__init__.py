"""What was found, to read: benchmarks and parity as HTML and Markdown, the demo and self check.

Names are loaded when they are asked for: the self check's Markdown needs neither matplotlib nor
ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carafe_deploy.report.bench import bench_markdown
    from carafe_deploy.report.demo import NEXT, demo_report, engine_summary, write_demo_report
    from carafe_deploy.report.html import page, write_report
    from carafe_deploy.report.inputs import Reportable, read
    from carafe_deploy.report.markdown import markdown_table, to_markdown
    from carafe_deploy.report.operator_tables import operators_markdown
    from carafe_deploy.report.parity import level_summary
    from carafe_deploy.report.selfcheck import selfcheck_report

__all__ = [
    "NEXT",
    "Reportable",
    "bench_markdown",
    "demo_report",
    "engine_summary",
    "level_summary",
    "markdown_table",
    "operators_markdown",
    "page",
    "read",
    "selfcheck_report",
    "to_markdown",
    "write_demo_report",
    "write_report",
]

_MODULES = {
    "bench": ("bench_markdown",),
    "demo": ("NEXT", "demo_report", "engine_summary", "write_demo_report"),
    "html": ("page", "write_report"),
    "inputs": ("Reportable", "read"),
    "markdown": ("markdown_table", "to_markdown"),
    "operator_tables": ("operators_markdown",),
    "parity": ("level_summary",),
    "selfcheck": ("selfcheck_report",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
