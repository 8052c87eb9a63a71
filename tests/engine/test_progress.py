"""Progress: nested phases become one fraction that never falls; interrupts become a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from carafe_deploy.engine.progress import Tracker, signals_wait


def test_a_phase_counts_as_a_step_of_its_parent() -> None:
    tracker = Tracker()
    tracker.start("build", None, 4)
    assert tracker.fraction == 0.0
    tracker.step("build", 0)
    assert tracker.fraction == 0.25
    tracker.start("optimise", "build", 2)
    tracker.step("optimise", 0)
    assert tracker.fraction == 0.375
    tracker.finish("optimise")
    assert tracker.fraction == 0.375  # until the parent counts it
    tracker.step("build", 1)
    assert tracker.fraction == 0.5
    tracker.finish("build")
    assert tracker.fraction == 1.0


def test_unknown_phases_and_phases_without_steps_are_no_errors() -> None:
    tracker = Tracker()
    tracker.step("unknown", 3)
    tracker.finish("unknown")
    tracker.start("empty", "unknown", 0)
    assert tracker.fraction == 0.0
    tracker.step("empty", 0)
    tracker.step("empty", 1)
    assert tracker.fraction == 1.0


def test_an_interrupt_is_a_flag_while_it_matters() -> None:
    seen: list[bool] = []

    def interrupted() -> None:
        with signals_wait() as has_come:
            seen.append(has_come())
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(has_come())

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [False, True]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_of_sigterm_are_called_afterwards_and_ignored_signals_are_ignored() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_wait() as has_come:
            os.kill(os.getpid(), signal.SIGINT)
            assert not has_come()
            os.kill(os.getpid(), signal.SIGTERM)
            assert (has_come(), called) == (True, [])
        assert called == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)


def test_other_threads_have_no_interrupts() -> None:
    found = []

    def work() -> None:
        with signals_wait() as has_come:
            found.append(has_come())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
