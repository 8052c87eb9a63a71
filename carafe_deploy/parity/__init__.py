"""Compare any two artefacts of one model: operators, stages, detections and average precision."""

from __future__ import annotations

from carafe_deploy.parity.compare import LEVELS, Progress, run_parity
from carafe_deploy.parity.matching import MatchResult, match_detections
from carafe_deploy.parity.report import ParityReport, ParityRow
from carafe_deploy.parity.walk import StageWalk, WalkStep, walk_stages

__all__ = [
    "LEVELS",
    "MatchResult",
    "ParityReport",
    "ParityRow",
    "Progress",
    "StageWalk",
    "WalkStep",
    "match_detections",
    "run_parity",
    "walk_stages",
]
