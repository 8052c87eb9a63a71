"""What becomes of an error: a line, a traceback for whoever asks, and nothing else that ends."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from carafe_deploy.errors import BackendUnavailableError, EngineError
from carafe_deploy.failures import LOGGER, Failure, caught, failure_of
from tests.scripted import ERRORS


@pytest.mark.parametrize(
    ("error", "reason", "lacking", "foreseen"),
    [
        *((error, reason, False, False) for error, reason in ERRORS.items()),
        (KeyError("x"), "KeyError: 'x'", False, False),
        (RuntimeError("\n\n  first\nsecond"), "RuntimeError: first", False, False),
        (EngineError("too big:\n give less"), "too big: give less", False, True),
        (BackendUnavailableError("no GPU: buy one"), "no GPU: buy one", True, True),
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx"),
            "onnx is not installed: pip install onnx",
            True,
            False,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_reason(error: Exception, reason: str, lacking: bool, foreseen: bool) -> None:
    with caught() as outcome:
        raise error
    found = outcome.failure
    assert (found.reason, found.lacking, found.foreseen) == (reason, lacking, foreseen)
    assert found.traceback.startswith("Traceback (most recent call last)")
    assert type(error).__name__ in found.traceback.splitlines()[-str(error).count("\n") - 1]


def test_nothing_raised_is_no_failure() -> None:
    with caught() as outcome:
        pass
    assert outcome.failure is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_and_exits_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), caught():
        raise kind


@pytest.mark.parametrize(
    ("error", "logged"), [(RuntimeError("gone"), 1), (BackendUnavailableError("no GPU"), 0)]
)
def test_tracebacks_go_to_the_log(
    caplog: pytest.LogCaptureFixture, error: Exception, logged: int
) -> None:
    with caplog.at_level(logging.DEBUG, logger=LOGGER), caught():
        raise error
    assert len(caplog.records) == logged
    assert all("RuntimeError: gone" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("lost", [False, True])
def test_a_gpu_that_a_kernel_has_taken_down_is_named(
    monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """So that the backends after it are not blamed."""

    def synchronize() -> None:
        if lost:
            raise RuntimeError("CUDA error: misaligned address")

    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    added = " (CUDA refuses everything that follows in this process)"
    assert failure_of(RuntimeError("x")) == Failure(
        "RuntimeError: x" + added * lost, "RuntimeError: x\n"
    )


class _Mute(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no message")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_Mute(), "_Mute: its message cannot be read"),
        (RuntimeError("half \ud800 of a pair"), "RuntimeError: half \\ud800 of a pair"),
        (RuntimeError(b"\xff", 3), "RuntimeError: (b'\\xff', 3)"),
    ],
)
def test_odd_messages_end_nothing(error: Exception, reason: str) -> None:
    with caught() as attempt:
        raise error
    assert attempt.failure is not None
    assert attempt.failure.reason == reason
    (attempt.failure.reason + attempt.failure.traceback).encode("utf-8")
