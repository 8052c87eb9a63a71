"""Results made up, as large and as odd as real ones can be. None of these numbers was measured.

    python tests/report/synthetic.py FOLDER

writes them as files, to look at a report made of them.
"""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from carafe_deploy.bench.agreement import as_record
from carafe_deploy.bench.record import (
    PARTS,
    Agreement,
    BenchResult,
    Cold,
    Layer,
    Layers,
    OperatorRow,
    OperatorsResult,
    Sample,
    SampleDetections,
    Samples,
    Subject,
    Throughput,
)
from carafe_deploy.bench.result_file import write_result
from carafe_deploy.coco import from_results, load_annotations
from carafe_deploy.data import data_path
from carafe_deploy.parity import ParityReport, ParityRow
from carafe_deploy.types import Detections

CLASSES = ("circle", "square", "triangle")
MADE_UP = "made up by tests/report/synthetic.py"
CPU = {
    "carafe-deploy": "0.1.0",
    "Python": "3.11.7",
    "system": "Linux-6.1-x86_64-with-glibc2.36",
    "processor": "Imaginary CPU 9000, 2 cores",
    "GPU": "none (there is no nvidia-smi)",
    "NumPy": "2.4.6",
    "torch": "2.14.1+cpu (CPU only, 0 devices)",
    "ONNX Runtime": "1.32.0 (CPUExecutionProvider)",
    "tensorrt": "not installed",
    "tensorrt-rtx-cu13": "not installed",
    "pycuda": "not installed",
    "libcarafe_kernels.so": "libcarafe_kernels.so (SHA-256 0123456789abcdef)",
    "commit": "0123456789abcdef0123456789abcdef01234567 with uncommitted changes",
    "date": "2026-01-02T03:04:05+00:00",
    "data": MADE_UP,
}
GPU = {
    **CPU,
    "processor": "Imaginary Server CPU 7000, 16 cores",
    "GPU": "Imaginary GPU 80GB, 9.0, 590.00.00",
    "torch": "2.14.1+cu130 (CUDA 13.0, 1 devices)",
    "ONNX Runtime": "1.32.0 (CUDAExecutionProvider, CPUExecutionProvider)",
    "tensorrt": "10.14.1",
}
SETTINGS = {
    "device": "cpu",
    "images": "8 (100x150, 120x160, 160x160 pixels, height x width)",
    "warm-up": "2 runs of every image",
    "turns": "20 rounds, in each every subject in random order times 8 images one by one, after "
    "one that is not timed; 0.02 s pause before",
    "outliers": "kept",
    "latency": "from a decoded image to detections with encoded masks",
    "throughput": "5 runs a batch size, without pre- and postprocessing",
    "threads": "chosen by the runtimes",
    "seed": "0",
}
AGREE = Agreement(91, 91, 2.1e-5, 0.9997, 0.9981, passed=True)
HALF = Agreement(89, 92, 1.3e-2, 0.9761, 0.9512, passed=True)


def samples(
    milliseconds: float,
    *,
    seed: int,
    spread: float = 0.02,
    outliers: int = 0,
    rounds: int = 20,
    block: int = 8,
    copies: float = 0.0,
    is_gpu: bool = False,
) -> Samples:
    """Right-skewed samples, some of them slow for no reason."""
    generator = np.random.default_rng(seed)
    count = rounds * block
    noise = np.abs(generator.normal(0, spread, count)) + generator.normal(0, spread / 4, count)
    compute = milliseconds * (1 + noise)
    compute[generator.choice(count, outliers, replace=False)] *= 1.6
    fixed = 1.4 * (1 + np.abs(generator.normal(0, 0.05, count)))
    parts = {
        "preprocess": fixed,
        "upload": np.full(count, copies),
        "compute": compute,
        "download": np.full(count, copies / 4),
        "postprocess": 0.6 * fixed,
    }
    total = np.sum(list(parts.values()), axis=0)
    return Samples(
        rounds=tuple(number for number in range(rounds) for _ in range(block)),
        total_ms=tuple(total.tolist()),
        parts_ms={name: tuple(parts[name].tolist()) for name in PARTS},
        enqueue_ms=tuple((0.7 * compute).tolist()) if is_gpu else (),
    )


def throughput(milliseconds: float, batches: Sequence[int] = (1, 2, 4)) -> tuple[Throughput, ...]:
    """Runs that gain a little from every doubling."""
    return tuple(
        Throughput(batch, tuple(milliseconds * batch**0.8 * (1 + 0.01 * i) for i in range(5)))
        for batch in batches
    )


def layers(total: float, source: str) -> Layers:
    """A profile of a detector."""
    rows = [
        Layer("neck.upsample.2/carafe", "CarafeEncoded", 0.06 * total, "CarafeEncoded"),
        Layer("neck.upsample.1/carafe", "CarafeEncoded", 0.015 * total, "CarafeEncoded"),
        Layer("roi_extractor", "MultilevelRoiAlign", 0.04 * total, "MultilevelRoiAlign"),
        Layer("rpn_head.nms", "BatchedNms", 0.03 * total, "BatchedNms"),
    ]
    rest = total - sum(row.milliseconds for row in rows)
    weights = 0.8 ** np.arange(30)
    rows += [
        Layer(f"backbone.layer{1 + i % 4}.{i // 4}.conv{1 + i % 3}", "Conv", float(rest * weight))
        for i, weight in enumerate(weights / weights.sum())
    ]
    rows.sort(key=lambda row: -row.milliseconds)
    return Layers(source, 5, tuple(rows))


def recorded(kind: str = "mask_rcnn") -> list[tuple[str, bytes, Detections]]:
    """Name, file and mmdetection's detections of images that come with the package."""
    annotations = load_annotations(data_path("shapes", "val.json"))
    suffix = "segm" if kind == "mask_rcnn" else "bbox"
    path = data_path("shapes", f"shapes_{kind}_carafe.val.{suffix}.json")
    found = from_results(path, annotations, CLASSES)
    return [
        (
            entry["file_name"],
            data_path("shapes", "val", entry["file_name"]).read_bytes(),
            found[entry["id"]],
        )
        for entry in annotations["images"][:2]
    ]


def spoilt(found: SampleDetections) -> SampleDetections:
    """The first detection is of another class, the second has moved, the last is lost."""
    boxes, labels = list(found.boxes), list(found.labels)
    labels[0] = (labels[0] + 1) % len(CLASSES)
    if len(boxes) > 2:
        boxes[1] = tuple(value + 12 for value in boxes[1])  # type: ignore[assignment]
    keep = max(len(boxes) - 1, 1)
    return SampleDetections(
        tuple(boxes[:keep]), found.scores[:keep], tuple(labels[:keep]), found.masks[:keep]
    )


def shown(subjects: Sequence[Subject], kind: str) -> tuple[Sample, ...]:
    """What the measured subjects found; the half-precise ones differ."""
    made = []
    for name, content, found in recorded(kind):
        height, width = found.image_size
        plain = as_record(found)
        made.append(
            Sample(
                name=name,
                height=height,
                width=width,
                jpeg=base64.b64encode(content).decode("ascii"),
                found={
                    subject.name: spoilt(plain) if subject.precision == "fp16" else plain
                    for subject in subjects
                    if subject.samples is not None
                },
            )
        )
    return tuple(made)


def subject(
    name: str,
    backend: str,
    milliseconds: float,
    seed: int,
    *,
    precision: str = "fp32",
    device: str = "cpu",
    agreement: Agreement | None = AGREE,
    ap: Mapping[str, float] | None = None,
    source: str = "torch.profiler",
    **facts: object,
) -> Subject:
    """A subject that was measured."""
    is_gpu = device == "cuda"
    noise = {name: facts.pop(name) for name in ("copies", "spread", "outliers") if name in facts}
    base = Subject(
        *(name, backend, device, precision),
        variant=name.partition(", ")[2],
        file={"pytorch": "model.pth", "onnxruntime": "model.onnx"}.get(backend, "model.engine"),
        file_mb=178.4 if precision == "fp32" else 89.9,
        samples=samples(milliseconds, seed=seed, is_gpu=is_gpu, **noise),
        throughput=throughput(milliseconds, (1, 2, 4, 8) if is_gpu else (1, 2, 4)),
        cold=Cold(0.8 + seed / 10, 1.5, 912.4 + 10 * seed, 421.0, 2310.5 if is_gpu else None),
        agreement=agreement,
        ap=_ap(0.7379, 0.7700) if ap is None else ap,
        layers=layers(milliseconds, source),
    )
    return dataclasses.replace(base, **facts)  # type: ignore[arg-type]


def _ap(boxes: float, masks: float) -> dict[str, float]:
    return {"bbox": boxes, "segm": masks}


def skipped(name: str, backend: str, reason: str, status: str = "skipped") -> Subject:
    """A subject that was not measured."""
    return Subject(
        name, backend, "cuda", "fp16", "", "model.engine", 95.0, status=status, reason=reason
    )


def tiny_bench() -> BenchResult:
    """Two backends and five rounds of exact numbers: no chance, and nothing to draw."""
    rounds = tuple(range(5))

    def exact(milliseconds: float) -> Samples:
        total = tuple(milliseconds + offset for offset in (0.0, 0.5, -0.5, 1.0, -1.0))
        compute = tuple(value - 2.0 for value in total)
        parts = {"preprocess": (1.25,) * 5, "compute": compute, "postprocess": (0.75,) * 5}
        return Samples(rounds, total, parts)

    first = Subject(
        *("PyTorch fp32", "pytorch", "cpu", "fp32", "", "model.pth", 178.25),
        samples=exact(50.0),
        throughput=(Throughput(1, (48.0,)), Throughput(2, (80.0,))),
        cold=Cold(0.5, 0.25, 900.0, 400.0),
        ap={"bbox": 0.75},
    )
    second = Subject(
        *("ONNX Runtime fp32", "onnxruntime", "cpu", "fp32", "", "model.onnx", 178.5),
        samples=exact(25.0),
        throughput=(Throughput(1, (23.0,)), Throughput(2, reason="no memory is left")),
        cold=Cold(reason="it was killed"),
        agreement=Agreement(90, 91, 1e-5, 0.9995, None, passed=True),
        ap={"bbox": 0.7499},
        warnings=("p99 of 5 samples is little more than their maximum",),
    )
    missing = skipped("TensorRT fp16", "tensorrt", "TensorRT is not installed: pip install it")
    return BenchResult(
        environment=CPU,
        settings={"images": "1 (100x150 pixels, height x width)", "outliers": "kept"},
        model="model",
        architecture="faster_rcnn",
        classes=CLASSES,
        subjects=(first, second, missing),
    )


def cpu_bench(kind: str = "mask_rcnn") -> BenchResult:
    """PyTorch, TorchScript and ONNX Runtime on two cores; TensorRT is not there."""
    ap = _ap(0.7379, 0.7700) if kind == "mask_rcnn" else {"bbox": 0.7433}
    masks = {} if kind == "mask_rcnn" else {"min_mask_iou": None}
    agree = dataclasses.replace(AGREE, **masks)  # type: ignore[arg-type]
    known = {"agreement": agree, "ap": ap}
    source = "ONNX Runtime's profiler"
    subjects = (
        subject("PyTorch fp32", "pytorch", 41.2, 1, agreement=None, ap=ap, outliers=3),
        subject("PyTorch fp32, channels-last", "pytorch", 40.9, 2, **known),
        subject("TorchScript fp32", "torchscript", 38.5, 3, **known),
        subject("ONNX Runtime fp32", "onnxruntime", 24.6, 4, outliers=1, source=source, **known),
        skipped("TensorRT fp16", "tensorrt", "TensorRT is not installed: pip install tensorrt"),
    )
    return BenchResult(
        environment=CPU,
        settings=SETTINGS,
        model=f"shapes_{kind}_carafe",
        architecture=kind,
        classes=CLASSES,
        subjects=subjects,
        samples=shown(subjects, kind),
    )


def gpu_bench() -> BenchResult:
    """Ten ways on a GPU, with everything that can go wrong."""
    kind = "mask_rcnn"
    gpu = {"device": "cuda", "copies": 0.35}
    half = {**gpu, "precision": "fp16", "agreement": HALF}
    trt = {"source": "TensorRT", "build_s": 141.7}
    wrong = dataclasses.replace(HALF, matched=71, total=101, passed=False)
    no_names = Layers("TensorRT", 5, reason="layers inside a CUDA graph have no names")
    wide = "varies by 14% around its mean: measure longer, on a quieter machine"
    bound = (
        "bound by launching: the host takes 4.90 ms to launch what computes for 5.10 ms; "
        "try CUDA graphs"
    )
    full = (*throughput(45.0), Throughput(8, reason="CUDA out of memory: 61.2 of 80 GB are in use"))
    source = "ONNX Runtime's profiler"
    subjects = (
        subject("PyTorch fp32", "pytorch", 48.0, 1, **gpu, agreement=None),
        subject(
            "PyTorch fp32, cuda-graph", "pytorch", 31.0, 2, **gpu, warnings=(wide,), spread=0.2
        ),
        subject("PyTorch fp16, channels-last", "pytorch", 27.0, 3, **half, ap=_ap(0.7371, 0.7688)),
        subject("PyTorch fp16, compile", "pytorch", 22.0, 4, **half),
        subject("TorchScript fp32", "torchscript", 45.0, 5, **gpu, outliers=6, throughput=full),
        subject("ONNX Runtime fp32", "onnxruntime", 35.0, 6, **gpu, source=source),
        subject("TensorRT fp32", "tensorrt", 12.4, 7, **gpu, **{**trt, "build_s": 93.1}),
        subject(
            *("TensorRT fp16", "tensorrt", 5.1, 8),
            **{**half, **trt, "ap": _ap(0.7369, 0.7691), "warnings": (bound,)},
        ),
        subject(
            *("TensorRT fp16, cuda-graph", "tensorrt", 4.6, 9),
            **{**half, **trt, "ap": _ap(0.6121, 0.6402), "agreement": wrong, "layers": no_names},
        ),
        skipped("ONNX Runtime fp16, tensorrt provider", "onnxruntime", "no such provider is built"),
        skipped(
            "TensorRT-RTX fp16",
            "tensorrt_rtx",
            "model.engine was built for compute capability 7.5, this GPU has 9.0: build it again",
            "failed",
        ),
    )
    return BenchResult(
        environment=GPU,
        settings={**SETTINGS, "device": "cuda"},
        model="mask_rcnn_r50_fpn_carafe_1x_coco",
        architecture=kind,
        classes=CLASSES,
        subjects=subjects,
        samples=shown(subjects, kind),
        warnings=(
            "other programs kept 9.3 of 16 cores busy when this began: close them, and measure "
            "again",
        ),
    )


def partial_bench() -> BenchResult:
    """Interrupted after two rounds; the last subject had none."""
    whole = cpu_bench("faster_rcnn")
    first, second, *others = whole.subjects
    nothing = {"throughput": (), "cold": None, "layers": None}
    cut = [
        dataclasses.replace(each, samples=samples(40.0, seed=11 + i, rounds=2), ap={}, **nothing)
        for i, each in enumerate((first, second))
    ]
    told = {"status": "skipped", "reason": "interrupted before its turn"}
    late = dataclasses.replace(others[1], samples=None, **nothing, **told)
    return dataclasses.replace(whole, subjects=(*cut, late), samples=(), partial=True)


def operators(device: str = "cpu") -> OperatorsResult:
    """CARAFE, RoIAlign and NMS of several implementations."""
    generator = np.random.default_rng(5)
    cpu = device == "cpu"
    bandwidth, peak = (22e9, 130e9) if cpu else (2.9e12, 51e12)
    kernel, others = ("CPU kernel", ("PyTorch",)) if cpu else ("CUDA kernel", ("mmcv", "PyTorch"))
    rows = []

    def add(
        operator: str, workload: str, entry: str, dtype: str, layout: str, size: int, flops: int
    ) -> None:
        copy_us = 1e6 * size / bandwidth + (2 if cpu else 1.5)
        floor = max(copy_us, 1e6 * flops / peak)
        for name, slow in ((kernel, 1.7), *((each, 9.0 + 20 * i) for i, each in enumerate(others))):
            times = floor * slow * (1 + np.abs(generator.normal(0, 0.03, 30)))
            lacks = name == "mmcv" and dtype == "bfloat16"
            rows.append(
                OperatorRow(
                    *(operator, workload, name, entry, dtype, layout),
                    samples_us=() if lacks else tuple(times.tolist()),
                    num_bytes=size,
                    flops=flops,
                    copy_us=copy_us,
                    max_error=None if lacks or operator == "nms" else 3.1e-7,
                    reason="mmcv has no bfloat16 kernel" if lacks else "",
                )
            )

    for level, height, width in (("P5", 13, 21), ("P4", 26, 42), ("P3", 52, 84), ("P2", 104, 168)):
        count = 256 * height * width * 4
        for entry, dtype in (
            ("carafe", "float32"),
            ("carafe_encoded", "float32"),
            ("carafe_encoded", "float16"),
            ("carafe_encoded", "bfloat16"),
        ):
            size = (count // 4 + count + 100 * height * width) * (4 if dtype == "float32" else 2)
            layout = "channels-last" if dtype == "float16" else "nchw"
            shape = f"neck {level}, 256x{height}x{width}"
            add("carafe", shape, entry, dtype, layout, size, 50 * count)
    roi = ("multilevel_roi_align", "float32", "nchw")
    add("roi_align", "box head, 1000 RoIs", *roi, 143_000_000, 720_000_000)
    add("roi_align", "mask head, 100 RoIs", *roi, 98_000_000, 288_000_000)
    add("nms", "RPN, 5x1000 boxes", "batched_nms", "float32", "", 100_000, 0)
    add("nms", "box head, 80x1000 boxes", "batched_nms", "float32", "", 1_600_000, 0)
    return OperatorsResult(
        environment=CPU if cpu else GPU,
        settings={"rounds": "10", "calls a round": "3", "threads": "2", "data": MADE_UP},
        device="cpu" if cpu else "Imaginary GPU 80GB",
        cache="warm" if cpu else "cold",
        copy_bytes_per_second=bandwidth,
        flops_per_second=peak,
        rows=tuple(rows),
    )


def parity(*, passed: bool = True, candidate: str = "onnxruntime fp32 shapes") -> ParityReport:
    """All four levels; the last stage can be off."""

    def row(level: str, name: str, measure: str, **facts: object) -> ParityRow:
        plain = ParityRow(level, name, 2e-6, 1e-6, None, None, 5e-5, measure, True)
        return dataclasses.replace(plain, **facts)  # type: ignore[arg-type]

    stages = [row("stages", f"{name}", "relative") for name in ("C2", "C3", "C4", "C5", "P2")]
    bad = {} if passed else {"max_rel_error": 0.31, "max_abs_error": 4.2, "passed": False}

    def matched(level: str, name: str, count: int, limit: float, **facts: object) -> ParityRow:
        total = 1000 if count == 997 else count
        counts = {"matched": count, "total": total, "tolerance": limit, "max_rel_error": None}
        return row(level, name, "matched", **counts, **facts)

    average = {"max_abs_error": 1e-5, "max_rel_error": None, "tolerance": 5e-4}
    found = {"reference": 0.7379, "candidate": 0.73791}
    return ParityReport(
        rows=(
            row("operators", "carafe_encoded [1, 64, 8, 8]", "relative"),
            matched("operators", "batched_nms", 100, 1.0, max_abs_error=None),
            *stages,
            row("stages", "P6", "relative", **bad),
            matched("stages", "proposals", 997, 0.995, max_abs_error=0.002),
            matched("detections", "boxes and masks", 91, 0.999, note="same class, IoU >= 0.999"),
            row("ap", "box AP", "absolute", **average, details=found),
        ),
        reference="pytorch fp32 shapes",
        candidate=candidate,
        images=8,
        seed=0,
        skipped={} if passed else {"ap": "there are no annotations"},
    )


def main(folder: Path) -> None:
    """Write everything."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "bench_gpu": gpu_bench(),
        "bench_cpu_mask": cpu_bench(),
        "bench_cpu_faster": cpu_bench("faster_rcnn"),
        "bench_partial": partial_bench(),
        "operators_cpu": operators(),
        "operators_gpu": operators("cuda"),
    }
    for name, result in results.items():
        write_result(folder / f"{name}.json", result)
    for name, passed in (("parity", True), ("parity_failed", False)):
        (folder / f"{name}.json").write_text(parity(passed=passed).to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
