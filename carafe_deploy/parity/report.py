"""What a comparison found, as rows of a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from carafe_deploy.errors import ArtefactError
from carafe_deploy.failures import Failure
from carafe_deploy.parity.strict_json import decoded, encoded

__all__ = ["ParityReport", "ParityRow"]


@dataclass(frozen=True)
class ParityRow:
    """One compared thing and its verdict.

    Attributes:
        level: ``"operators"``, ``"stages"``, ``"detections"`` or ``"ap"``.
        name: of the operator, tensor or number.
        max_abs_error: largest difference in the thing's own unit (boxes: pixels); None where
            there was nothing to subtract, infinite where one side is not a number.
        max_rel_error: the same over the largest magnitude in the reference tensor (proposals:
            over the box's longer side); None where that has no meaning.
        matched: elements, rows or detections that agree; None where nothing is counted.
        total: how many there are.
        tolerance: limit from :mod:`carafe_deploy.tolerances`.
        measure: what the limit applies to, see :class:`carafe_deploy.tolerances.Tolerance`.
        passed: the verdict.
        note: what a reader should know besides.
        details: more numbers by name, for machines.
    """

    level: str
    name: str
    max_abs_error: float | None
    max_rel_error: float | None
    matched: int | None
    total: int | None
    tolerance: float
    measure: str
    passed: bool
    note: str = ""
    details: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityReport:
    """All rows of a comparison.

    Attributes:
        rows: in the order of the levels.
        reference: backend, precision and model, for people.
        candidate: likewise.
        images: how many went through stages and detections.
        seed: of the operators' random inputs.
        skipped: why a level was left out, by its name.
        failed: what an artefact raised in a level, which has no rows then, by the level's name.
    """

    rows: tuple[ParityRow, ...]
    reference: str
    candidate: str
    images: int
    seed: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, Failure] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No row and no level failed, and there is at least one row."""
        return bool(self.rows) and not self.failed and all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[ParityRow, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if not row.passed)

    def to_json(self) -> str:
        """Strict JSON; an infinite error becomes the string ``"inf"``."""
        data = {"passed": self.passed, **dataclasses.asdict(self)}
        return json.dumps(encoded(data), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ParityReport:
        """Inverse of :meth:`to_json`.

        Raises:
            ArtefactError: the text is no report.
        """
        try:
            data = decoded(json.loads(text))
            del data["passed"]  # follows from the rows
            data["rows"] = tuple(ParityRow(**row) for row in data["rows"])
            failed = data.get("failed", {})  # not in files of earlier versions
            data["failed"] = {level: Failure(**facts) for level, facts in failed.items()}
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"this is no parity report ({error}): write one with `carafe-deploy parity --json`"
            ) from error
