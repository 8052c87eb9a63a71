"""Time the operators' ONNX function bodies, CARAFE's with other tiles too.

    python benchmarks/function_bodies.py

ONNX Runtime and PyTorch, two threads each, shapes of an R-50 detector at 832x1344. The package's
own are "tiles 4x4", "taps", "gather" and "body"; "pytorch" is the registered torch operator, eager.
Those of one case take turns, so that a busy machine slows all alike; the fastest run is the figure
to compare, the median shows the disturbance, and the CPU time of all threads suffers least from it.
Peak memory is that of a process of its own, above what it held with inputs and session ready. Every
result is compared with PyTorch's.

results/function_bodies.json also has decompositions that lost; the code is in its commit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from _common import RESULTS, argument_parser, write_result
from onnx import TensorProto, helper

from carafe_deploy.operators.specification import PLUGIN_ATTRIBUTES
from carafe_deploy.ops import _body_carafe
from carafe_deploy.ops._body_carafe import carafe_body
from carafe_deploy.ops._body_nms import batched_nms_body
from carafe_deploy.ops._body_roi_align import multilevel_roi_align_body

THREADS = 2
STRIDES = (4, 8, 16, 32)
ASSEMBLIES = {
    **{
        f"tiles {rows}x{columns}": partial(_body_carafe.assemble_tiles, tile=(rows, columns))
        for rows, columns in ((1, 1), (1, 8), (2, 4), (4, 4), (4, 8))
    },
    "taps": _body_carafe.VARIANTS["taps"],
}
TILES = tuple(name for name in ASSEMBLIES if name.startswith("tiles"))

#: (entry, N, C, H, W) -> candidates; k = 5, G = 1, s = 2. "taps" holds k*k*s*s times the map,
#: which is for few channels or small maps.
CARAFE_CASES: dict[tuple[str, int, int, int, int], tuple[str, ...]] = {
    ("Carafe", 1, 256, 104, 168): TILES,
    ("Carafe", 1, 256, 52, 84): TILES,
    ("Carafe", 1, 256, 26, 42): (*TILES, "taps"),
    ("Carafe", 1, 256, 13, 21): (*TILES, "taps"),
    ("Carafe", 100, 256, 14, 14): TILES,
    ("Carafe", 100, 1, 14, 14): (*TILES, "taps"),
    ("CarafeEncoded", 1, 256, 104, 168): ("tiles 4x4",),
    ("CarafeEncoded", 1, 256, 52, 84): ("tiles 4x4",),
    ("CarafeEncoded", 1, 256, 26, 42): ("tiles 4x4",),
    ("CarafeEncoded", 1, 256, 13, 21): ("tiles 4x4",),
    **{("CarafeEncoded", 100, c, 14, 14): ("tiles 4x4", "taps") for c in (1, 4, 8)},
}
LARGEST = ("Carafe", 1, 256, 104, 168)
ROI_CASES = ((1000, 7), (100, 14))
NMS_CASES = {"proposals": (5, 0.7, -1.0, 1000), "box head": (80, 0.5, 0.05, 100)}


Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class Case:
    """One call: inputs, attributes, and the bodies and the torch operator that compute it."""

    feeds: Arrays
    attributes: Mapping[str, Any]
    bodies: Mapping[str, Callable[[], onnx.FunctionProto]]
    torch_operator: str

    def ready(self, name: str, *, whole: bool = False) -> Run:
        """What is timed: a session or torch call on the inputs; ``whole`` returns full results."""
        if name == "pytorch":
            return self._pytorch()
        return _session(self.bodies[name](), self.attributes, self.feeds, whole=whole)

    def _pytorch(self) -> Run:
        import torch

        from carafe_deploy import ops

        torch.set_num_threads(THREADS)
        tensors: list[Any] = [torch.from_numpy(array) for array in self.feeds.values()]
        if self.torch_operator == "multilevel_roi_align":
            tensors = [tensors[0], tensors[1:]]
        operator = getattr(ops, self.torch_operator)

        def run() -> Sequence[Any]:
            with torch.inference_mode():
                result = operator(*tensors, **self.attributes)
            return result if isinstance(result, tuple) else (result,)

        return run


def _session(
    body: onnx.FunctionProto, attributes: Mapping[str, Any], feeds: Arrays, *, whole: bool
) -> Run:
    """One node with its body in ONNX Runtime; unless ``whole``, of float results one column.

    Were the result the model's output, the body's last cast, which ONNX Runtime drops inside a
    model, would be a copy.
    """
    types = {"num_dets": TensorProto.INT32, "indices": TensorProto.INT64}
    node = helper.make_node(
        body.name, body.input, body.output, domain="carafe", **attributes, **PLUGIN_ATTRIBUTES
    )
    nodes, outputs = [node], list(body.output)
    if outputs == ["out"] and not whole:
        for name, value in (("first", 0), ("second", 1), ("last", -1)):
            nodes.append(helper.make_node("Constant", [], [name], value_ints=[value]))
        nodes.append(helper.make_node("Slice", ["out", "first", "second", "last"], ["column"]))
        outputs = ["column"]
    graph = helper.make_graph(
        nodes,
        "one node",
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [f"{name}_{axis}" for axis in range(array.ndim)]
            )
            for name, array in feeds.items()
        ],
        [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None)
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("carafe", 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return partial(session.run, None, feeds)


# --- cases ---------------------------------------------------------------------------------------


def carafe_case(entry: str, n: int, c: int, h: int, w: int) -> Case:
    """Normally distributed inputs."""
    encoded = entry == "CarafeEncoded"
    rng = np.random.default_rng(0)
    shape = (n, 100, h, w) if encoded else (n, 25, 2 * h, 2 * w)
    feeds = {
        "features": rng.standard_normal((n, c, h, w), np.float32),
        "encoded" if encoded else "masks": rng.standard_normal(shape, np.float32),
    }
    attributes = {"kernel_size": 5, "group_size": 1, "scale_factor": 2}
    # The package knows two variants; the others take a name there for this process.
    _body_carafe.VARIANTS.update(ASSEMBLIES)
    bodies = {
        name: partial(
            carafe_body, **attributes, encoded=encoded, opset=18, overload="", variant=name
        )
        for name in CARAFE_CASES[entry, n, c, h, w]
    }
    return Case(feeds, attributes, bodies, "carafe_encoded" if encoded else "carafe")


def roi_align_case(count: int, size: int) -> Case:
    """RoIs with sides of 16 to 700 pixels, log-uniform, over P2..P5."""
    rng = np.random.default_rng(0)
    limits = np.array([1344, 832])
    side = np.exp(rng.uniform(np.log(16), np.log(700), (count, 1)))
    aspect = np.exp(rng.normal(0, 0.2, (count, 1)))
    sides = np.minimum(np.hstack((side * aspect, side / aspect)), limits)
    corners = rng.uniform(0, 1, (count, 2)) * (limits - sides)
    feeds = {"rois": np.hstack((corners, corners + sides)).astype(np.float32)[None]}
    for level, stride in enumerate(STRIDES):
        shape = (1, 256, 832 // stride, 1344 // stride)
        feeds[f"features{level}"] = rng.standard_normal(shape, np.float32)
    attributes: dict[str, Any] = {
        "output_size": size,
        "sampling_ratio": 0,
        "strides": STRIDES,
        "finest_scale": 56,
    }
    bodies = {
        "gather": partial(
            multilevel_roi_align_body,
            num_levels=4,
            sampling_ratio=0,
            strides=STRIDES,
            finest_scale=56,
            opset=18,
            overload="",
        ),
    }
    return Case(feeds, attributes, bodies, "multilevel_roi_align")


def nms_case(labels: int, iou: float, score: float, max_output: int) -> Case:
    """1,000 candidates a label around 60 centres; with a score threshold most are below it."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 1200, (1, labels, 60, 2))[:, :, rng.integers(0, 60, 1000)]
    centres = centres + rng.normal(0, 8, centres.shape)
    sides = rng.uniform(30, 90, centres.shape)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1)
    scores = rng.uniform(0, 1, (1, labels, 1000)) ** (20 if score > 0 else 1)
    feeds = {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}
    attributes = {"iou_threshold": iou, "score_threshold": score, "max_output": max_output}
    body = partial(batched_nms_body, opset=18)
    return Case(feeds, attributes, {"body": body}, "batched_nms")


# --- measurements --------------------------------------------------------------------------------


def compare(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of all candidates, in turns, and their largest difference from PyTorch."""
    expected = [np.asarray(array) for array in case.ready("pytorch")()]
    result: dict[str, dict[str, float]] = {}
    runs: dict[str, Run] = {}
    for name in (*case.bodies, "pytorch"):
        found = case.ready(name, whole=True)()
        difference = max(
            float(np.abs(np.asarray(a, np.float64) - b).max())
            for a, b in zip(found, expected, strict=True)
        )
        result[name] = {"max_difference": difference}
        runs[name] = case.ready(name)
    times: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(0.02)  # threads of the one before spin for a while
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
            cpu[name].append((time.process_time() - start_cpu) * 1e3)
    for name, (_, *measured) in times.items():  # the first round warms up
        result[name]["fastest_ms"] = round(min(measured), 3)
        result[name]["median_ms"] = round(statistics.median(measured), 3)
        result[name]["least_cpu_ms"] = round(min(cpu[name][1:]), 3)
    return dict(sorted(result.items(), key=lambda item: item[1]["fastest_ms"]))


def peak_memory_mb(name: str) -> float:
    """What two runs of a candidate on the largest map add to this process, in MB (10^6 bytes)."""
    run = carafe_case(*LARGEST).ready(name)
    before = _status_mb("VmRSS")
    for _ in range(2):
        run()
    return round(_status_mb("VmHWM") - before, 1)


def _status_mb(field: str) -> float:
    """A field of Linux' /proc/self/status; unlike getrusage's, not inherited from the parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measure_memory() -> dict[str, float]:
    """Peak memory of every candidate for the largest map, each in a process of its own."""
    result = {}
    for name in (*CARAFE_CASES[LARGEST], "pytorch"):
        command = [sys.executable, __file__, "--peak-memory-of", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result[name] = json.loads(done.stdout)
    return dict(sorted(result.items(), key=lambda item: item[1]))


def main() -> None:
    """Run all cases and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "function_bodies.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_memory_of:
        print(json.dumps(peak_memory_mb(arguments.peak_memory_of)))
        return
    cases: dict[str, Callable[[], Case]] = {
        f"{key[0]} {'x'.join(map(str, key[1:]))}": partial(carafe_case, *key)
        for key in CARAFE_CASES
    }
    for count, size in ROI_CASES:
        name = f"MultilevelRoiAlign {count} RoIs, {size}x{size}"
        cases[name] = partial(roi_align_case, count, size)
    for kind, settings in NMS_CASES.items():
        cases[f"BatchedNms {kind}"] = partial(nms_case, *settings)
    measured = {}
    for name, make in cases.items():
        measured[name] = compare(make(), arguments.rounds)
        fastest = ", ".join(f"{k} {v['fastest_ms']:.1f}" for k, v in measured[name].items())
        print(f"{name}: {fastest} ms", flush=True)
    memory = measure_memory()
    print(f"peak memory, {LARGEST}: {memory} MB")
    write_result(
        arguments.output,
        {
            "threads": THREADS,
            "rounds": arguments.rounds,
            "cases": measured,
            "peak_memory_mb": {"case": LARGEST, **memory},
        },
    )


if __name__ == "__main__":
    main()
