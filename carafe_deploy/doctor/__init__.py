"""What this machine can do of what the package does, what it lacks for the rest, and what is wrong.

Each file judges one kind of thing; :mod:`~carafe_deploy.doctor.diagnosis` puts them together. None
of it needs more than the standard library, and none imports in this process what may be broken.
"""

from __future__ import annotations

from carafe_deploy.doctor.diagnosis import diagnose
from carafe_deploy.doctor.findings import Diagnosis, Finding, Purpose

__all__ = ["Diagnosis", "Finding", "Purpose", "diagnose"]
