"""Every way to compute a workload here: kernels, PyTorch, torchvision, ONNX Runtime, mmcv.

Names of implementations are for people. "unfused" takes the encoder's output as well, and shuffles
and normalises it by PyTorch before the operator that wants masks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.bench.workloads import Variant, Workload
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.libraries import missing
from carafe_deploy.operators import OPERATORS
from carafe_deploy.operators.specification import Peer
from carafe_deploy.ops import _kernels, plain_operators
from carafe_deploy.requirements import is_installed

__all__ = ["Candidate", "Job", "candidates", "jobs_of"]

#: Results of each call of a workload.
Results = list[tuple[Tensor, ...]]
Run = Callable[[], Results]
Function = Callable[..., Any]


@dataclass(frozen=True, eq=False, repr=False)
class Job(OneLine):
    """The calls of a workload through one entry, in one type and layout.

    Attributes:
        entry: torch name of the operator.
        variant: type and layout.
        device: of the inputs.
        calls: positional inputs and keyword arguments of each.
    """

    entry: str
    variant: Variant
    device: torch.device
    calls: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]

    @property
    def operator(self) -> Function:
        """By the kernels where they serve; inside ``plain_operators`` by PyTorch."""
        function: Function = getattr(torch.ops.carafe, self.entry)
        return function

    def by(self, function: Function) -> Run:
        """All calls, one after the other, through ``function``."""
        return lambda: [
            _tuple(function(*inputs, **attributes)) for inputs, attributes in self.calls
        ]

    def expected(self) -> Results:
        """By PyTorch in float32, of the inputs as they are in this job's type."""
        exact = [
            (tuple(_float32(item) for item in inputs), attributes)
            for inputs, attributes in self.calls
        ]
        with plain_operators():
            return [_tuple(self.operator(*inputs, **attributes)) for inputs, attributes in exact]


@dataclass(frozen=True, eq=False, repr=False)
class Candidate(OneLine):
    """One implementation of a job.

    Attributes:
        name: of the implementation.
        job: what it computes.
        run: makes the calls; may raise. None if ``reason`` says why.
        reason: why this machine cannot run it.
    """

    name: str
    job: Job
    run: Run | None = None
    reason: str = ""


def jobs_of(
    workload: Workload, inputs: Sequence[tuple[Any, ...]], variant: Variant, device: torch.device
) -> dict[str, Job]:
    """Jobs by entry: the workload's own, and the operator that does a part of the work.

    Args:
        workload: to be run.
        inputs: of each of its calls, float32, see :meth:`Workload.inputs`.
        variant: type and layout of feature maps and weights.
        device: to put them on.
    """

    def job(
        entry: str, changed: Callable[..., tuple[Any, ...]] = lambda *inputs, **_: inputs
    ) -> Job:
        calls = tuple(
            (
                _on(device, variant, entry, changed(*values, **call.attributes)),
                call.attributes,
            )
            for values, call in zip(inputs, workload.calls, strict=True)
        )
        return Job(entry, variant, device, calls)

    entry = workload.calls[0].entry
    unfused = OPERATORS[entry].unfused
    return {entry: job(entry)} | ({unfused[0]: job(*unfused)} if unfused else {})


def candidates(
    workload: Workload, jobs: Mapping[str, Job], *, full: bool = False
) -> Iterator[Candidate]:
    """What there is to compare, what cannot run here included.

    Args:
        workload: of the jobs.
        jobs: see :func:`jobs_of`.
        full: also what takes long: references that work element by element, and PyTorch in all
            types and layouts and through all entries.
    """
    first = next(iter(jobs.values()))
    is_first = first.variant == workload.variants()[0]
    yield from _kernel_candidates(jobs)
    for job in jobs.values():
        is_cheap = is_first and (job is first or workload.in_all_variants)
        if is_cheap or full:
            yield Candidate("PyTorch", job, _plain(job.by(job.operator)))
    for job in jobs.values():
        for peer in OPERATORS[job.entry].peers:
            if (peer.in_all_variants or is_first) and (full or not peer.in_full_only):
                yield from _peer_candidates(peer, job, first)
    if is_first and first.device.type == "cpu":
        yield _onnxruntime_candidate(first)


# --- tensors -------------------------------------------------------------------------------------


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _float32(item: Any) -> Any:
    if isinstance(item, list):
        return [_float32(each) for each in item]
    if not item.is_floating_point():  # a number of boxes
        return item
    return item.to(torch.float32, memory_format=torch.contiguous_format)


def _on(
    device: torch.device, variant: Variant, entry: str, inputs: Sequence[Any]
) -> tuple[Any, ...]:
    """Feature maps and weights take type and layout; RoIs, boxes and scores stay as they are."""

    def moved(item: Any, is_map: bool) -> Any:
        if isinstance(item, list):
            return [moved(each, is_map) for each in item]
        return variant.arranged(item, device) if is_map else item.to(device)

    kinds = (argument.is_feature_map for argument in OPERATORS[entry].inputs)
    return tuple(map(moved, inputs, kinds))


# --- kernels and PyTorch -------------------------------------------------------------------------


def _kernel_candidates(jobs: Mapping[str, Job]) -> Iterator[Candidate]:
    first = next(iter(jobs.values()))
    if not OPERATORS[first.entry].implementation.has_kernels:
        return
    on_cuda = first.device.type == "cuda"
    name = "CUDA kernel" if on_cuda else "CPU kernel"
    reason = _kernels_missing(on_cuda)
    for job in jobs.values():
        yield Candidate(name, job, None if reason else job.by(job.operator), reason)
    if OPERATORS[first.entry].unfused:
        run = None if reason else first.by(_unfused(first.entry))
        yield Candidate(f"{name}, unfused", first, run, reason)


def _kernels_missing(on_cuda: bool) -> str:
    """Why there are no kernels for a device; empty if there are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the row says it
            library = _kernels.kernel_library()
    except BackendUnavailableError as error:
        return str(error)
    if library is None:
        variable = _kernels.ENVIRONMENT_VARIABLE
        is_off = os.environ.get(variable) == "off"
        return f"{variable} is 'off': unset it" if is_off else missing("carafe_kernels")
    if on_cuda and not library.has_cuda:
        return f"{library.path} was built without CUDA: build it with `make plugins`"
    return ""


def _plain(run: Run) -> Run:
    def plain() -> Results:
        with plain_operators():
            return run()

    return plain


def _unfused(entry: str, function: Function | None = None) -> Function:
    """In two steps: PyTorch's part, then the other operator, or ``function`` in its place."""
    unfused = OPERATORS[entry].unfused
    assert unfused is not None
    name, changed = unfused
    second = function or getattr(torch.ops.carafe, name)

    def run(*inputs: Any, **attributes: Any) -> Any:
        return second(*changed(*inputs, **attributes), **attributes)

    return run


# --- others --------------------------------------------------------------------------------------


def _peer_candidates(peer: Peer, job: Job, first: Job) -> Iterator[Candidate]:
    if reason := peer.lacks(job.device.type, job.variant.dtype):
        yield Candidate(peer.name, job, reason=reason)
        return
    if job is not first:
        unfused = first.by(_unfused(first.entry, peer.function))
        yield Candidate(f"{peer.name}, unfused", first, unfused)
    yield Candidate(peer.name, job, job.by(peer.function))


# --- ONNX Runtime --------------------------------------------------------------------------------


def _onnxruntime_candidate(job: Job) -> Candidate:
    """Its function body; sessions are made by the first run."""
    name = "ONNX Runtime"
    for package in ("onnx", "onnxruntime"):
        if not is_installed(package):
            return Candidate(name, job, reason=f"{package} is not installed")
    prepared: list[Callable[[], list[Any]]] = []

    def run() -> Results:
        if not prepared:
            from carafe_deploy.bench.function_body import prepare

            prepared.extend(prepare(job.entry, *call) for call in job.calls)
        return [tuple(torch.from_numpy(array) for array in each()) for each in prepared]

    return Candidate(name, job, run)
