"""When a figure may mislead, said next to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from carafe_deploy.bench.record import Samples
from carafe_deploy.bench.statistics import summary
from carafe_deploy.runners.base import Runner

__all__ = ["busy_machine", "doubts"]

#: Share of the compute time that launching may take before it decides, as in trtexec.
_ENQUEUE = 0.9
#: Coefficient of variation above which a distribution is called wide.
_VARIATION = 0.1
#: Change from the first to the last third of the rounds.
_DRIFT = 0.1
#: Samples from which on the 99th percentile is more than the worst of them.
_FEW = 100
#: Share of the cores that others may keep busy before measuring.
_BUSY = 0.25


def doubts(samples: Samples, runner: Runner | None = None) -> tuple[str, ...]:
    """Why the figures of one subject may mislead; empty if nothing speaks against them."""
    found = []
    if runner is not None and _is_checked_only(runner):
        found.append(
            "quantized for tensorrt: a CPU computes it step by step, to check it, and its time "
            "tells nothing of an engine's"
        )
    compute = samples.part("compute").median
    transfer = samples.part("upload").median + samples.part("download").median
    if samples.enqueue_ms and summary(samples.enqueue_ms).median > _ENQUEUE * compute:
        found.append(
            f"bound by launching: the host takes {summary(samples.enqueue_ms).median:.2f} ms to "
            f"launch what computes for {compute:.2f} ms; try CUDA graphs"
        )
    if transfer > compute:
        found.append(
            f"bound by copies: {transfer:.2f} ms between host and device for {compute:.2f} ms of "
            "compute; try uint8 input"
        )
    total = samples.total
    if total.variation > _VARIATION:
        found.append(
            f"varies by {total.variation:.0%} around its mean: measure longer, on a quieter machine"
        )
    drift = _drift(samples)
    if abs(drift) > _DRIFT:
        change = "slower" if drift > 0 else "faster"
        found.append(f"became {abs(drift):.0%} {change} in the course of the run")
    if total.count < _FEW:
        found.append(f"p99 of {total.count} samples is little more than their maximum")
    return tuple(found)


def _is_checked_only(runner: Runner) -> bool:
    """Quantized for TensorRT, and not run by it."""
    quantization = runner.info.quantization
    return quantization is not None and quantization.target == "tensorrt" and runner.device == "cpu"


def _drift(samples: Samples) -> float:
    """Relative change of the median from the first to the last third of the rounds."""
    rounds, times = np.asarray(samples.rounds), np.asarray(samples.total_ms)
    third = (rounds.max() + 1) // 3
    if third < 1:
        return 0.0
    first = float(np.median(times[rounds < third]))
    last = float(np.median(times[rounds > rounds.max() - third]))
    return last / first - 1


def busy_machine(facts: Mapping[str, float]) -> str:
    """A warning if others had the machine before measuring began, else empty.

    Args:
        facts: see :func:`carafe_deploy.bench.provenance.load_facts`.
    """
    busy, cores = facts["busy"], facts["cores"]
    if busy <= _BUSY * cores:
        return ""
    return (
        f"other programs kept {busy:.1f} of {cores:.0f} cores busy when this began: close them, "
        "and measure again"
    )
