"""Comparisons of artefacts: every level in a few words, and every row."""

from __future__ import annotations

from collections.abc import Sequence

from carafe_deploy.parity import LEVELS, ParityReport, ParityRow
from carafe_deploy.parity.table import limit
from carafe_deploy.report.document import Block, Fold, Heading, Section, Table, Text, items
from carafe_deploy.report.numbers import NONE, optional, scientific
from carafe_deploy.verdict import mark_of, state_of

__all__ = ["level_summary", "parity_section"]


def level_summary(report: ParityReport, level: str) -> str:
    """Largest relative error of a level (AP: change), and its fewest matches unless all matched.

    Empty if the level was not compared.
    """
    if level in report.failed:
        return "failed"
    rows = [row for row in report.rows if row.level == level]
    errors = [row.max_rel_error or 0.0 for row in rows if row.measure == "relative"]
    matched = [row for row in rows if row.measure == "matched" and row.matched is not None]
    errors += [row.max_abs_error or 0.0 for row in rows if row.level == "ap"]
    if rows and all(row.passed is None for row in rows):
        return state_of(None)
    parts = [f"{max(errors):.0e}" if max(errors) else "0"] if errors else []
    if matched:
        worst = min(matched, key=lambda row: (row.matched or 0) / (row.total or 1))
        if worst.matched != worst.total or not errors:
            parts.append(f"{worst.matched}/{worst.total}")
    return ", ".join(parts)


def parity_section(reports: Sequence[ParityReport]) -> Section:
    """All comparisons of one report; one at least."""
    images = sorted({report.images for report in reports if report.images})
    skipped = [
        (f"{report.candidate}, {level}", reason)
        for report in reports
        for level, reason in report.skipped.items()
    ]
    blocks: list[Block] = [
        _summary(reports),
        *_failures(reports),
        *_average_precision(reports),
        *items(skipped, "note", "Not compared"),
    ]
    blocks += [
        Fold(
            f"{_mark(report)} {report.candidate} against {report.reference}: "
            f"all {len(report.rows)} rows",
            (_rows(report.rows),),
        )
        for report in reports
    ]
    return Section(
        title="Parity",
        subtitle=f"Stages and detections on {' and '.join(map(str, images))} images, operators on "
        "random inputs"
        if images
        else "",
        verdict=(_verdict(reports),),
        blocks=tuple(blocks),
    )


def _verdict(reports: Sequence[ParityReport]) -> Text:
    rows = sum(len(report.rows) for report in reports)
    failed = sum(len(report.failures) for report in reports)
    count = "One comparison" if len(reports) == 1 else f"{len(reports)} comparisons"
    broken = sum(len(report.failed) for report in reports)
    if failed or broken:
        texts = [f"{failed} of {rows} rows exceed their tolerance"] * bool(failed)
        texts += [f"{'one level' if broken == 1 else f'{broken} levels'} failed"] * bool(broken)
        return Text(f"{count}: {', '.join(texts)}.", "bad")
    nothing = sum(len(report.uncompared) for report in reports)
    if nothing:
        return Text(f"{count}: {nothing} of {rows} rows had nothing to compare.", "bad")
    if not all(report.passed for report in reports):
        return Text(f"{count}: one compared nothing.", "bad")
    return Text(f"{count}: all {rows} rows are within their tolerance.", "good")


def _summary(reports: Sequence[ParityReport]) -> Table:
    levels = [
        level for level in LEVELS if any(row.level == level for r in reports for row in r.rows)
    ]
    return Table(
        header=("candidate", "reference", *(_TITLES.get(level, level) for level in levels), ""),
        rows=tuple(
            (
                report.candidate,
                report.reference,
                *(level_summary(report, level) or NONE for level in levels),
                _mark(report),
            )
            for report in reports
        ),
        align="ll" + "r" * len(levels) + "l",
        note="Operators and stages: largest error over the largest magnitude in its tensor. "
        "Stages and detections: the fewest proposals or detections that found their partner, "
        "unless all did. AP: largest change.",
    )


_TITLES = {"ap": "AP"}


def _failures(reports: Sequence[ParityReport]) -> list[Block]:
    failed, nothing, broken = [], [], []
    for report in reports:
        name = report.candidate
        failed += [(f"{name}, {row.level} {row.name}", _outcome(row)) for row in report.failures]
        nothing += [(f"{name}, {row.level} {row.name}", row.note) for row in report.uncompared]
        broken += [(f"{name}, {level}", one.reason) for level, one in report.failed.items()]
    return [
        *items(failed, "bad", "Beyond their tolerance"),
        *items(nothing, "bad", "Nothing to compare"),
        *items(broken, "bad", "Failed"),
    ]


def _outcome(row: ParityRow) -> str:
    _, error, relative, matched, allowed, _ = _cells(row)
    found = matched if row.measure in ("matched", "iou") else f"error {error}, relative {relative}"
    return f"{found}, limit {allowed}" + (f" ({row.note})" if row.note else "")


def _average_precision(reports: Sequence[ParityReport]) -> list[Block]:
    rows = tuple(
        (
            report.candidate,
            row.name,
            *(optional(row.details.get(side), "{:.4f}") for side in ("reference", "candidate")),
            scientific(row.max_abs_error),
            f"≤ {row.tolerance:g}",
            mark_of(row.passed),
        )
        for report in reports
        for row in report.rows
        if row.level == "ap"
    )
    if not rows:
        return []
    header = ("candidate", "", "reference", "candidate", "change", "limit", "")
    return [Heading("Average precision"), Table(header, rows, "llrrrrl")]


def _rows(rows: Sequence[ParityRow]) -> Table:
    return Table(
        header=("level", "", "error", "relative", "matched", "limit", ""),
        rows=tuple((row.level, *_cells(row)) for row in rows),
        align="llrrrrl",
    )


def _cells(row: ParityRow) -> tuple[str, str, str, str, str, str]:
    counted = row.measure in ("matched", "iou")
    matched = f"{row.matched} of {row.total}" if row.matched is not None else NONE
    if row.passed is None:
        matched = row.state
    return (
        row.name,
        scientific(row.max_abs_error),
        scientific(row.max_rel_error),
        matched if counted or row.passed is None else NONE,
        limit(row.measure, row.tolerance),
        mark_of(row.passed),
    )


def _mark(report: ParityReport) -> str:
    return mark_of(None if report.state == state_of(None) else report.passed)
