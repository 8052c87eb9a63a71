"""What exporting Mask R-CNN R-50 to ONNX spends its time and memory on, phase by phase.

    python benchmarks/export_profile.py [--before CHECKOUT] [--runs N]

The dynamic export (batch 1 to 4, height and width 320 to 1344) runs in processes of its own. Phases
are the functions in PHASES, timed without what other phases take inside them, by the clock and in
CPU time of all threads, which says more where others had the machine; a phase's peak memory is the
most resident memory while it ran, weights and imports included (Linux tells, and lets it be reset).
With --before, the export of another checkout takes turns with this one. The engine's build
is measured likewise where TensorRT-RTX is installed, in the phases that TensorRT tells of, each
from its name to the next; serialising and writing belong to the last one.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _common import RESULTS, argument_parser, write_result

HERE = Path(__file__).resolve().parents[1]

#: Phase -> where its function is looked up, so that wrapping it there times it.
PHASES = {
    "fold and convert weights": "carafe_deploy.graph.onnx_export.deployable",
    "metadata": "carafe_deploy.graph.onnx_export.model_info",
    "torch.onnx.export, translation": "torch.onnx.export",
    "torch.export": "torch.export.export",
    "decompositions": "torch.export.ExportedProgram.run_decompositions",
    "onnxscript's optimizer": "torch.onnx._internal.exporter._onnx_program.ONNXProgram.optimize",
    "function bodies": "carafe_deploy.graph.onnx_export._finish",
    "checker": "onnx.checker.check_model",
    "shape inference": "onnx.shape_inference.infer_shapes",
    "save": "onnx.save",
}
REST = "rest, protobuf"


class Phases:
    """Seconds and peak memory by phase; one phase may run inside another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self._stack = [REST]
        self._begin()

    def _begin(self) -> None:
        _reset_peak()
        self._begun, self._cpu_begun = time.perf_counter(), time.process_time()

    def _close(self) -> None:
        """Book what has passed on the phase that is running."""
        name, now, cpu_now = self._stack[-1], time.perf_counter(), time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._begun
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + cpu_now - self._cpu_begun
        self.peaks[name] = max(self.peaks.get(name, 0.0), _peak_mb())
        self._begin()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside is this phase's."""
        self._close()
        self._stack.append(name)
        try:
            yield
        finally:
            self._close()
            self._stack.pop()

    def wrap(self, name: str, target: str) -> None:
        """Make a function a phase, where it is looked up."""
        path, _, attribute = target.rpartition(".")
        try:
            owner: Any = importlib.import_module(path)
        except ModuleNotFoundError:  # a class
            module, _, kind = path.rpartition(".")
            owner = getattr(importlib.import_module(module), kind)
        inner: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(inner)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return inner(*arguments, **options)

        setattr(owner, attribute, timed)

    def result(self) -> dict[str, Any]:
        """Totals, and both figures by phase."""
        self._close()
        return {
            "seconds": sum(self.seconds.values()),
            "cpu_seconds": sum(self.cpu_seconds.values()),
            "peak_memory_mb": max(self.peaks.values()),
            "phases": {
                name: {
                    "seconds": self.seconds[name],
                    "cpu_seconds": self.cpu_seconds[name],
                    "peak_memory_mb": self.peaks[name],
                }
                for name in (*PHASES, REST)
                if name in self.seconds
            },
        }


def _peak_mb() -> float:
    """Most resident memory since the last reset, in MB (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def export(path: Path) -> dict[str, Any]:
    """Export once, in this process."""
    from carafe_deploy.graph.onnx_export import export_onnx
    from carafe_deploy.graph.options import ExportOptions
    from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
    from carafe_deploy.models.detector import build_detector

    detector = build_detector(DetectorConfig(mask=MaskHeadConfig()))
    options = ExportOptions((1, 4), (320, 1344), (320, 1344))
    import onnx
    import torch.onnx  # loaded before anything is timed

    assert onnx
    assert torch.onnx
    phases = Phases()
    for name, target in PHASES.items():
        phases.wrap(name, target)
    export_onnx(detector, path, options, name="r50", source={})
    return {**phases.result(), "file_mb": path.stat().st_size / 1e6}


def build(model: Path) -> dict[str, Any]:
    """Build an engine of the exported file once, in this process."""
    from carafe_deploy.engine.build import BuildOptions, build_engine

    marks: list[tuple[float, str]] = []

    def progress(fraction: float, name: str) -> None:
        if not marks or marks[-1][1] != name:
            marks.append((time.perf_counter(), name))

    begun = time.perf_counter()
    _reset_peak()
    build_engine(
        model,
        model.with_suffix(".engine"),
        BuildOptions(flavour="tensorrt_rtx"),
        progress=progress,
    )
    end = time.perf_counter()
    times = [begun, *(mark for mark, _ in marks), end]
    names = ["read, check", *(name for _, name in marks)]
    seconds: dict[str, float] = {}
    for name, (first, second) in zip(names, itertools.pairwise(times), strict=True):
        seconds[name] = seconds.get(name, 0.0) + second - first
    return {"seconds": end - begun, "peak_memory_mb": _peak_mb(), "phases": seconds}


def _run(what: str, path: Path, checkout: Path) -> dict[str, Any]:
    """Measure in a process of its own, with the package of a checkout."""
    folders = [str(checkout), str(HERE / "benchmarks")]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, "--file", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=checkout,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number, keeping the structure of the first run."""

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            keys = dict.fromkeys(key for value in values for key in value)
            return {key: median([value.get(key, 0.0) for value in values]) for key in keys}
        return round(statistics.median(values), 3 if values[0] < 1000 else 1)

    result: dict[str, Any] = median(runs)
    return {**result, "seconds_of_runs": [round(run["seconds"], 2) for run in runs]}


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "export_profile.json")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", choices=("export", "build"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure = {"export": export, "build": build}[arguments.measure]
        print(json.dumps(measure(arguments.file)))
        return
    checkouts = {"after" if arguments.before else "export": HERE}
    if arguments.before:
        checkouts = {"before": arguments.before.resolve(), **checkouts}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    result: dict[str, Any] = {"model": "Mask R-CNN R-50, dynamic, fp32", "runs": arguments.runs}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        for _ in range(arguments.runs):
            for name, checkout in checkouts.items():
                found[name].append(_run("export", path, checkout))
                print(name, json.dumps(found[name][-1]), flush=True)
        if importlib.util.find_spec("tensorrt_rtx") is not None:
            result["engine"] = _medians([_run("build", path, HERE) for _ in range(arguments.runs)])
            print("engine", json.dumps(result["engine"]), flush=True)
    for name, runs in found.items():
        result[name] = {"commit": _commit(checkouts[name]), **_medians(runs)}
    write_result(arguments.output, result)


if __name__ == "__main__":
    main()
