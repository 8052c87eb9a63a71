"""Benchmarks in tests do not wait for the machine."""

from __future__ import annotations

import pytest

from carafe_deploy.bench import provenance, run


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSE", 0.0)
    monkeypatch.setattr(provenance, "LOOK", 0.02)
