"""Time CARAFE on the CPU against what the machine allows: copying its bytes, computing its sums.

    python benchmarks/carafe_cpu.py

Two threads; shapes of an R-50 detector at 832x1344, k = 5, s = 2, one group. "kernel" is the
operator of carafe_deploy.ops in libcarafe_kernels.so, "pytorch" the same operator in plain PyTorch.
The floor is the larger of two times measured in the same run: that of moving features, weights and
result once at the bandwidth of a copy of as many bytes, and that of the multiply-adds at the rate
of a float32 matrix product. Results are compared with PyTorch's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _environment import RESULTS, time_ms, write_result
from torch import Tensor

from carafe_deploy.ops import _kernels, carafe, carafe_encoded

THREADS = 2
KERNEL_SIZE, SCALE = 5, 2
#: name -> entry, shape of the features, dtype, memory format. The first has a target.
CASES: dict[str, tuple[str, tuple[int, int, int, int], torch.dtype, torch.memory_format]] = {
    f"{entry} {'x'.join(map(str, shape))} {str(dtype)[6:]}{' channels-last' * last}": (
        entry,
        shape,
        dtype,
        torch.channels_last if last else torch.contiguous_format,
    )
    for entry, shape, dtype, last in (
        ("carafe", (1, 256, 52, 84), torch.float32, False),
        ("carafe_encoded", (1, 256, 52, 84), torch.float32, False),
        ("carafe_encoded", (1, 256, 52, 84), torch.float32, True),
        ("carafe_encoded", (1, 256, 52, 84), torch.float16, False),
        ("carafe_encoded", (1, 256, 52, 84), torch.bfloat16, False),
        ("carafe_encoded", (1, 256, 13, 21), torch.float32, False),
        ("carafe_encoded", (1, 256, 104, 168), torch.float32, False),
        ("carafe_encoded", (100, 1, 14, 14), torch.float32, False),
    )
}
#: Of the largest difference from plain PyTorch: both round sums of 25 products.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def call(
    entry: str, shape: tuple[int, int, int, int], dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Callable[[], Tensor], tuple[Tensor, Tensor]]:
    """A call of the operator on normally distributed inputs, and the inputs."""
    generator = torch.Generator().manual_seed(0)
    n, _, h, w = shape
    taps = KERNEL_SIZE**2
    weights = torch.randn(n, taps * SCALE**2, h, w, generator=generator)
    if entry == "carafe":
        weights = torch.pixel_shuffle(weights, SCALE).softmax(dim=1)
    inputs = (
        torch.randn(shape, generator=generator).to(dtype, memory_format=layout),
        weights.to(dtype, memory_format=layout),
    )
    operator = partial(
        carafe if entry == "carafe" else carafe_encoded,
        kernel_size=KERNEL_SIZE,
        group_size=1,
        scale_factor=SCALE,
    )
    return partial(operator, *inputs), inputs


def copy_floor_ms(num_bytes: int, repeats: int) -> float:
    """Milliseconds to read and write ``num_bytes`` in all, at the rate of a copy."""
    source = torch.ones(num_bytes // 2, dtype=torch.uint8)
    copy = partial(torch.empty_like(source).copy_, source)
    return time_ms(copy, repeats=repeats)["fastest_ms"]


def multiply_adds_per_ms(repeats: int) -> float:
    """Rate of a float32 matrix product large enough to be bound by arithmetic."""
    side = 1024
    matrix = torch.randn(side, side)
    product = partial(torch.matmul, matrix, matrix, out=torch.empty(side, side))
    return float(side**3 / time_ms(product, repeats=repeats)["fastest_ms"])


def measure(name: str, rate: float, repeats: int) -> dict[str, Any]:
    """One case: kernel, plain PyTorch and floors."""
    entry, shape, dtype, layout = CASES[name]
    run, inputs = call(entry, shape, dtype, layout)
    found = run()
    kernel = time_ms(run, repeats=repeats)
    with _kernels.plain_operators():
        expected = run()
        pytorch = time_ms(run, repeats=max(repeats // 10, 3), warmup=1)
    difference = (found.double() - expected.double()).abs().max().item()
    if not difference <= TOLERANCES[dtype]:
        raise SystemExit(f"{name}: kernel and plain PyTorch differ by {difference}")
    num_bytes = sum(tensor.nbytes for tensor in (*inputs, found))
    multiply_adds = math.prod(found.shape) * KERNEL_SIZE**2
    copy, arithmetic = copy_floor_ms(num_bytes, repeats), multiply_adds / rate
    floor = max(copy, arithmetic)
    return {
        "kernel": kernel,
        "pytorch": pytorch,
        "max_difference": difference,
        "megabytes": round(num_bytes / 1e6, 2),
        "multiply_adds": multiply_adds,
        "copy_floor_ms": round(copy, 3),
        "arithmetic_floor_ms": round(arithmetic, 3),
        "median_over_floor": round(kernel["median_ms"] / floor, 2),
        "fastest_over_floor": round(kernel["fastest_ms"] / floor, 2),
    }


def main() -> None:
    """Run all cases and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "carafe_cpu.json")
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    library = _kernels.kernel_library()
    if library is None:
        raise SystemExit("libcarafe_kernels.so is not in use: build it with `make plugins`")
    torch.set_num_threads(THREADS)
    rate = multiply_adds_per_ms(arguments.repeats)
    cases = {}
    for name in CASES:
        cases[name] = case = measure(name, rate, arguments.repeats)
        print(
            f"{name}: kernel {case['kernel']['median_ms']:.2f} ms, "
            f"{case['median_over_floor']:.1f} times the floor; "
            f"pytorch {case['pytorch']['median_ms']:.1f} ms",
            flush=True,
        )
    write_result(
        arguments.output,
        {
            "threads": THREADS,
            "repeats": arguments.repeats,
            "multiply_adds_per_second": round(rate * 1e3),
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
