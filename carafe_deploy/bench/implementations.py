"""Every way to compute a workload here: kernels, PyTorch, torchvision, ONNX Runtime, mmcv.

Names of implementations are for people. "unfused" takes the encoder's output as well, and shuffles
and normalises it by PyTorch before the operator that wants masks.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from carafe_deploy.bench.workloads import Variant, Workload
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.libraries import missing
from carafe_deploy.ops import (
    _kernels,
    batched_nms,
    carafe,
    carafe_encoded,
    multilevel_roi_align,
    plain_operators,
)
from carafe_deploy.ops.nms import batched_nms_reference
from carafe_deploy.ops.roi_align import assign_levels, multilevel_roi_align_reference
from carafe_deploy.requirements import is_installed

__all__ = ["Candidate", "Job", "candidates", "jobs_of"]

#: Results of each call of a workload.
Results = list[tuple[Tensor, ...]]
Run = Callable[[], Results]
Operator = Callable[..., Any]

_OPERATORS: Mapping[str, Operator] = {
    "carafe": carafe,
    "carafe_encoded": carafe_encoded,
    "multilevel_roi_align": multilevel_roi_align,
    "batched_nms": batched_nms,
}


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
    def operator(self) -> Operator:
        """By the kernels where they serve; inside ``plain_operators`` by PyTorch."""
        return _OPERATORS[self.entry]

    def by(self, function: Operator) -> Run:
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
    """Jobs by entry: CARAFE has two, whose weights are the same but for rounding.

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
            (_on(device, variant, changed(*values, **call.attributes)), call.attributes)
            for values, call in zip(inputs, workload.calls, strict=True)
        )
        return Job(entry, variant, device, calls)

    def with_masks(features: Tensor, encoded: Tensor, **attributes: int) -> tuple[Tensor, Tensor]:
        return features, _masks(encoded, **attributes)

    entry = workload.calls[0].entry
    jobs = {entry: job(entry)}
    if workload.operator == "carafe":
        jobs["carafe"] = job("carafe", with_masks)
    return jobs


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
    if workload.operator == "carafe":
        yield from _mmcv_candidates(jobs)
    elif is_first:
        yield Candidate("torchvision", first, first.by(_TORCHVISION[first.entry]))
        if full:
            yield Candidate("reference", first, first.by(_REFERENCES[first.entry]))
    if is_first and first.device.type == "cpu":
        yield _onnxruntime_candidate(first)


# --- tensors -------------------------------------------------------------------------------------


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _float32(item: Any) -> Any:
    if isinstance(item, list):
        return [_float32(each) for each in item]
    return item.to(torch.float32, memory_format=torch.contiguous_format)


def _on(device: torch.device, variant: Variant, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Feature maps and weights take type and layout; RoIs, boxes and scores stay as they are."""

    def moved(item: Any) -> Any:
        if isinstance(item, list):
            return [moved(each) for each in item]
        is_map = variant.layout != "" and item.dim() == 4
        return variant.arranged(item, device) if is_map else item.to(device)

    return tuple(moved(item) for item in inputs)


def _masks(encoded: Tensor, *, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Encoder output to normalised masks, as mmcv's CARAFEPack does it: one pass each."""
    masks = F.pixel_shuffle(encoded, scale_factor)
    n, channels, height, width = masks.shape
    taps = masks.reshape(n, group_size, kernel_size**2, height, width)
    return taps.softmax(dim=2).reshape(n, channels, height, width)


# --- kernels and PyTorch -------------------------------------------------------------------------


def _kernel_candidates(jobs: Mapping[str, Job]) -> Iterator[Candidate]:
    job = next(iter(jobs.values()))
    on_cuda = job.device.type == "cuda"
    name = "CUDA kernel" if on_cuda else "CPU kernel"
    reason = _kernels_missing(on_cuda)
    for job in jobs.values():
        yield Candidate(name, job, None if reason else job.by(job.operator), reason)
    if "carafe_encoded" in jobs:
        job = jobs["carafe_encoded"]
        unfused = None if reason else job.by(_unfused(carafe))
        yield Candidate(f"{name}, unfused", job, unfused, reason)


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


def _unfused(reassemble: Operator) -> Operator:
    def run(features: Tensor, encoded: Tensor, **attributes: int) -> Any:
        return reassemble(features, _masks(encoded, **attributes), **attributes)

    return run


# --- torchvision and references ------------------------------------------------------------------


def _torchvision_roi_align(
    rois: Tensor,
    features: Sequence[Tensor],
    *,
    output_size: int,
    sampling_ratio: int,
    strides: Sequence[int],
    finest_scale: int,
) -> Tensor:
    """One call a level for the RoIs of that level, as mmdetection's extractor does."""
    [boxes] = rois
    levels = assign_levels(boxes, len(features), finest_scale)
    shape = (len(boxes), features[0].shape[1], output_size, output_size)
    out = features[0].new_zeros(shape)
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        [chosen] = (levels == level).nonzero(as_tuple=True)
        out[chosen] = torchvision.ops.roi_align(
            feature, [boxes[chosen]], output_size, 1 / stride, sampling_ratio, aligned=True
        )
    return out.unsqueeze(0)


def _torchvision_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """Candidates above the threshold through ``batched_nms``, the best of them padded with -1."""
    candidates = (scores.flatten() > score_threshold).nonzero().squeeze(1)
    chosen, of_chosen = boxes.reshape(-1, 4)[candidates], scores.flatten()[candidates]
    labels = candidates // scores.shape[2]
    kept = torchvision.ops.batched_nms(chosen, of_chosen, labels, iou_threshold)[:max_output]
    indices = F.pad(candidates[kept], (0, max_output - len(kept)), value=-1)
    count = torch.tensor([[len(kept)]], dtype=torch.int32, device=boxes.device)
    return count, indices.unsqueeze(0)


_TORCHVISION: Mapping[str, Operator] = {
    "multilevel_roi_align": _torchvision_roi_align,
    "batched_nms": _torchvision_nms,
}
_REFERENCES: Mapping[str, Operator] = {
    "multilevel_roi_align": multilevel_roi_align_reference,
    "batched_nms": batched_nms_reference,
}


# --- mmcv ----------------------------------------------------------------------------------------


def _mmcv_candidates(jobs: Mapping[str, Job]) -> Iterator[Candidate]:
    encoded, with_masks = jobs["carafe_encoded"], jobs["carafe"]
    reason = _mmcv_missing() or _mmcv_refuses(encoded)
    if reason:
        yield Candidate("mmcv", with_masks, reason=reason)
        return
    yield Candidate("mmcv, unfused", encoded, encoded.by(_unfused(_mmcv_carafe)))
    yield Candidate("mmcv", with_masks, with_masks.by(_mmcv_carafe))


@cache
def _mmcv_missing() -> str:
    if not is_installed("mmcv"):
        return "mmcv is not installed"
    try:
        importlib.import_module("mmcv.ops")
    except Exception as error:  # its extension fits one version of torch and CUDA
        return f"mmcv.ops cannot be imported ({type(error).__name__}: {error})"
    return ""


def _mmcv_refuses(job: Job) -> str:
    if job.device.type != "cuda":
        return "mmcv has no CARAFE for the CPU"
    return "mmcv's CARAFE has no bfloat16" if job.variant.dtype == "bfloat16" else ""


def _mmcv_carafe(
    features: Tensor, masks: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> Any:
    """It reads memory as NCHW, whatever the strides."""
    function = importlib.import_module("mmcv.ops").carafe
    return function(
        features.contiguous(), masks.contiguous(), kernel_size, group_size, scale_factor
    )


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
