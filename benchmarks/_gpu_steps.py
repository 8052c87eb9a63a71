"""The steps of gpu_check.py, and what is read out of their results."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from _gpu_run import Facts, LackingError, Step, StepError

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: Steps of the group that runs first, side by side.
CORRECTNESS = "correctness"
#: Names of our kernels, for Nsight Compute.
KERNELS = "regex:carafe|candidates|roi_align|merge_runs|strike|suppress|rank_|sort_runs"
#: Of Nsight Compute, what a row keeps.
METRICS = (
    *("Duration", "DRAM Throughput", "L1/TEX Cache Throughput", "L2 Cache Throughput"),
    *("Compute (SM) Throughput", "Issue Slots Busy", "Eligible Warps Per Scheduler"),
    *("Registers Per Thread", "Achieved Occupancy", "Theoretical Occupancy", "L1/TEX Hit Rate"),
)


def build_steps(cmake_arguments: Sequence[str]) -> list[Step]:
    """Compile for the GPU of this machine; plugins only where TensorRT's headers are."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    configure += ["-DCMAKE_CUDA_ARCHITECTURES=native", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += ["-DCARAFE_CUDA=ON", "-DCARAFE_HARNESS=ON", *cmake_arguments]
    return [
        Step("configure", tuple(configure), 60),
        Step("build", ("cmake", "--build", str(BUILD)), 240),
    ]


def steps(output: Path, libraries: Path, programs: Path) -> list[Step]:
    """What is checked and measured, in order.

    Args:
        output: folder for results.
        libraries: folder with our shared libraries.
        programs: folder with carafe_harness and carafe_designs.
    """
    python = sys.executable
    deploy = (python, "-m", "carafe_deploy")
    harness, without_harness = _program(programs / "carafe_harness")
    designs, without_designs = _program(programs / "carafe_designs")
    driven = (harness, "--library", str(libraries / "libcarafe_tensorrt.so"))
    junit, ncu = output / "pytest.xml", output / "ncu.csv"
    operators = output / "operators_gpu.json"
    return [
        *(
            Step(
                tool,
                ("compute-sanitizer", "--error-exitcode=1", f"--tool={tool}", *driven, "--small"),
                120,
                CORRECTNESS,
                without_harness,
            )
            for tool in SANITIZERS
        ),
        Step(
            "pytest",
            (
                *(python, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"),
                *(*_workers(), f"--junitxml={junit}"),
            ),
            150,
            CORRECTNESS,
            read=lambda: tests_passed(junit),
        ),
        Step(
            "selfcheck",
            (*deploy, "selfcheck", "--json", "--out", str(output / "selfcheck")),
            120,
            CORRECTNESS,
            read=lambda: backends(_json(output / "selfcheck" / "report.json")),
        ),
        Step(
            "operators",
            (*deploy, "bench", "--op", "all", "--device", "cuda", "-o", str(operators)),
            110,
            read=lambda: peers(_json(operators)),
        ),
        Step(
            "designs",
            (designs, "--output", str(output / "designs.json")),
            60,
            lacking=without_designs,
            read=lambda: design_facts(_json(output / "designs.json")),
        ),
        Step(
            "harness",
            (*driven, "--output", str(output / "harness.json")),
            60,
            lacking=without_harness,
            read=lambda: harness_facts(_json(output / "harness.json")),
        ),
        Step(
            "detectors",
            (
                *(python, str(ROOT / "benchmarks" / "bench.py"), "--device", "cuda"),
                *("--results", str(output), "mask_r50"),
            ),
            200,
            read=lambda: detector_facts(_json(output / "bench_mask_r50_gpu.json")),
        ),
        Step(
            "modes",
            (
                *(python, str(ROOT / "benchmarks" / "torch_modes.py")),
                *("--results", str(output), "--seconds", "100"),
            ),
            150,
            read=lambda: mode_facts(_json(output / "torch_modes.json")),
        ),
        Step(
            "stream",
            (
                *(python, str(ROOT / "benchmarks" / "gpu_stream.py")),
                *("--results", str(output)),
            ),
            90,
            read=lambda: stream_facts(_json(output / "stream_gpu.json")),
        ),
        Step(
            "onnxruntime",
            (
                *(python, str(ROOT / "benchmarks" / "onnx_runtime.py"), "--device", "cuda"),
                *("--results", str(output)),
            ),
            150,
            lacking=without_provider(),
            read=lambda: onnxruntime_facts(_json(output / "onnxruntime_gpu.json")),
        ),
        Step(
            "ncu",
            (
                *("ncu", "--set", "full", "--csv", "--page", "details", "-k", KERNELS),
                *("--log-file", str(ncu)),
                *(python, str(ROOT / "benchmarks" / "_gpu_kernels.py")),
            ),
            100,
            read=lambda: kernel_facts(ncu, output / "ncu.json"),
        ),
    ]


def _program(path: Path) -> tuple[str, str]:
    """As a command, and why there is none."""
    return str(path), "" if path.is_file() else f"there is no {path}"


def _workers() -> tuple[str, ...]:
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(max(1, min(6, (os.cpu_count() or 1) // 2))))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tests_passed(path: Path) -> Facts:
    """How many tests did what, from pytest's JUnit file.

    Raises:
        StepError: none ran: skipped for want of a GPU is not passed.
    """
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    if passed < 1:
        raise StepError(f"no test passed, {counts['skipped']} were skipped")
    return {**counts, "passed": passed, "lines": [f"{passed} passed, {counts['skipped']} skipped"]}


def backends(report: Mapping[str, Any]) -> Facts:
    """What each backend on the GPU came to in the self check.

    Raises:
        StepError: a check failed, or none ran on the GPU.
    """
    failed = [check for check in report["checks"] if check["status"] == "failed"]
    found = {
        f"{check['detector'].partition('-')[0]}, {check['backend']}": check
        for check in report["checks"]
        if "cuda" in check["backend"] or check["backend"].startswith("TensorRT")
    }
    texts = ((name, f"{check['status']} {check['reason']}") for name, check in found.items())
    facts = {"lines": [f"{name}: {text}".strip() for name, text in texts]}
    if failed:
        named = (f"{check['backend']}: {check['reason']}" for check in failed)
        raise StepError("; ".join(dict.fromkeys(named)), facts)
    if not any(check["status"] == "passed" for check in found.values()):
        reasons = dict.fromkeys(check["reason"] for check in found.values())
        raise StepError(f"no backend passed on the GPU: {'; '.join(reasons)}")
    lines = [
        f"{name}: {check['status']} {check['reason']}".strip() for name, check in found.items()
    ]
    return {"lines": lines}


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def peers(result: Mapping[str, Any]) -> Facts:
    """Our kernels beside mmcv's CARAFE and torchvision, workload by workload.

    A peer is timed as what takes the same inputs: mmcv's CARAFE with the shuffle and softmax before
    it. Ours is the faster layout.

    Raises:
        StepError: an implementation broke or is wrong.
    """
    rows = [row for row in result["rows"] if row["samples_us"]]
    compared, lines = [], []
    for row in rows:
        if row["implementation"] not in ("mmcv, unfused", "torchvision") or row["layout"] not in (
            "",
            "nchw",
        ):
            continue
        ours = {
            one["layout"]: _median(one["samples_us"])
            for one in rows
            if one["implementation"] == "CUDA kernel"
            and all(one[key] == row[key] for key in ("operator", "workload", "entry", "dtype"))
        }
        if not ours:
            continue
        theirs, best = _median(row["samples_us"]), min(ours.values())
        peer = row["implementation"].partition(",")[0]
        where = f"{row['operator']} {row['workload']} {row['dtype']}"
        compared.append({"call": where, "peer": peer, "peer_us": theirs, "ours_us": ours})
        lines.append(f"{where}: {best:.1f} us, {peer} {theirs:.1f} us, {theirs / best:.1f} times")
    reasons = [(row["implementation"], row["reason"]) for row in result["rows"] if row["reason"]]
    broken = [pair for pair in reasons if pair[1].startswith(("wrong: ", "failed: "))]
    lacking = dict(pair for pair in reasons if pair not in broken)
    lines += [f"{name}: {reason}" for name, reason in lacking.items()]
    facts = {"peers": compared, "lacking": lacking, "lines": lines}
    if broken:
        raise StepError(f"{len(broken)} rows, first {' '.join(broken[0])}", facts)
    return facts


def fastest_designs(measured: Mapping[str, Any]) -> list[str]:
    """A line a call: its designs by cold time, the one that launch_carafe() takes marked."""
    calls: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in measured["calls"]:
        calls.setdefault((entry["dtype"], entry["layout"], entry["shape"]), []).append(entry)
    lines = [f"a copy moves {measured['copy_gb_per_s']:.0f} GB/s"]
    for call, entries in calls.items():
        ranked = sorted(entries, key=lambda entry: entry["cold_median_us"])
        texts = [
            f"{entry['design']}{'*' if entry['chosen'] else ''} {entry['cold_median_us']:.1f} us"
            f" ({entry['share_of_copy']:.0%}){'' if entry['agrees'] else ' WRONG'}"
            for entry in ranked
        ]
        lines.append(f"{' '.join(call)}: {', '.join(texts)}")
    return lines


def design_facts(measured: Mapping[str, Any]) -> Facts:
    """The designs ranked, and where choose() takes another than the fastest.

    Raises:
        StepError: a design differs from the CPU.
    """
    from _design_choice import disagreements

    try:
        told = disagreements(measured).splitlines()
    except ValueError as error:  # a call without a right result, which is a failure below
        told = [str(error)]
    facts = {"choice": told, "lines": [*fastest_designs(measured), *told]}
    wrong = [call for call in measured["calls"] if not call["agrees"]]
    if wrong:
        names = dict.fromkeys(call["design"] for call in wrong)
        raise StepError(f"{len(wrong)} results differ from the CPU: {', '.join(names)}", facts)
    return facts


def harness_facts(cases: Sequence[Mapping[str, Any]]) -> Facts:
    """How many of the plugins' cases agree with the CPU."""
    wrong = [f"{case['plugin']} {case['case']}" for case in cases if not case["agrees"]]
    if wrong or not cases:
        raise StepError(f"{len(wrong)} of {len(cases)} cases differ: {', '.join(wrong[:5])}")
    return {"cases": len(cases), "lines": [f"{len(cases)} cases agree"]}


def detector_facts(result: Mapping[str, Any]) -> Facts:
    """Median latency of each way to run the detector.

    Raises:
        StepError: one failed, or detects other than the first.
    """
    medians = {
        subject["name"]: round(_median(subject["samples"]["total_ms"]), 2)
        for subject in result["subjects"]
        if subject["samples"]
    }
    lines = [f"{name}: {median} ms an image" for name, median in medians.items()]
    failed = []
    for subject in result["subjects"]:
        if subject["status"] != "measured":
            text = f"{subject['name']} {subject['status']}: {subject['reason']}"
            (failed if subject["status"] == "failed" else lines).append(text)
        elif subject["agreement"] and not subject["agreement"]["passed"]:
            found = f"{subject['agreement']['matched']} of {subject['agreement']['total']}"
            failed.append(f"{subject['name']} finds {found} detections")
    facts = {"median_ms": medians, "lines": lines}
    if failed:
        raise StepError("; ".join(failed), facts)
    return facts


def mode_facts(result: Mapping[str, Any]) -> Facts:
    """Time and launches of a forward pass for each way to run PyTorch.

    Raises:
        StepError: one failed, or detects other than the usual way.
    """
    lines, wrong = [], []
    for row in result["rows"]:
        if "median_ms" in row:
            speed = f"{row['median_ms']} ms, {row['images_per_second']}/s"
            lines.append(f"{row['way']}: {speed}, {row['launches']} launches")
            if not row["agrees"]:
                wrong.append(f"{row['way']} detects other than the usual way")
        elif "error" in row:
            lines.append(f"{row['way']}: {row['error']}")
            wrong.append(lines[-1])
        else:
            lines.append(f"{row['way']}: left out {row['left_out']}")
    if wrong:
        raise StepError("; ".join(wrong), {"lines": lines})
    return {"lines": lines}


def stream_facts(result: Mapping[str, Any]) -> Facts:
    """Images a second from files to encoded masks, beside the detector's and the aim.

    Raises:
        StepError: the aim is missed.
    """
    rates, aim = result["images_per_second"], result["aim"]
    line = (
        f"batch {result['batch']}: {rates['stream']}/s, {result['share']:.0%} of the detector's "
        f"{rates['detector']}/s, {result['masks_an_image']} masks an image, {result['cores']} cores"
    )
    facts = {"lines": [line]}
    if result["share"] < aim["share"] or rates["stream"] < aim["images_per_second"]:
        least = f"{aim['share']:.0%} and {aim['images_per_second']:g}/s"
        raise StepError(f"the aim is {least}", facts)
    return facts


def without_provider() -> str:
    """Why ONNX Runtime cannot be measured on a GPU; empty if it can."""
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu"
    return ""


def onnxruntime_facts(result: Mapping[str, Any]) -> Facts:
    """Time of a batch for each way to run each file.

    Raises:
        StepError: kernels or bodies failed, or a way detects other than the first.
    """
    lines, wrong = [], []
    for row in result["rows"]:
        words = [row["file"], "kernels" if row["operators"] else "bodies", row["mode"]]
        words += [f"{name}={value}" for name, value in (row["provider_options"] or {}).items()]
        name = ", ".join(words)
        if "error" in row:
            lines.append(f"{name}: {row['error']}")
            # An option that some version does not know is no fault.
            wrong += [] if row["provider_options"] else [lines[-1]]
            continue
        memory = f", {row['device_memory_mb']} MB" if "device_memory_mb" in row else ""
        lines.append(f"{name}: {row['median_ms']} ms, {row['images_per_second']}/s{memory}")
        if not row["agrees"]:
            wrong.append(f"{name} detects other than the first")
    if wrong:
        raise StepError("; ".join(wrong), {"lines": lines})
    return {"lines": lines}


def kernel_facts(table: Path, output: Path) -> Facts:
    """Nsight Compute's table as one object a launch, written to ``output``.

    Raises:
        StepError: the table holds no kernel.
        LackingError: the driver does not let this user profile.
    """
    text = table.read_text(encoding="utf-8", errors="replace")
    if "ERR_NVGPUCTRPERM" in text:
        raise LackingError("the driver lets only administrators profile (ERR_NVGPUCTRPERM)")
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        launch |= {"grid": row["Grid Size"], "block": row["Block Size"]}
        if row["Metric Name"] in METRICS:
            launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    if not launches:
        raise StepError("Nsight Compute saw none of our kernels")
    from carafe_deploy.files import atomic_write_text

    atomic_write_text(output, json.dumps(list(launches.values()), indent=1) + "\n")
    return {"launches": len(launches), "lines": [f"{len(launches)} launches in {output.name}"]}
