"""Tables of what an H100 measured, from benchmarks/results/h100/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from _markdown import table

from carafe_deploy.operators import TITLES

if TYPE_CHECKING:
    from carafe_deploy.bench.record import OperatorsResult

#: Kernels by a part of their name -> what they do; the first that fits counts.
KINDS = (
    ("convolutions, matrix products", ("xmma", "nvjet", "cutlass", "gemm", "cudnn")),
    ("CARAFE, RoIAlign, NMS", ("carafe::",)),
    ("biases and shortcuts added", ("CUDAFunctor_add",)),
    ("ReLU, clipping", ("clamp",)),
    ("top-k, sort, gather, scatter", ("topk", "Sort", "scatter_gather", "vectorized_gather")),
)
REST = "other kernels"


def detectors(measured: Mapping[str, Any], compiled: Mapping[str, Any]) -> str:
    """R-50 detectors at 832x1344: one forward pass, and images from pixels to encoded masks."""
    rows = measured["rows"]

    def row(
        title: str, one: float, eight: float | None = None, stream: float | None = None
    ) -> list[str]:
        return [
            title,
            f"{one:.2f}",
            f"{1000 / one:.0f}",
            "–" if eight is None else f"{8000 / eight:.0f}",
            "–" if stream is None else f"{stream:.0f}",
        ]

    def runner(title: str, key: str) -> list[str]:
        one, eight = rows[f"{key} b1"], rows.get(f"{key} b8")
        return row(
            title,
            one["compute_ms"],
            None if eight is None else eight["compute_ms"],
            one.get("stream_fps"),
        )

    lines = [
        runner("Mask R-CNN, fp32 (TF32 convolutions), eager, NCHW", "mask fp32 eager nchw"),
        runner("… CUDA graph, channels-last", "mask fp32 cuda-graph nhwc"),
        runner("Mask R-CNN, fp16, eager, channels-last", "mask fp16 eager nhwc"),
        runner("… CUDA graph, NCHW", "mask fp16 cuda-graph nchw"),
        runner("… CUDA graph, channels-last", "mask fp16 cuda-graph nhwc"),
        row(
            "… `torch.compile` captured in a CUDA graph",
            compiled["compile b1"]["graph_ms"],
            compiled["compile b8"]["graph_ms"],
        ),
        runner("Mask R-CNN, bf16, CUDA graph, channels-last", "mask bf16 cuda-graph nhwc"),
        row(
            "torchvision's Mask R-CNN, plain upsampling, fp32, eager",
            rows["torchvision maskrcnn fp32 b1"]["ms"],
        ),
        runner("Faster R-CNN, fp32 (TF32 convolutions), eager, NCHW", "faster fp32 eager nchw"),
        runner("Faster R-CNN, fp16, eager, channels-last", "faster fp16 eager nhwc"),
        runner("… CUDA graph, channels-last", "faster fp16 cuda-graph nhwc"),
    ]
    heads = [
        "R-50, 832x1344, H100",
        "ms a pass",
        "images/s",
        "images/s, batch 8",
        "images/s, pixels to masks",
    ]
    return table(heads, lines)


def carafe(peer: Mapping[str, Any]) -> str:
    """CARAFE from the encoder's output beside mmcv's, microseconds of a replay, cold caches."""
    times = peer["times_us"]
    lines = []
    for key, title in (
        ("P6", "P6 to P5, 256x13x21"),
        ("P5", "P5 to P4, 256x26x42"),
        ("P4", "P4 to P3, 256x52x84"),
        ("P3", "P3 to P2, 256x104x168"),
        ("mask256", "100 RoIs, 256x14x14"),
        ("mask1", "100 RoIs, 1x14x14"),
    ):
        for dtype in ("fp32", "fp16"):
            row = times[f"{key} {dtype}"]
            last, planes, other = (
                row[name] for name in ("ours nhwc cold", "ours nchw cold", "mmcv pack cold")
            )
            lines.append(
                [
                    f"CARAFE, {title}, {dtype}",
                    *(f"{time:.1f}" for time in (row["floor_us"], last, planes, other)),
                    f"{other / last:.1f}",
                ]
            )
    heads = ["µs, H100", "floor", "ours, channels-last", "ours, NCHW", "mmcv", "mmcv over ours"]
    return table(heads, lines)


def others(measured: OperatorsResult) -> str:
    """All but CARAFE, beside torchvision's if there is one: microseconds of a call, cold caches."""
    lines = []
    cases = dict.fromkeys((row.operator, row.workload) for row in measured.rows)
    for operator, workload in cases:
        if operator == "carafe":
            continue
        times = {
            (row.implementation, row.dtype, row.layout): f"{row.median_us:.0f}"
            for row in measured.rows
            if (row.operator, row.workload) == (operator, workload) and row.median_us
        }
        ours = [
            times.get(("CUDA kernel", dtype, layout), "–")
            for dtype in ("float32", "float16")
            for layout in ("channels-last", "nchw")
        ]
        if ("CUDA kernel", "float32", "") in times:  # no feature maps, no layouts
            half = times.get(("CUDA kernel", "float16", ""), "–")
            ours = [times["CUDA kernel", "float32", ""], "–", half, "–"]
        peers = [time for (name, *_), time in times.items() if name == "torchvision"]
        lines.append([f"{TITLES[operator]}, {workload}", *ours, *(peers or ["–"])])
    heads = [
        "µs, H100",
        "fp32, channels-last",
        "fp32, NCHW",
        "fp16, channels-last",
        "fp16, NCHW",
        "torchvision, fp32",
    ]
    return table(heads, lines)


def onnxruntime(measured: Mapping[str, Any]) -> str:
    """The ONNX file in ONNX Runtime on CUDA, by its function bodies."""
    lines = []
    for title, key, images in (
        ("fp16, static", "speed mask b1 fp16 default", 1),
        ("fp16, static, channels-last inside", "speed mask b1 fp16 nhwc", 1),
        ("fp16, static, batch 8", "speed mask b8 fp16", 8),
        ("fp16, dynamic", "speed mask dyn fp16", 1),
        ("fp32, static, TF32", "speed mask b1 fp32 default", 1),
        ("fp32, static", "speed mask b1 fp32 no tf32", 1),
    ):
        row = measured[key]
        lines.append(
            [title, f"{row['ms']:.1f}", f"{images * 1000 / row['ms']:.0f}", f"{row['MB']}"]
        )
    heads = ["Mask R-CNN R-50 in ONNX Runtime, H100", "ms", "images/s", "memory MB"]
    return table(heads, lines)


def tf32(measured: Mapping[str, Any]) -> str:
    """What TF32 and half types change: mmdetection's float32 detections found again."""
    lines = []
    for title, key in (
        ("Mask R-CNN, fp32", "golden mask fp32 no tf32"),
        ("Mask R-CNN, fp32, TF32", "golden mask fp32 default"),
        ("Mask R-CNN, fp16", "golden mask fp16"),
        ("Faster R-CNN, fp32", "golden faster fp32 no tf32"),
    ):
        row = measured[key]
        masks = f"{row['mask_iou_mean']:.3f}" if "mask_iou_mean" in row else "–"
        lines.append(
            [title, f"{row['paired']} of {row['golden']}", f"{row['box_px']:.2g} px", masks]
        )
    heads = ["R-50, seeded weights, H100", "found again", "boxes off by up to", "mean mask IoU"]
    return table(heads, lines)


def shares(measured: Mapping[str, Any]) -> str:
    """Time of a forward pass by what its kernels do."""
    heads = ["GPU time of a pass", "ms", "launches", *(kind for kind, _ in KINDS), REST]
    lines = []
    for title, key in (
        ("Mask R-CNN, fp16, channels-last", "mask fp16 eager nhwc kernels us"),
        ("Mask R-CNN, fp32 (TF32), NCHW", "mask fp32 eager nchw kernels us"),
        ("Faster R-CNN, fp16, channels-last", "faster fp16 eager nhwc kernels us"),
    ):
        row = measured["rows"][key]
        times = kernel_times(row["top"], row["total"])
        lines.append(
            [
                title,
                f"{row['total'] / 1000:.2f}",
                f"{row['count']:.0f}",
                *(f"{100 * time / row['total']:.0f} %" for time in times.values()),
            ]
        )
    return table(heads, lines)


def kernel_times(named: Iterable[tuple[str, float, float]], total: float) -> dict[str, float]:
    """Microseconds of each of :data:`KINDS`; what is not named belongs to the rest."""
    times = dict.fromkeys((*(kind for kind, _ in KINDS), REST), 0.0)
    for name, time, _ in named:
        kind = next((kind for kind, parts in KINDS if any(p in name for p in parts)), REST)
        times[kind] += time
    times[REST] += total - sum(times.values())
    return times


def designs(measured: Mapping[str, Any]) -> str:
    """Microseconds of CARAFE's designs on the detectors' maps, cold caches; the fastest in bold."""
    calls: dict[tuple[str, str, str], dict[str, float]] = {}
    for call in measured["calls"]:
        if call["dtype"] != "bfloat16":
            key = call["shape"], call["layout"], call["dtype"]
            calls.setdefault(key, {})[call["design"]] = call["cold_median_us"]
    names = list(dict.fromkeys(name for times in calls.values() for name in times))
    lines = []
    for (shape, layout, dtype), times in calls.items():
        best = min(times.values())
        cells = ["–" if name not in times else f"{times[name]:.1f}" for name in names]
        cells = [
            f"**{cell}**" if times.get(name) == best else cell
            for name, cell in zip(names, cells, strict=True)
        ]
        lines.append([f"{shape}, {layout}, {dtype}", *cells])
    return table(["µs, H100", *names], lines)


#: Kernels shorter than this wait for their launch.
_LONG_US = 10


def counters(ncu: Mapping[str, Any]) -> str:
    """What limits the kernels, by Nsight Compute."""
    lines = []
    for kernel in ncu["kernels"]:
        if float(kernel["Duration"]) < _LONG_US:
            continue
        lines.append(
            [
                f"`{kernel['kernel']}`, {kernel['grid'].split(',')[0]} blocks",
                kernel["Duration"],
                *(
                    f"{float(kernel[name]):.0f} %"
                    for name in (
                        "DRAM Throughput",
                        "L2 Cache Throughput",
                        "L1/TEX Cache Throughput",
                        "Issue Slots Busy",
                        "Achieved Occupancy",
                    )
                ),
                kernel["Registers Per Thread"],
                kernel["Eligible Warps Per Scheduler"],
            ]
        )
    heads = [
        "kernel",
        "µs",
        "DRAM",
        "L2",
        "L1",
        "issue",
        "occupancy",
        "registers",
        "eligible warps",
    ]
    return table(heads, lines)
