"""Backends behind one protocol; each module imports its own runtime and nothing else."""

from __future__ import annotations

from carafe_deploy.runners.base import Runner, check_inputs

__all__ = ["Runner", "check_inputs"]
