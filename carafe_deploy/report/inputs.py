"""Reading what a report is made of."""

from __future__ import annotations

import json
import os
from pathlib import Path

from carafe_deploy.backends import mistaken
from carafe_deploy.bench.record import BenchResult, OperatorsResult, from_dict
from carafe_deploy.errors import ArtefactError
from carafe_deploy.parity import ParityReport

__all__ = ["Reportable", "read"]

_REMEDY = (
    "write the JSON of one with `carafe-deploy bench ... -o FILE.json` or "
    "`carafe-deploy parity ... -o FILE.json`"
)

#: Whatever a report can show.
Reportable = BenchResult | OperatorsResult | ParityReport


def read(path: str | os.PathLike[str]) -> Reportable:
    """Read a result of ``carafe-deploy bench`` or a report of ``carafe-deploy parity``.

    Raises:
        ArtefactError: the file is missing, neither of the two, damaged, or of another schema
            version.
    """
    other = mistaken(path, None)
    if other is not None:
        raise ArtefactError(f"{other}, which a report is not made of: {_REMEDY}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtefactError(f"{path} is no JSON ({error}): measure again") from error
    keys = data.keys() if isinstance(data, dict) else set()
    if "kind" in keys:
        return from_dict(data, str(path))
    if {"rows", "passed"} <= keys:
        try:
            return ParityReport.from_json(text)
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from error
    raise ArtefactError(f"{path} is neither a benchmark result nor a parity report: {_REMEDY}")
