"""Measure every implementation of the operators on what an R-50 detector gives them.

Implementations of one workload take turns, so that drift of the machine hits all alike, and so
does the copy that tells how fast the machine moves as many bytes. A result is compared with
PyTorch's before it is timed; what is far off gets a reason and no time.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carafe_deploy.bench.clock import (
    SETTLED,
    Clock,
    CudaClock,
    clock_of,
    copy_of,
    measured_bandwidth,
    measured_flops,
)
from carafe_deploy.bench.implementations import Candidate, Results, candidates, jobs_of
from carafe_deploy.bench.provenance import describe_run, load_facts
from carafe_deploy.bench.record import OperatorRow, OperatorsResult
from carafe_deploy.bench.trust import busy_machine
from carafe_deploy.bench.workloads import DATA, SEED, WORKLOADS, Workload
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.failures import Failure, caught
from carafe_deploy.operators import FAMILIES, OPERATORS
from carafe_deploy.runners._memory import keep_freed_memory
from carafe_deploy.runners._precision import float32_products
from carafe_deploy.runners._torch import resolve_device, torch_threads
from carafe_deploy.termination import interrupts_raise
from carafe_deploy.tolerances import tolerance
from carafe_deploy.types import DTYPES, PRECISIONS

__all__ = ["OperatorOptions", "is_failure", "measure_operators"]

Step = Callable[[str], None]
Progress = Callable[[int, int], None]

#: Seconds after which a turn ends, whatever calls are left.
TURN = 0.05
#: An error of so many tolerances is a mistake, not a rounding: mmcv in float16 rounds every tap.
ABSURD = 10

_PRECISIONS = {DTYPES[precision]: precision for precision in PRECISIONS}


@dataclass(frozen=True, repr=False)
class OperatorOptions(OneLine):
    """What is measured, and how long.

    Attributes:
        operators: any of :data:`~carafe_deploy.operators.FAMILIES`.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        rounds: in each, every implementation has its turn.
        iterations: timed calls a turn at most; slow ones get fewer, one at least.
        threads: of an operator on the CPU; None for as many as PyTorch uses.
        full: everything in all types and layouts, and the references that take seconds a call.
            Otherwise kernels have all types and layouts on a few workloads, the others float32
            NCHW, and PyTorch does not take masks but on these few.
    """

    operators: tuple[str, ...] = tuple(FAMILIES)
    device: str = "cpu"
    rounds: int = 5
    iterations: int = 10
    threads: int | None = None
    full: bool = False

    def checked(self) -> OperatorOptions:
        """Self.

        Raises:
            CarafeDeployError: an operator is unknown or there is none, or a number is below 1.
        """
        known = ", ".join(FAMILIES)
        if not self.operators:
            raise CarafeDeployError(f"there is no operator to measure: give any of {known}")
        for name in self.operators:
            if name not in FAMILIES:
                raise CarafeDeployError(f"operator {name!r} is none of {known}")
        for name in ("rounds", "iterations", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CarafeDeployError(f"{name} is {value}: give at least 1")
        return self


def measure_operators(
    options: OperatorOptions,
    *,
    step: Step = lambda name: None,
    progress: Progress = lambda done, total: None,
) -> OperatorsResult:
    """Measure implementations of operators, those of one workload in turns.

    A keyboard interrupt ends measuring; the result then holds what there is and says so. What
    this machine lacks is one row an operator, with the reason.

    Args:
        options: see there.
        step: told the name of each step as it begins.
        progress: within a step, told the workloads done and their total.

    Raises:
        CarafeDeployError: an option is out of range.
        BackendUnavailableError: there is no such device here.
        KeyboardInterrupt: before the first workload, when there is nothing to keep.
    """
    options.checked()
    device = resolve_device(options.device)
    busy = busy_machine(load_facts())  # before anything of ours runs
    if device.type == "cpu":
        keep_freed_memory()  # as the runners do
    with torch_threads(options.threads), float32_products(), torch.inference_mode():
        step("machine")
        clock = clock_of(device)
        bench = _Bench(options, clock)
        peaks = [_peaks(clock)]
        is_partial = False
        try:
            with interrupts_raise():
                for operator in dict.fromkeys(options.operators):
                    step(operator)
                    workloads = WORKLOADS[operator]
                    for done, workload in enumerate(workloads):
                        progress(done, len(workloads))
                        bench.measure(workload)
                    with caught():  # whatever keeps the GPU from answering is in the rows
                        peaks.append(_peaks(clock))
        except KeyboardInterrupt:
            is_partial = True
        bandwidth, flops = map(max, zip(*peaks, strict=True))
        return OperatorsResult(
            environment=describe_run(),
            settings=_settings(options, clock, busy),
            device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
            cache=clock.cache,
            copy_bytes_per_second=bandwidth,
            flops_per_second=flops,
            rows=tuple(bench.rows),
            partial=is_partial,
        )


def _peaks(clock: Clock) -> tuple[float, float]:
    """Bytes and operations a second; others may have the machine at one time and not at another."""
    return measured_bandwidth(clock), measured_flops(clock)


def _settings(options: OperatorOptions, clock: Clock, busy: str) -> dict[str, str]:
    on_gpu = isinstance(clock, CudaClock)
    settings = {
        "operators": ", ".join(dict.fromkeys(options.operators)),
        "set": "full"
        if options.full
        else "default: kernels in all types and layouts on a few workloads, else float32 NCHW",
        "turns": (
            f"{options.rounds} rounds, in each every implementation of a workload and the copy "
            f"have a turn, in random order; a turn is {options.iterations} calls, fewer after "
            f"{TURN:g} s, one at least"
        ),
        "warm-up": (
            "one call to compare results, and one untimed at the beginning of a turn whose calls "
            f"take less than {SETTLED:g} s"
        ),
        "time": (
            "device events around a call, the host ahead"
            if on_gpu
            else "wall clock of a call, which allocates its results; freed memory stays mapped"
        ),
        "caches": "flushed before every call" if on_gpu else "as the call before left them",
        "threads": str(torch.get_num_threads()),
        "seed": str(SEED),
        "reference": "PyTorch in float32, of inputs rounded to the type",
        "limits of the machine": "the fastest seen before, between and after operators",
    }
    if busy:
        settings["doubt"] = busy
    for operator in settings["operators"].split(", "):
        if operator in DATA:
            settings[f"data of {operator}"] = DATA[operator]
    return settings


# --- one workload --------------------------------------------------------------------------------


@dataclass(eq=False)
class _Series:
    """One implementation, or a copy of as many bytes, and what it was timed at.

    A row with a reason is not timed.
    """

    row: OperatorRow
    run: Callable[[], object] | None
    samples: list[float] = field(default_factory=list)

    def timed(self, copy: _Series) -> OperatorRow:
        return dataclasses.replace(
            self.row,
            samples_us=tuple(self.samples),
            copy_us=min(copy.samples, default=0.0),
        )


class _Bench:
    """Rows of all workloads measured so far."""

    def __init__(self, options: OperatorOptions, clock: Clock) -> None:
        self.rows: list[OperatorRow] = []
        self._options = options
        self._clock = clock
        self._random = random.Random(SEED)
        self._lacking: set[tuple[str, str, str]] = set()

    def measure(self, workload: Workload) -> None:
        """Add the workload's rows; those with samples even when interrupted."""
        series: list[_Series] = []
        copies: dict[int, _Series] = {}
        try:
            with caught() as attempt:
                for one in self._compared(workload):
                    series.append(one)
                    size = one.row.num_bytes
                    if size not in copies and not one.row.reason:
                        copies[size] = _Series(one.row, copy_of(size, self._clock.device))
                self._rounds([*series, *copies.values()])
            if attempt.failure:
                self._failed(workload, attempt.failure)
        finally:
            self.rows += [
                one.timed(copies[one.row.num_bytes]) if one.samples else one.row
                for one in series
                if one.samples or one.row.reason
            ]

    def _failed(self, workload: Workload, failure: Failure) -> None:
        """A row for what no implementation is to blame for: inputs, reference, or the copy."""
        self.rows.append(
            OperatorRow(
                operator=workload.operator,
                workload=workload.name,
                implementation="inputs and reference",
                entry=workload.calls[0].entry,
                dtype="",
                layout="",
                reason=_FAILED + failure.reason,
            )
        )

    def _compared(self, workload: Workload) -> Iterator[_Series]:
        """Implementations with their errors; those that cannot be timed say why."""
        inputs = workload.inputs()
        for variant in workload.variants(full=self._options.full):
            jobs = jobs_of(workload, inputs, variant, self._clock.device)
            expected = {entry: job.expected() for entry, job in jobs.items()}
            for candidate in candidates(workload, jobs, full=self._options.full):
                row = OperatorRow(
                    operator=workload.operator,
                    workload=workload.name,
                    implementation=candidate.name,
                    entry=candidate.job.entry,
                    dtype=variant.dtype,
                    layout=variant.layout,
                    num_bytes=workload.num_bytes(variant),
                    flops=workload.flops,
                )
                if candidate.run is not None:
                    error, reason = _compare(candidate, expected[candidate.job.entry])
                    row = dataclasses.replace(row, max_error=error, reason=reason)
                    yield _Series(row, candidate.run)
                elif self._is_news(row, candidate.reason):
                    yield _Series(dataclasses.replace(row, reason=candidate.reason), None)

    def _is_news(self, row: OperatorRow, reason: str) -> bool:
        """What the machine lacks, it lacks for all workloads: one row an operator says it."""
        key = (row.operator, row.implementation, reason)
        is_known = key in self._lacking
        self._lacking.add(key)
        return not is_known

    def _rounds(self, series: Sequence[_Series]) -> None:
        for _ in range(self._options.rounds):
            for one in self._random.sample(series, len(series)):
                if one.run is None or one.row.reason:
                    continue
                time.sleep(self._clock.pause)
                with caught() as attempt:
                    one.samples += self._clock.turn(one.run, self._options.iterations, TURN)
                if attempt.failure:
                    reason = _FAILED + attempt.failure.reason
                    one.row = dataclasses.replace(one.row, reason=reason)
                    one.samples.clear()


#: How the reason of a row begins whose implementation is there and does not do what it should.
_WRONG, _FAILED = "wrong: ", "failed: "


def is_failure(row: OperatorRow) -> bool:
    """The implementation broke or is wrong, other than one that this machine lacks."""
    return row.reason.startswith((_WRONG, _FAILED))


# --- is it right? --------------------------------------------------------------------------------


def _compare(candidate: Candidate, expected: Results) -> tuple[float | None, str]:
    """Largest error, as the row holds it, and why the implementation is not timed."""
    found: tuple[float | None, str] = None, ""
    with caught() as attempt:  # comparing waits for the device, which may raise only then
        found = _compare_results(candidate, expected)
    return (None, _FAILED + attempt.failure.reason) if attempt.failure else found


def _compare_results(candidate: Candidate, expected: Results) -> tuple[float | None, str]:
    assert candidate.run is not None
    found = candidate.run()
    operator = OPERATORS[candidate.job.entry]
    if operator.compared == "kept":
        return None, _compare_kept(found, expected)
    worst = max(
        _relative_error(ours, theirs)
        for call, of_call in zip(found, expected, strict=True)
        for ours, theirs in zip(call, of_call, strict=True)
    )
    precision = _PRECISIONS[candidate.job.variant.dtype]
    limit = tolerance("operators", operator.tolerance, precision).value
    if worst <= ABSURD * limit:
        return worst, ""
    reason = (
        f"{_WRONG}off by {worst:.1e} of the reference's largest value, where {limit:.1e} is "
        "tolerable; not timed"
    )
    return (worst if math.isfinite(worst) else None), reason


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest finite magnitude; infinite for another shape or a NaN.

    Equal infinities, as rows without a candidate have, do not differ.
    """
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    found = found.float()
    difference = torch.where(found == expected, 0.0, (found - expected).abs()).max().item()
    largest = expected.abs()[expected.isfinite()].amax().item() if expected.isfinite().any() else 0
    error = difference / max(largest, torch.finfo(torch.float32).tiny)
    return math.inf if math.isnan(error) else error


def _compare_kept(found: Results, expected: Results) -> str:
    """Why boxes kept, or their order, differ from the reference's; empty if they do not."""
    for (our_count, ours), (count, theirs) in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            return f"{_WRONG}shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}; not timed"
        if not torch.equal(ours, theirs) or not torch.equal(our_count, count):
            same = int(((ours == theirs) & (theirs >= 0)).sum())
            return f"{_WRONG}{same} of {int(count)} boxes kept are the reference's; not timed"
    return ""
