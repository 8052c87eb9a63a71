"""Reading what a report is made of."""

from __future__ import annotations

import os

from carafe_deploy.backends import mistaken
from carafe_deploy.bench.record import BenchResult, OperatorsResult
from carafe_deploy.bench.result_file import from_dict, read_json
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
    data = read_json(path)
    keys = data.keys() if isinstance(data, dict) else set()
    if "kind" in keys:
        return from_dict(data, str(path))
    if {"rows", "passed"} <= keys:
        return ParityReport.from_data(data, path)
    raise ArtefactError(f"{path} is neither a benchmark result nor a parity report: {_REMEDY}")
