"""What a comparison found: rows, their JSON, and the table that the command prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError
from carafe_deploy.failures import Failure
from carafe_deploy.images import Image
from carafe_deploy.parity.strict_json import Error, to_json, without_derived
from carafe_deploy.parity.table import Line, Row, aligned, limit, mark, number, plain, subject
from carafe_deploy.schema import SchemaError, Within, parse, structure
from carafe_deploy.stages import describe_stages
from carafe_deploy.verdict import state_of

__all__ = ["ParityReport", "ParityRow", "named_images", "report_lines"]

#: Up to so many stages each has a line.
_MANY = 16


def named_images(
    images: Sequence[Image] | Mapping[str, Image],
) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """Names, as far as there are any, and images."""
    if isinstance(images, Mapping):
        return tuple(images), tuple(images.values())
    return (), tuple(images)


@dataclass(frozen=True, repr=False)
class ParityRow(OneLine):
    """One compared thing and its verdict.

    Attributes:
        level: ``"operators"``, ``"stages"``, ``"detections"`` or ``"ap"``.
        name: of the operator, tensor or number.
        max_abs_error: largest difference in the thing's own unit (boxes: pixels); None where
            there was nothing to subtract, infinite where one side is not a number.
        max_rel_error: over the largest magnitude in the reference tensor (proposals: over the
            box's longer side); None where that has no meaning.
        matched: elements, rows or detections that agree; None where nothing is counted.
        total: how many there are.
        tolerance: limit from :mod:`carafe_deploy.tolerances`.
        measure: what the limit applies to, see :class:`carafe_deploy.tolerances.Tolerance`.
        passed: the verdict; None where there was nothing to compare.
        note: what a reader should know besides.
        details: more numbers by name, for machines.
    """

    level: str
    name: str
    max_abs_error: Error | None
    max_rel_error: Error | None
    matched: Annotated[int, Within(0, 1 << 62)] | None
    total: Annotated[int, Within(0, 1 << 62)] | None
    tolerance: float
    measure: str
    passed: bool | None
    note: str = ""
    details: Mapping[str, Error | None] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """``"passed"``, ``"failed"`` or ``"nothing compared"``."""
        return state_of(self.passed)


@dataclass(frozen=True, repr=False)
class ParityReport(OneLine):
    """All rows of a comparison.

    Attributes:
        rows: in the order of the levels.
        reference: backend, precision and model, for people.
        candidate: likewise.
        images: how many went through stages and detections.
        image_names: of these, where they have any.
        seed: of the operators' random inputs.
        skipped: why a level was left out, by its name.
        failed: what an artefact raised in a level, which has no rows then, by the level's name.
    """

    rows: tuple[ParityRow, ...]
    reference: str
    candidate: str
    images: int
    seed: int
    image_names: tuple[str, ...] = field(default=(), kw_only=True)
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, Failure] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No level failed, every row passed, none compared nothing, and there is at least one."""
        return bool(self.rows) and not self.failed and all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[ParityRow, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.passed is False)

    @property
    def uncompared(self) -> tuple[ParityRow, ...]:
        """The rows that had nothing to compare."""
        return tuple(row for row in self.rows if row.passed is None)

    @property
    def state(self) -> str:
        """``"passed"``, ``"failed"`` or, where nothing failed but a row, or all, lacks
        anything to compare, ``"nothing compared"``."""
        if self.failures or self.failed:
            return state_of(False)
        return state_of(True if self.passed else None)

    def __str__(self) -> str:
        """The table that the command prints."""
        return plain(report_lines(self))

    def to_json(self) -> str:
        """Strict JSON; an infinite error becomes the string ``"inf"``."""
        return to_json(self, "rows")

    @classmethod
    def from_json(cls, text: str | bytes, source: object = "this") -> ParityReport:
        """Inverse of :meth:`to_json`; ``source`` names the file in messages.

        Raises:
            ArtefactError: the text is no report.
        """
        try:
            return cls.from_data(parse(text), source)
        except SchemaError as error:
            raise ArtefactError(f"{source} is no parity report: {error}") from error

    @classmethod
    def from_data(cls, data: object, source: object) -> ParityReport:
        """As :meth:`from_json`, from parsed JSON."""
        try:
            return structure(cls, without_derived(data, "rows", ("passed",)))
        except SchemaError as error:
            raise ArtefactError(
                f"{source} is no parity report ({error}): write one with "
                "`carafe-deploy parity --json`"
            ) from error


def report_lines(report: ParityReport) -> list[Line]:
    """All rows of a comparison, of many stages the worst of each kind; notes; the verdict."""
    shown = list(_shown(report.rows))
    table: list[Row] = [
        [((name, "dim"),) for name in ("", "error", "relative", "matched", "limit", "")]
    ]
    level = ""
    for label, place, row in shown:
        if row.level != level:
            level = row.level
            table.append([((level, "bold"),)])
        table.append([((f"  {label}", ""), (f" {place}" if place else "", "dim")), *_cells(row)])
    lines = [*aligned(table), ()]
    lines += [
        ((f"{row.name}: {row.note}", "dim"),)
        for _, _, row in shown
        if row.note and (not row.passed or row.level in ("detections", "ap"))
    ]
    lines += [
        ((f"{level} not compared: {reason}", "yellow"),) for level, reason in report.skipped.items()
    ]
    lines += [
        ((f"{level} failed: {failure.reason}", "red"),) for level, failure in report.failed.items()
    ]
    lines.append(
        ((subject(report.candidate, report.reference, report.images, report.image_names), ""),)
    )
    count = len(report.rows)
    if report.passed:
        lines.append((("PASS", "bold green"), (f" all {count} rows", "")))
    if report.state == "failed":
        failed = [f"{_count(len(report.failures), 'row')} of {count}"]
        failed += [_count(len(report.failed), "level")] * bool(report.failed)
        lines.append((("FAIL", "bold red"), (f" {', '.join(failed)}", "")))
    if report.state == "nothing compared" or report.uncompared:
        text = f" in {_count(len(report.uncompared), 'row')} of {count}"
        lines.append((("NOTHING COMPARED", "bold yellow"), (text if count else "", "")))
    return lines


def _cells(row: ParityRow) -> list[Line]:
    counted = row.measure in ("matched", "iou")
    matched = f"{row.matched}/{row.total}" if counted and row.matched is not None else ""
    if row.passed is None:
        matched = "nothing"
    return [
        number(row.max_abs_error),
        number(row.max_rel_error),
        ((matched, ""),),
        ((limit(row.measure, row.tolerance), ""),),
        mark(row.passed),
    ]


def _shown(rows: Sequence[ParityRow]) -> Iterator[tuple[str, str, ParityRow]]:
    """Label, place among others, and row of each line."""
    stages = [row for row in rows if row.level == "stages"]
    kinds: dict[str, list[ParityRow]] = {}
    if len(stages) > _MANY:
        by_name = {stage.name: stage.kind for stage in describe_stages(row.name for row in stages)}
        for row in stages:
            kinds.setdefault(by_name[row.name], []).append(row)
    done = False
    for row in rows:
        if row.level != "stages" or not kinds:
            yield row.name, "", row
        elif not done:
            done = True
            yield from (_summary(kind, of_kind) for kind, of_kind in kinds.items())


def _summary(kind: str, rows: Sequence[ParityRow]) -> tuple[str, str, ParityRow]:
    """The first that failed, else the first that compared nothing, else the worst."""
    failed = [row for row in rows if row.passed is False]
    empty = [row for row in rows if row.passed is None]
    row = (failed or empty or [max(rows, key=lambda row: row.max_rel_error or 0.0)])[0]
    if len(rows) == 1:
        return row.name, "", row
    place = f"worst of {len(rows)} in {kind}"
    if len(failed) > 1:
        place = f"first of {len(failed)} outside in {kind}"
    elif empty and not failed:
        place = f"first of {len(empty)} in {kind}" if len(empty) > 1 else f"in {kind}"
    return row.name, place, row


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
