"""What a comparison found, as rows of a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ArtefactError
from carafe_deploy.failures import Failure
from carafe_deploy.images import Image
from carafe_deploy.parity.strict_json import decoded, encoded
from carafe_deploy.parity.table import plain, report_lines
from carafe_deploy.verdict import state_of

__all__ = ["ParityReport", "ParityRow", "named_images"]


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
        max_rel_error: the same over the largest magnitude in the reference tensor (proposals:
            over the box's longer side); None where that has no meaning.
        matched: elements, rows or detections that agree; None where nothing is counted.
        total: how many there are.
        tolerance: limit from :mod:`carafe_deploy.tolerances`.
        measure: what the limit applies to, see :class:`carafe_deploy.tolerances.Tolerance`.
        passed: the verdict; None where there was nothing to compare, which is neither.
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
    passed: bool | None
    note: str = ""
    details: Mapping[str, float | None] = field(default_factory=dict)

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
        data = {"passed": self.passed, "state": self.state, **dataclasses.asdict(self)}
        for entry, row in zip(data["rows"], self.rows, strict=True):
            entry["state"] = row.state
        return json.dumps(encoded(data), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ParityReport:
        """Inverse of :meth:`to_json`.

        Raises:
            ArtefactError: the text is no report.
        """
        try:
            data = decoded(json.loads(text))
            for entry in (data, *data["rows"]):
                entry.pop("state", None)  # follows from passed; not in files of earlier versions
            del data["passed"]  # follows from the rows
            data["rows"] = tuple(ParityRow(**row) for row in data["rows"])
            data["image_names"] = tuple(data.get("image_names", ()))
            failed = data.get("failed", {})  # not in files of earlier versions
            data["failed"] = {level: Failure(**facts) for level, facts in failed.items()}
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"this is no parity report ({error}): write one with `carafe-deploy parity --json`"
            ) from error
