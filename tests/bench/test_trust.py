"""Each doubt is raised where there is reason for it, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from carafe_deploy.bench import provenance
from carafe_deploy.bench.provenance import load_facts
from carafe_deploy.bench.record import PARTS, Samples
from carafe_deploy.bench.trust import busy_machine, doubts


def _samples(totals: np.ndarray, rounds: int = 20, **parts: float) -> Samples:
    enqueue = parts.pop("enqueue", None)
    count = len(totals)
    medians = {"compute": 5.0, **parts}
    return Samples(
        rounds=tuple(int(i) for i in np.arange(count) * rounds // count),
        total_ms=tuple(map(float, totals)),
        parts_ms={name: (medians.get(name, 0.0),) * count for name in PARTS},
        enqueue_ms=() if enqueue is None else (enqueue,) * count,
    )


STEADY = np.tile([9.9, 10.0, 10.1, 10.0], 50)


def test_nothing_speaks_against_steady_figures() -> None:
    assert doubts(_samples(STEADY)) == ()
    assert doubts(_samples(STEADY, enqueue=1.0, upload=1.0, download=1.0)) == ()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (_samples(STEADY, enqueue=4.8), "bound by launching: the host takes 4.80 ms"),
        (_samples(STEADY, upload=4.0, download=1.5), "bound by copies: 5.50 ms"),
        (_samples(np.tile([5.0, 15.0], 100)), "varies by 50% around its mean"),
        (_samples(np.linspace(10, 13, 200)), "became 20% slower"),
        (_samples(np.linspace(13, 10, 200)), "became 17% faster"),
        (_samples(STEADY[:99]), "p99 of 99 samples"),
    ],
)
def test_each_doubt(samples: Samples, message: str) -> None:
    [doubt] = doubts(samples)
    assert message in doubt


def test_a_file_for_tensorrt_is_slow_on_a_cpu() -> None:
    for target, device, count in (
        ("tensorrt", "cpu", 1),
        ("cpu", "cpu", 0),
        ("tensorrt", "cuda", 0),
    ):
        info = SimpleNamespace(quantization=SimpleNamespace(target=target))
        found = doubts(_samples(STEADY), SimpleNamespace(info=info, device=device))
        assert [text[:23] for text in found] == ["quantized for tensorrt:"] * count


def test_one_round_cannot_drift() -> None:
    assert doubts(_samples(STEADY, rounds=1)) == ()


def test_a_busy_machine_is_told_from_an_idle_one() -> None:
    assert busy_machine({"busy": 0.4, "cores": 2.0}) == ""
    told = busy_machine({"busy": 1.5, "cores": 2.0})
    assert told.startswith("other programs kept 1.5 of 2 cores busy")


def test_a_program_at_work_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LOOK", 0.5)
    spin = [sys.executable, "-c", "import time\nend = time.time() + 20\nwhile time.time() < end: 0"]
    with subprocess.Popen(spin) as program:
        time.sleep(0.3)
        found = load_facts()
        program.kill()
    assert 0.5 < found["busy"] <= found["cores"]
