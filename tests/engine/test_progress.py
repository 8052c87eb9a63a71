"""Progress: nested phases become one fraction that never falls; interrupts become a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from carafe_deploy.engine.progress import Tracker, interruptible


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
    with interruptible() as is_interrupted:
        assert not is_interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert is_interrupted()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_have_no_interrupts() -> None:
    found = []

    def work() -> None:
        with interruptible() as is_interrupted:
            found.append(is_interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
