"""What was found, and for what it is needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from carafe_deploy.brief import OneLine

Status = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True, repr=False)
class Finding(OneLine):
    """One thing.

    Attributes:
        name: for people, e.g. ``"ONNX Runtime"``.
        status: ``"ok"``; ``"missing"``, which matters only to what needs it; ``"wrong"``: there,
            and broken.
        fact: what was found.
        remedy: the command that mends it; empty for what is ok, or where no command can.
        needed: the purposes it stands under cannot do without.
    """

    name: str
    status: Status
    fact: str
    remedy: str = ""
    needed: bool = True


def ok(name: str, fact: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", fact)


def missing(name: str, fact: str, remedy: str = "") -> Finding:
    """It is not there."""
    return Finding(name, "missing", fact, remedy)


def wrong(name: str, fact: str, remedy: str = "") -> Finding:
    """It is there and cannot work."""
    return Finding(name, "wrong", fact, remedy)


def optional(finding: Finding) -> Finding:
    """The same, where one can do without."""
    return replace(finding, needed=False)


@dataclass(frozen=True, repr=False)
class Purpose(OneLine):
    """Something one may want to do here.

    Attributes:
        name: e.g. ``"build engines"``.
        findings: what matters to it first.
        lacks: names of everything needed that is not ok, from earlier purposes, too.
    """

    name: str
    findings: tuple[Finding, ...]
    lacks: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Nothing needed is missing or wrong."""
        return not self.lacks


def make_purpose(name: str, findings: Iterable[Finding], also: Iterable[Finding] = ()) -> Purpose:
    """A purpose that needs ``also``, which stands under other purposes."""
    findings = tuple(findings)
    needed = (finding for finding in (*also, *findings) if finding.needed)
    lacks = dict.fromkeys(finding.name for finding in needed if finding.status != "ok")
    return Purpose(name, findings, tuple(lacks))


@dataclass(frozen=True, repr=False)
class Diagnosis(OneLine):
    """All of it."""

    purposes: tuple[Purpose, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """Everything that is there and broken."""
        return tuple(
            finding
            for purpose in self.purposes
            for finding in purpose.findings
            if finding.status == "wrong"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable content."""
        return {
            "ok": not self.wrong,
            "purposes": [
                {
                    "name": purpose.name,
                    "ready": purpose.ready,
                    "lacks": list(purpose.lacks),
                    "findings": [asdict(finding) for finding in purpose.findings],
                }
                for purpose in self.purposes
            ],
        }
