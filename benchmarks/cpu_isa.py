"""Time CARAFE's CPU kernel with every instruction set that this processor has.

    python benchmarks/cpu_isa.py

CarafeEncoded, k = 5, s = 2, the neck's two largest maps, all element types and both layouts. Every
instruction set runs in a process of its own, since the library chooses once; the processes take
turns. Inputs and result lie in memory that is already mapped. The figure is the median over rounds
of the fastest of a round's calls. Writes benchmarks/results/cpu_isa.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
from _common import RESULTS, argument_parser, in_process, write_result

from carafe_deploy.kernels import CarafeParams, DType, KernelLibrary, Layout, MaskSource
from carafe_deploy.libraries import find_library

#: Value of CARAFE_CPU_ISA -> what /proc/cpuinfo calls that it needs. "chosen" sets nothing.
NEEDS = {
    "chosen": set(),
    "baseline": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"},
}
MAPS = ((52, 84), (104, 168))
CHANNELS = 256
ROUNDS = 5
CALLS = 5


def milliseconds(
    library: KernelLibrary, dtype: DType, layout: Layout, size: tuple[int, int]
) -> float:
    """Of the fastest call."""
    height, width = size
    element = np.dtype(np.float32 if dtype == DType.FLOAT32 else np.uint16)
    generator = np.random.default_rng(0)
    # Any bits will do that are finite numbers in each of the types.
    features, encoded = (
        generator.uniform(1, 2, count * height * width).astype(np.float32).view(np.uint32)
        for count in (CHANNELS, 100)
    )
    if element.itemsize == 2:
        features, encoded = ((bits >> 16).astype(np.uint16) for bits in (features, encoded))
    out = np.zeros(4 * CHANNELS * height * width, element)
    params = CarafeParams(
        dtype=dtype, layout=layout, source=MaskSource.ENCODED, batch=1, channels=CHANNELS,
        height=height, width=width, kernel_size=5, groups=1, scale=2, feature_pitch=CHANNELS,
        mask_pitch=100, out_pitch=CHANNELS,
    )  # fmt: skip
    times = []
    for _ in range(CALLS + 1):
        begun = time.perf_counter()
        library.carafe(params, *(array.ctypes.data for array in (features, encoded, out)))
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times[1:])


def measure() -> dict[str, float]:
    """Workload -> milliseconds, with the instruction set of this process."""
    path = find_library("carafe_kernels")
    if path is None:
        raise SystemExit("there is no libcarafe_kernels.so: run `make plugins`")
    library = KernelLibrary(path)
    return {
        f"{size[0]}x{size[1]}, {dtype.name.lower()}, {layout.name}": milliseconds(
            library, dtype, layout, size
        )
        for size in MAPS
        for dtype in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
        for layout in (Layout.NCHW, Layout.NHWC)
    }


def available() -> list[str]:
    """Instruction sets that this processor has."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [name for name, needed in NEEDS.items() if needed <= set(flags)]


def measure_with(name: str) -> dict[str, float]:
    """:func:`measure` in a process that is given the instruction set."""
    environment = {key: value for key, value in os.environ.items() if key != "CARAFE_CPU_ISA"}
    if name != "chosen":
        environment["CARAFE_CPU_ISA"] = name
    found: dict[str, float] = in_process(__file__, environment=environment)
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure()))
        return
    names = available()
    rounds = [
        {name: measure_with(name) for name in names[i % len(names) :] + names[: i % len(names)]}
        for i in range(ROUNDS)
    ]
    times = {
        workload: {
            name: round(statistics.median(one[name][workload] for one in rounds), 3)
            for name in names
        }
        for workload in rounds[0]["chosen"]
    }
    write_result(arguments.results / "cpu_isa.json", {"milliseconds": times})
    for workload, of_isa in times.items():
        print(workload, of_isa)


if __name__ == "__main__":
    main()
