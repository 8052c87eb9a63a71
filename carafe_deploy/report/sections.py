"""One section a benchmark, and one for all comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from carafe_deploy.bench.record import BenchResult, OperatorsResult
from carafe_deploy.parity import ParityReport
from carafe_deploy.report.bench import bench_section
from carafe_deploy.report.operator_tables import operators_section
from carafe_deploy.report.parity import parity_section

if TYPE_CHECKING:
    from carafe_deploy.report.document import Section
    from carafe_deploy.report.inputs import Reportable

__all__ = ["sections"]


def sections(results: Sequence[Reportable]) -> list[Section]:
    """Benchmarks in their order, comparisons at the end.

    Raises:
        ValueError: there is no result.
    """
    if not results:
        raise ValueError("there is no result to report on")
    made = [_section(result) for result in results if not isinstance(result, ParityReport)]
    reports = [result for result in results if isinstance(result, ParityReport)]
    return [*made, parity_section(reports)] if reports else made


def _section(result: BenchResult | OperatorsResult) -> Section:
    return bench_section(result) if isinstance(result, BenchResult) else operators_section(result)
