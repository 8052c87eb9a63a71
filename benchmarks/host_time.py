"""Time what a call of each torch operator costs the host, through C++ and through ctypes.

    python benchmarks/host_time.py

Inputs are so small that computing takes a microsecond or so. Each way runs in a process of its own,
since operators are registered once; the processes take turns. Tensors are made in inference mode,
as runners have them, or outside, where torch asks first whether a gradient is wanted. The figure is
the median over rounds of the fastest of a round's batches, in microseconds of the calling thread's
processor time, which other processes do not change; torch.add is there to compare with. Writes
benchmarks/results/host_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from _common import RESULTS, argument_parser, in_process, write_result

from carafe_deploy.libraries import require_library

WAYS = ("C++", "ctypes")
MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}
ROUNDS = 5
BATCHES = 20
CALLS = 500


def calls() -> dict[str, Callable[[], object]]:
    """A call of each operator."""
    import carafe_deploy.ops  # noqa: F401

    ops = torch.ops.carafe
    features, masks = torch.randn(1, 4, 2, 2), torch.randn(1, 9, 4, 4)
    encoded = torch.randn(1, 36, 2, 2)
    rois = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
    maps = [torch.randn(1, 4, size, size) for size in (8, 4, 2, 1)]
    boxes, scores = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4)
    return {
        "carafe": lambda: ops.carafe(features, masks, 3, 1, 2),
        "carafe_encoded": lambda: ops.carafe_encoded(features, encoded, 3, 1, 2),
        "multilevel_roi_align": lambda: ops.multilevel_roi_align(
            rois, maps, 2, 1, [1, 2, 4, 8], 56
        ),
        "batched_nms": lambda: ops.batched_nms(boxes, scores, 0.5, 0.0, 4),
        "torch.add": lambda: torch.add(features, features),
    }


def microseconds(function: Callable[[], object]) -> float:
    """Of a call, in the fastest batch."""
    for _ in range(CALLS):
        function()
    times = []
    for _ in range(BATCHES):
        begun = time.thread_time()
        for _ in range(CALLS):
            function()
        times.append((time.thread_time() - begun) / CALLS)
    return 1e6 * min(times)


def measure() -> dict[str, dict[str, float]]:
    """Mode -> operator -> microseconds, the way of this process."""
    torch.set_num_threads(1)
    found = {}
    for name, mode in MODES.items():
        with mode():
            found[name] = {operator: microseconds(call) for operator, call in calls().items()}
    return found


def measure_by(way: str, kernels_alone: Path) -> dict[str, dict[str, float]]:
    """:func:`measure` in a process where the operators are registered that way."""
    environment = dict(os.environ)
    if way == "ctypes":
        environment["CARAFE_DEPLOY_PLUGIN"] = str(kernels_alone)
    found: dict[str, dict[str, float]] = in_process(__file__, environment=environment)
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure()))
        return
    require_library("carafe_torch")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(require_library("carafe_kernels"), folder)
        rounds = [
            {way: measure_by(way, Path(folder)) for way in (WAYS if i % 2 else WAYS[::-1])}
            for i in range(ROUNDS)
        ]
    times = {
        mode: {
            operator: {
                way: round(statistics.median(one[way][mode][operator] for one in rounds), 2)
                for way in WAYS
            }
            for operator in rounds[0]["C++"][mode]
        }
        for mode in MODES
    }
    write_result(arguments.results / "host_time.json", {"microseconds": times})
    for mode, of_mode in times.items():
        for operator, of_way in of_mode.items():
            print(mode, operator, of_way)


if __name__ == "__main__":
    main()
