"""Count what the CUDA kernels move and what they compile to; needs no GPU.

    python benchmarks/kernel_report.py BUILD

BUILD holds bin/carafe_traffic and lib/libcarafe_kernels.so, as `make kernel-report` makes them.
Writes results/kernel_traffic.json, what emulated kernels read and write on a detector's shapes
(plugins/emulator/traffic.h says how it is counted), and results/kernel_static.json: registers,
local memory, occupancy and instructions of every kernel and architecture. Prints CARAFE's designs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, argument_parser, write_result

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "plugins/tests"))

import machine_code  # noqa: E402

#: Kernel -> CARAFE's design. Template arguments are the element type, k, s, whether masks are
#: encoded, and for strips their pixels and channels.
DESIGNS = {
    r"carafe_any<.*>": "any",
    r"carafe_planes<.*>": "planes",
    r"carafe_row_pairs<.*>": "row_pairs",
    r"carafe_channels_last<.*>": "channels_last",
    r"carafe_strips<.*, 4, 4>": "strips_4x4",
    r"carafe_strips<.*, 2, 8>": "strips_2x8",
}
DTYPES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}
#: Share of multiply-adds from which a loop is a kernel's hot one.
HOT = 0.25
#: Lanes of a multiprocessor: multiply-adds a cycle.
LANES = 128


def design_of(kernel: str) -> str | None:
    return next((name for pattern, name in DESIGNS.items() if re.fullmatch(pattern, kernel)), None)


def dtype_of(kernel: str) -> str | None:
    found = re.search(r"<(\w+)", kernel)
    return DTYPES.get(found[1]) if found else None


def cycles(case: Mapping[str, Any]) -> dict[str, float]:
    """Cycles of the L1 and shared memory for one of the multiply-adds: 1.0 is a balance."""
    arrays, ideal = case["arrays"], case["multiply_adds"] / LANES
    return {
        "features": arrays["features"]["loads"]["wavefronts"] / ideal,
        "masks": arrays["masks"]["loads"]["wavefronts"] / ideal,
        "shared_loads": arrays["shared"]["loads"]["wavefronts"] / ideal,
        "shared_stores": arrays["shared"]["stores"]["wavefronts"] / ideal,
        "out": arrays["out"]["stores"]["wavefronts"] / ideal,
    }


def traffic(build: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [build / "bin/carafe_traffic"], check=True, stdout=subprocess.PIPE, text=True
    )
    cases: list[dict[str, Any]] = json.loads(done.stdout)
    for case in cases:
        if "design" in case:
            shares = {name: round(value, 4) for name, value in cycles(case).items()}
            case["l1_cycles_for_one_of_arithmetic"] = shares | {
                "all": round(sum(shares.values()), 4)
            }
    return cases


def launch_of(kernel: str, cases: Sequence[Mapping[str, Any]]) -> Mapping[str, int] | None:
    """Of the kernel's largest case; bfloat16 launches as float16."""
    design, dtype = design_of(kernel), dtype_of(kernel)
    found = [
        case
        for case in cases
        if case.get("design") == design is not None
        and case["dtype"] == ("float16" if dtype == "bfloat16" else dtype)
    ]
    largest = max(found, key=lambda case: case["multiply_adds"], default=None)
    return None if largest is None else largest["launches"][0]


def static(library: Path, cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    entries = []
    for kernel in machine_code.kernels_with_instructions(library):
        hot = max(kernel.loops, key=lambda loop: loop.ffma_share, default=None)
        entry: dict[str, Any] = {
            "architecture": kernel.architecture,
            "kernel": kernel.name,
            "design": design_of(kernel.name),
            "registers": kernel.registers,
            "stack_bytes": kernel.stack,
            "local_bytes": kernel.local,
            "local_loads_and_stores": kernel.local_accesses,
            "static_shared_bytes": kernel.shared,
            "instructions": kernel.counts.total(),
            **{kind: kernel.accesses(kind) for kind in ("LDG", "STG", "LDS", "STS")},
        }
        if hot is not None and hot.ffma_share >= HOT:
            entry["hot_loop"] = {
                "instructions": hot.size,
                "FFMA": hot.counts["FFMA"],
                "ffma_share": round(hot.ffma_share, 3),
            }
        launch = launch_of(kernel.name, cases)
        if launch is not None:
            sizes = launch["threads"], launch["shared_bytes"]
            entry["threads"], entry["dynamic_shared_bytes"] = sizes
            entry["blocks_at_once"] = machine_code.blocks_at_once(
                kernel.architecture, kernel.registers, *sizes
            )
            entry["occupancy"] = round(
                machine_code.occupancy(kernel.architecture, kernel.registers, *sizes), 3
            )
        entries.append(entry)
    return sorted(entries, key=lambda entry: (entry["architecture"], entry["kernel"]))


def print_designs(cases: Sequence[Mapping[str, Any]]) -> None:
    print("design         dtype    shape           features   masks  result MB  L1 cycles / FFMA's")
    for case in cases:
        if "design" not in case or case["operator"] != "CarafeEncoded":
            continue
        arrays = case["arrays"]
        megabytes = [arrays[name]["loads"]["l2_bytes"] / 1e6 for name in ("features", "masks")]
        print(
            f"{case['design']:14} {case['dtype']} {case['shape']:12} {case['layout']}"
            f" {megabytes[0]:8.2f} {megabytes[1]:8.2f}"
            f" {arrays['out']['stores']['l2_bytes'] / 1e6:8.2f}"
            f" {case['l1_cycles_for_one_of_arithmetic']['all']:8.2f}"
        )


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("build", type=Path, help="build folder")
    build: Path = parser.parse_args().build.absolute()
    cases = traffic(build)
    write_result(RESULTS / "kernel_traffic.json", {"cases": cases})
    kernels = static(build / "lib/libcarafe_kernels.so", cases)
    write_result(RESULTS / "kernel_static.json", {"kernels": kernels})
    print_designs(cases)
    slow = [entry["kernel"] for entry in kernels if entry["local_loads_and_stores"]]
    print(f"{len(kernels)} kernels, {len(slow)} with local memory {slow or ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
