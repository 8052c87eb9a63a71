"""Every attack for a moment; `make fuzz` goes on for as long as it is given."""

from __future__ import annotations

import pytest

from tests.fuzz.run import ATTACKS, attack

SECONDS = 2.0


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_breaks_it(name: str) -> None:
    try:
        outcome = attack(name, SECONDS, seed=0)
    except FileNotFoundError as error:  # of the C++ tests, which are built apart
        pytest.skip(str(error))
    assert outcome.failures == []
    assert sum(outcome.outcomes.values()) == outcome.count > 0
