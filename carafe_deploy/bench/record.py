"""Results of benchmarks as values: of whole detectors, and of single operators.

Durations keep every sample, outliers included; :mod:`carafe_deploy.bench.statistics` summarises.
:mod:`carafe_deploy.bench.result_file` writes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from carafe_deploy.bench.statistics import Ratio, Summary, ratio, summary
from carafe_deploy.brief import OneLine
from carafe_deploy.schema import OneOf, Within
from carafe_deploy.verdict import state_of

__all__ = [
    "PARTS",
    "Agreement",
    "BenchResult",
    "Cold",
    "Layer",
    "Layers",
    "OperatorRow",
    "OperatorsResult",
    "Sample",
    "SampleDetections",
    "Samples",
    "Streamed",
    "Subject",
    "Throughput",
]

#: A duration that ratios are made of, and one that may be nothing, in any unit.
_Duration = Annotated[float, Within(1e-9, 1e18)]
_Part = Annotated[float, Within(0, 1e12)]
_Count = Annotated[int, Within(0, 1 << 62)]
_Share = Annotated[float, Within(0, 1)]

#: What an image goes through, in order. Upload and download are copies between host and device.
PARTS = ("preprocess", "upload", "compute", "download", "postprocess")


@dataclass(frozen=True, repr=False)
class Samples(OneLine):
    """Timed images one by one, in the order of measuring; all lists are equally long.

    Attributes:
        rounds: that the images were timed in; every subject has its turn in every round.
        total_ms: from a decoded image to its detections, by the host's clock.
        parts_ms: the same divided, see :data:`PARTS`; compute and copies by device events where
            there is a device.
        enqueue_ms: host time spent on launching the device's work; empty on a CPU.
    """

    rounds: Annotated[tuple[_Count, ...], Within(1, 1 << 24)]
    total_ms: tuple[_Duration, ...]
    parts_ms: Mapping[str, tuple[_Part, ...]]
    enqueue_ms: tuple[_Part, ...] = ()

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        lists = {"total_ms": self.total_ms, **self.parts_ms}
        for name, samples in lists.items():
            if len(samples) != len(self.rounds):
                raise ValueError(
                    f"{name} has {len(samples)} entries, expected {len(self.rounds)} as rounds has"
                )

    @property
    def total(self) -> Summary:
        """Of whole images, in milliseconds."""
        return summary(self.total_ms)

    def part(self, name: str) -> Summary:
        """Of one part, in milliseconds."""
        return summary(self.parts_ms[name])

    def over(self, reference: Samples, part: str | None = None) -> Ratio:
        """How many times longer this takes than ``reference``: whole images, or one part."""
        ours, theirs = (
            (s.rounds, s.total_ms if part is None else s.parts_ms[part]) for s in (self, reference)
        )
        return ratio(ours, theirs)


@dataclass(frozen=True, repr=False)
class Throughput(OneLine):
    """Runs with one batch size: alone, and as one stage of three that overlap.

    Attributes:
        batch: images a run.
        samples_ms: of each run, copies and compute, without pre- and postprocessing; of images
            with several padded sizes the mean of one run each, by their share.
        reason: why there are none.
        pipelined_ms: a batch, from decoded images to detections with encoded masks: the time of a
            stream of batches (see :meth:`carafe_deploy.pipeline.Pipeline.stream`) over their
            number, from the first one's preprocessing to the last one's postprocessing. Empty in
            results of earlier versions.
    """

    batch: Annotated[int, Within(1, 1 << 16)]
    samples_ms: tuple[_Duration, ...] = ()
    reason: str = ""
    pipelined_ms: tuple[_Duration, ...] = ()

    @property
    def images_per_second(self) -> float | None:
        """Of the runs alone, at the median; None if not measured."""
        return 1e3 * self.batch / summary(self.samples_ms).median if self.samples_ms else None

    @property
    def pipelined_images_per_second(self) -> float | None:
        """From decoded images to detections, at the median stream; None if not measured."""
        return 1e3 * self.batch / summary(self.pipelined_ms).median if self.pipelined_ms else None


@dataclass(frozen=True, repr=False)
class Streamed(OneLine):
    """A stream from JPEG files to detections with encoded masks, its stages overlapping.

    Attributes:
        batch: images a run.
        images: in all.
        seconds: from the first file's decoding to the last one's detections.
        idle: share of them that is left over when each run takes as long as it does alone.
        window_s: seconds from its middle that ``spans`` show.
        spans: when calls of each of :data:`carafe_deploy.pipeline.STAGES` began and ended, in
            seconds from the beginning of the window.
    """

    batch: Annotated[int, Within(1, 1 << 16)]
    images: Annotated[int, Within(1, 1 << 31)]
    seconds: _Duration
    idle: _Share
    window_s: _Part
    spans: Mapping[str, tuple[tuple[_Part, _Part], ...]]

    @property
    def images_per_second(self) -> float:
        """Decoding included."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Cold:
    """A process of its own that opens the artefact and runs it once.

    Attributes:
        load_s: opening it, its packages imported before.
        first_s: the first run.
        peak_memory_mb: most resident memory of that process, in 10^6 bytes.
        import_memory_mb: of which it had this much before opening the artefact.
        device_memory_mb: taken on the GPU; None on a CPU or where nothing tells.
        reason: why there are no figures, which are zero then.
    """

    load_s: _Part = 0.0
    first_s: _Part = 0.0
    peak_memory_mb: _Part = 0.0
    import_memory_mb: _Part = 0.0
    device_memory_mb: _Part | None = None
    reason: str = ""


@dataclass(frozen=True)
class Agreement:
    """Detections of a subject beside those of the first measured one, on the same images.

    Attributes:
        matched: pairs found, see :func:`carafe_deploy.parity.match_detections`.
        total: pairs and those left over on either side.
        max_score_error: largest difference of a pair's scores.
        min_iou: smallest IoU of a pair's boxes; None without pairs.
        min_mask_iou: of a pair's masks; None without masks.
        passed: within :mod:`carafe_deploy.tolerances`; None where neither found anything, so that
            nothing was compared.
    """

    matched: _Count
    total: _Count
    max_score_error: float
    min_iou: _Share | None
    min_mask_iou: _Share | None
    passed: bool | None

    @property
    def state(self) -> str:
        """``"passed"``, ``"failed"`` or ``"nothing compared"``."""
        return state_of(self.passed)

    @property
    def found_again(self) -> str:
        """Pairs of the total, for people."""
        return f"{self.matched} of {self.total}" if self.total else self.state


@dataclass(frozen=True)
class Layer:
    """One row of a profile.

    Attributes:
        name: of the node, module or engine layer.
        kind: operator or layer type, e.g. ``"Conv"``.
        milliseconds: mean of one run.
        operator: the ``carafe`` operator that it belongs to, e.g. ``"CarafeEncoded"``; else empty.
    """

    name: str
    kind: str
    milliseconds: _Part
    operator: str = ""


@dataclass(frozen=True, repr=False)
class Layers(OneLine):
    """Profile of one subject: all rows, most expensive first, or the reason why there are none.

    Times are the mean of ``runs``, by ``source``, e.g. ``"ONNX Runtime's profiler"``.
    """

    source: str
    runs: _Count
    rows: tuple[Layer, ...] = ()
    reason: str = ""

    @property
    def total_ms(self) -> float:
        """Of one run."""
        return sum(row.milliseconds for row in self.rows)

    def share(self, *operators: str) -> float:
        """Of the total, the part of these ``carafe`` operators."""
        spent = sum(row.milliseconds for row in self.rows if row.operator in operators)
        return spent / self.total_ms if self.rows else 0.0


@dataclass(frozen=True, repr=False)
class Subject(OneLine):
    """One artefact in one way of running it.

    Attributes:
        name: unique in its result, for people, e.g. ``"PyTorch fp32, channels-last"``.
        backend: of the runner, e.g. ``"onnxruntime"``.
        device: ``"cpu"`` or ``"cuda"``.
        precision: that it computed in: ``"fp32"``, ``"tf32"``, ``"fp16"`` or ``"bf16"``. Results of
            earlier versions say fp32 where PyTorch and ONNX Runtime used TF32 on a GPU.
        variant: further settings, e.g. ``"compile"``; empty for the usual ones.
        file: name of the artefact's file, of ``file_mb`` 10^6 bytes.
        implementation: of the custom operators: of ONNX Runtime ``"kernels"`` or ``"function
            bodies"``, which ran alone in results of earlier versions; empty for the others.
        build_s: seconds that building it took; None where it does not say.
        status: ``"measured"``, ``"skipped"`` where this machine lacks what it needs, or
            ``"failed"``, which keeps what was measured completely before.
        reason: for the latter two.
        samples: image by image; None unless measured.
        throughput: one entry a batch size.
        streamed: of files, with the batch size of the fastest stream of decoded images; None in
            results of earlier versions, and where there is no throughput.
        cold: from opening to the first result.
        agreement: None for the first measured subject, or where nothing was compared.
        ap: average precision by ``"bbox"`` and ``"segm"``; empty if not evaluated.
        layers: profile; None if not asked for.
        warnings: why a figure may mislead.
    """

    name: str
    backend: str
    device: str
    precision: str
    variant: str
    file: str
    file_mb: _Part
    build_s: _Part | None = None
    status: Annotated[str, OneOf(("measured", "skipped", "failed"))] = "measured"
    reason: str = ""
    samples: Samples | None = None
    throughput: tuple[Throughput, ...] = ()
    cold: Cold | None = None
    agreement: Agreement | None = None
    ap: Mapping[str, float] = field(default_factory=dict)
    layers: Layers | None = None
    warnings: tuple[str, ...] = ()
    implementation: str = ""
    streamed: Streamed | None = None


@dataclass(frozen=True, repr=False)
class SampleDetections(OneLine):
    """What one subject found in one image, best first.

    Boxes are x1, y1, x2, y2 in pixels of the image, labels index the class names, and masks are
    COCO run-length counts of the image's size as text; none without masks.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    labels: tuple[_Count, ...]
    masks: tuple[str, ...] = ()

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        lists = [self.scores, self.labels, *([self.masks] if self.masks else [])]
        if any(len(each) != len(self.boxes) for each in lists):
            raise ValueError(f"{len(self.boxes)} boxes, expected as many scores, labels and masks")


@dataclass(frozen=True, repr=False)
class Sample(OneLine):
    """One image as base64, and by subject what was found in it; height and width in pixels."""

    name: str
    height: Annotated[int, Within(1, 1 << 16)]
    width: Annotated[int, Within(1, 1 << 16)]
    jpeg: str
    found: Mapping[str, SampleDetections]


@dataclass(frozen=True, repr=False)
class BenchResult(OneLine):
    """One run over all subjects.

    Attributes:
        environment: facts by name, see :func:`carafe_deploy.environment.describe_environment`.
        settings: what was asked for, and the rules of warming up and iterating, by name.
        model: name of the model.
        architecture: ``"faster_rcnn"`` or ``"mask_rcnn"``.
        classes: class names by label.
        subjects: in the order given.
        samples: images to show.
        warnings: why all figures may mislead.
        partial: interrupted; what had been measured by then is here.
    """

    environment: Mapping[str, str]
    settings: Mapping[str, str]
    model: str
    architecture: str
    classes: tuple[str, ...]
    subjects: tuple[Subject, ...]
    samples: tuple[Sample, ...] = ()
    warnings: tuple[str, ...] = ()
    partial: bool = False

    @property
    def measured(self) -> tuple[Subject, ...]:
        """Subjects with samples; ratios are over the first."""
        return tuple(subject for subject in self.subjects if subject.samples is not None)


@dataclass(frozen=True, repr=False)
class OperatorRow(OneLine):
    """One implementation of an operator on one workload.

    Attributes:
        operator: ``"carafe"``, ``"roi_align"`` or ``"nms"``.
        workload: where it occurs and its shapes, e.g. ``"neck P3, 256x52x84"``.
        implementation: e.g. ``"CPU kernel"``, ``"PyTorch"``, ``"CUDA kernel"``, ``"mmcv"``.
        entry: torch name of the operator, e.g. ``"carafe_encoded"`` for the fused one.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        layout: ``"nchw"`` or ``"channels-last"``; empty where it has no meaning.
        samples_us: microseconds of each call; empty if ``reason`` says why.
        num_bytes: inputs read and results written once each, from the shapes.
        flops: multiplications and additions, from the shapes; 0 where they depend on the data.
        copy_us: fastest copy of ``num_bytes`` on the device, in the same run; 0 if not measured.
        max_error: largest difference from the reference, over its largest magnitude; None where
            nothing is to subtract.
        reason: why it was not measured.
    """

    operator: str
    workload: str
    implementation: str
    entry: str
    dtype: str
    layout: str
    samples_us: tuple[_Duration, ...] = ()
    num_bytes: _Count = 0
    flops: _Count = 0
    copy_us: _Part = 0.0
    max_error: float | None = None
    reason: str = ""

    @property
    def median_us(self) -> float | None:
        """None if not measured."""
        return summary(self.samples_us).median if self.samples_us else None

    @property
    def gigabytes_per_second(self) -> float | None:
        """``num_bytes`` over the median time."""
        return None if self.median_us is None else self.num_bytes / self.median_us / 1e3

    @property
    def gigaflops(self) -> float | None:
        """``flops`` over the median time, in 10^9 a second."""
        return None if self.median_us is None else self.flops / self.median_us / 1e3


@dataclass(frozen=True, repr=False)
class OperatorsResult(OneLine):
    """One run over implementations and workloads.

    Attributes:
        environment: as in :class:`BenchResult`.
        settings: likewise.
        device: ``"cpu"`` or the GPU's name.
        cache: ``"cold"`` if caches were flushed before every call, else ``"warm"``.
        copy_bytes_per_second: read and written, of a copy much larger than the caches.
        flops_per_second: of a float32 matrix product without tensor cores.
        rows: in the order measured.
        partial: interrupted.
    """

    environment: Mapping[str, str]
    settings: Mapping[str, str]
    device: str
    cache: str
    copy_bytes_per_second: _Duration
    flops_per_second: _Duration
    rows: tuple[OperatorRow, ...]
    partial: bool = False

    def floor_us(self, row: OperatorRow) -> float:
        """No implementation is faster: the longer of copying its bytes and computing its flops."""
        return max(row.copy_us, 1e6 * row.flops / self.flops_per_second)
