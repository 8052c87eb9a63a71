"""One section a benchmark, and one for all comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from carafe_deploy.bench.record import BenchResult
from carafe_deploy.parity import ParityReport
from carafe_deploy.report.bench import bench_section
from carafe_deploy.report.document import Section
from carafe_deploy.report.inputs import Reportable
from carafe_deploy.report.markdown import section_markdown
from carafe_deploy.report.operator_tables import operators_section
from carafe_deploy.report.parity import parity_section

__all__ = ["sections", "to_markdown"]


def sections(results: Sequence[Reportable]) -> list[Section]:
    """Benchmarks in their order, comparisons at the end.

    Raises:
        ValueError: there is no result.
    """
    if not results:
        raise ValueError("there is no result to report on")
    made = [
        bench_section(result) if isinstance(result, BenchResult) else operators_section(result)
        for result in results
        if not isinstance(result, ParityReport)
    ]
    reports = [result for result in results if isinstance(result, ParityReport)]
    return [*made, parity_section(reports)] if reports else made


def to_markdown(results: Sequence[Reportable]) -> str:
    """All results as one document in GitHub Markdown, without charts and pictures."""
    return "\n".join(section_markdown(section) for section in sections(results))
