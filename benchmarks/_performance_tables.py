"""Tables of docs/performance.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carafe_deploy.bench.record import BenchResult, OperatorRow, OperatorsResult

_P4_TO_P3 = "neck P4 to P3, 256x52x84"
#: Architecture of the H100 and H200.
_SM = 90


def cpu_targets(operators: OperatorsResult, detector: BenchResult) -> str:
    """What was aimed at on the CPU, and what it is."""

    def row(workload: str, implementation: str, entry: str) -> OperatorRow:
        return next(
            row
            for row in operators.rows
            if (row.workload, row.implementation, row.entry, row.dtype, row.layout)
            == (workload, implementation, entry, "float32", "nchw")
        )

    def microseconds(of: OperatorRow) -> float:
        assert of.median_us is not None
        return of.median_us

    plain = row(_P4_TO_P3, "CPU kernel", "carafe")
    fused = row(_P4_TO_P3, "CPU kernel", "carafe_encoded")
    apart = row(_P4_TO_P3, "CPU kernel, unfused", "carafe_encoded")
    over = [microseconds(one) / operators.floor_us(one) for one in (plain, fused)]
    gain = microseconds(apart) / microseconds(fused)
    shares = {
        subject.name: _share_of_carafe(subject.layers.rows)
        for subject in detector.measured
        if subject.layers is not None
    }
    torch = [f"{share:.1f} %" for name, share in shares.items() if name.startswith("PyTorch")]
    onnx = [f"{share:.1f} %" for name, share in shares.items() if name.startswith("ONNX Runtime")]
    lines = [
        f"| {operators.environment['processor']} | aim | measured | with |",
        "|---|---:|---:|---|",
        f"| Carafe and CarafeEncoded, 256x52x84 to 104x168, float32, over the floor | at most 3 | "
        f"{over[0]:.1f} and {over[1]:.1f} | `carafe-deploy bench --op carafe` |",
        f"| CarafeEncoded against shuffle and softmax in PyTorch and our Carafe | at least 1.3 | "
        f"{gain:.1f} | the same |",
        f"| CARAFE's share of Mask R-CNN R-50 at 832x1344, PyTorch eager | at most 2 % | "
        f"{' and '.join(torch)} | `python benchmarks/bench.py mask_r50` |",
        f"| … in ONNX Runtime | at most 12 % | {' and '.join(onnx)} | the same |",
    ]
    return "\n".join(lines)


def _share_of_carafe(rows: Iterable[Any]) -> float:
    times = [(row.milliseconds, row.operator == "CarafeEncoded") for row in rows]
    return 100 * sum(time for time, ours in times if ours) / sum(time for time, _ in times)


def designs(traffic: Mapping[str, Any], static: Mapping[str, Any]) -> str:
    """CARAFE's designs on one map: bytes counted, and what the compiler made of them."""
    kernels: dict[tuple[str, str], Mapping[str, Any]] = {}
    for kernel in static["kernels"]:
        # The fused entry is what detectors run.
        if kernel["architecture"] == _SM and kernel["design"] and "false" not in kernel["kernel"]:
            kernels[kernel["design"], _dtype_of(kernel["kernel"])] = kernel
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for case in traffic["cases"]:
        if (case["operator"], case.get("shape")) == ("CarafeEncoded", "1x256x52x84"):
            groups[case["layout"], case["dtype"]].append(case)
    lines = [
        "| layout, type | design | L1 cycles for one of arithmetic | MB from L2 | over the least | "
        "registers | occupancy | 16-byte loads, stores | local memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (layout, dtype), cases in groups.items():
        for case in cases:
            kernel = kernels[case["design"], dtype]
            flows = [flow for array in case["arrays"].values() for flow in array.values()]
            moved = sum(flow.get("l2_bytes", 0) for flow in flows)
            least = sum(flow.get("memory_bytes", 0) for flow in flows)
            name = f"**{case['design']}**" if case["chosen"] else case["design"]
            wide = [
                sum(kernel[kind].get("128", 0) for kind in kinds)
                for kinds in (("LDG", "LDS"), ("STG", "STS"))
            ]
            lines.append(
                f"| {layout}, {dtype} | {name} | "
                f"{case['l1_cycles_for_one_of_arithmetic']['all']:.2f} | {moved / 1e6:.1f} | "
                f"{moved / least:.2f} | {kernel['registers']} | {kernel['occupancy']:.0%} | "
                f"{wide[0]}, {wide[1]} | {kernel['local_loads_and_stores']} |"
            )
    return "\n".join(lines)


def _dtype_of(kernel: str) -> str:
    names = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}
    return names[kernel.partition("<")[2].partition(",")[0].rstrip(">")]
