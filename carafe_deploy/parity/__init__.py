"""Compare any two artefacts of one model: operators, stages, detections and average precision."""

from __future__ import annotations

from carafe_deploy.parity.compare import LEVELS, Progress, run_parity
from carafe_deploy.parity.matching import MatchResult, match_detections
from carafe_deploy.parity.report import ParityReport, ParityRow

__all__ = [
    "LEVELS",
    "MatchResult",
    "ParityReport",
    "ParityRow",
    "Progress",
    "match_detections",
    "run_parity",
]
