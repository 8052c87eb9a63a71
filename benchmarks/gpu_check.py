"""Check everything that needs a GPU, in one command under ten minutes.

    python benchmarks/gpu_check.py FOLDER [-- MORE CMAKE ARGUMENTS]

Builds for the GPU of this machine, measures each design of CARAFE's kernels and names the fastest,
drives the TensorRT plugins' enqueue without TensorRT, looks for memory errors and races with
compute-sanitizer, runs the tests that are skipped elsewhere and the self check with every backend
found, and measures operators and a detector. A step that fails does not stop the next. Writes
FOLDER/summary.json (exit status, seconds and last lines of each step), a log a step, and what the
steps themselves write. The exit status is the number of failed steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _environment import write_result

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
#: Seconds after which a step is given up.
LIMIT = 240
TAIL = 30
#: The step that measures CARAFE's designs.
DESIGNS = "CARAFE designs"


def steps(output: Path, cmake_arguments: Sequence[str]) -> dict[str, list[str]]:
    """Name -> command of every step, in order."""
    harness = [str(BUILD / "bin" / "carafe_harness"), "--library"]
    harness.append(str(BUILD / "lib" / "libcarafe_tensorrt.so"))
    sanitizer = ["compute-sanitizer", "--error-exitcode=1"]
    bench = [str(ROOT / "benchmarks" / "bench.py"), "--device", "cuda", "--results", str(output)]
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    configure += ["-DCMAKE_CUDA_ARCHITECTURES=native", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += ["-DCARAFE_CUDA=ON", "-DCARAFE_TENSORRT=ON", "-DCARAFE_HARNESS=ON"]
    return {
        "configure": [*configure, *cmake_arguments],
        "build": ["cmake", "--build", str(BUILD)],
        DESIGNS: [
            *(str(BUILD / "bin" / "carafe_designs"), "--output", str(output / "designs.json"))
        ],
        "harness": [*harness, "--output", str(output / "harness.json")],
        **{
            f"compute-sanitizer {tool}": [*sanitizer, f"--tool={tool}", *harness, "--small"]
            for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
        },
        "pytest": [
            *(sys.executable, "-m", "pytest", "-m", "gpu", "-q"),
            f"--junitxml={output / 'pytest.xml'}",
        ],
        "selfcheck": [
            *(sys.executable, "-m", "carafe_deploy", "selfcheck"),
            *("--json", "--out", str(output / "selfcheck")),
        ],
        "bench": [sys.executable, *bench, "mask_r50", "operators"],
        "C++ tests": ["cmake", *configure[1:], "-DCARAFE_TESTS=ON", *cmake_arguments],
        "C++ tests, build": ["cmake", "--build", str(BUILD)],
        "C++ tests, run": ["ctest", "--test-dir", str(BUILD), "--output-on-failure"],
    }


def run(name: str, command: list[str], output: Path) -> dict[str, Any]:
    """One step: its whole output goes to a log, the end of it into the summary."""
    begun = time.perf_counter()
    log = output / f"{name.replace(' ', '-').replace(',', '')}.log"
    environment = {**os.environ, "CARAFE_DEPLOY_PLUGIN": str(BUILD / "lib")}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    status: int | str
    if shutil.which(command[0]) is None:
        status, text = f"there is no {command[0]}", ""
    else:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                timeout=LIMIT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            status, text = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            partial = error.stdout or b""
            text = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
            status = f"took longer than {LIMIT} s"
        except OSError as error:
            status, text = str(error), ""
    log.write_text(text, encoding="utf-8")
    return {
        "command": command,
        "status": status,
        "seconds": round(time.perf_counter() - begun, 1),
        "tail": text.splitlines()[-TAIL:],
    }


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


def gpu() -> str:
    """Name, driver and memory of every GPU, as the driver tells them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap"]
    try:
        return subprocess.check_output([*query, "--format=csv,noheader"], text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvidia-smi: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("cmake", nargs="*", help="more arguments for cmake")
    arguments = parser.parse_args()
    output: Path = arguments.folder.resolve()
    output.mkdir(parents=True, exist_ok=True)
    found = gpu()
    print(found, flush=True)
    results: dict[str, dict[str, Any]] = {}
    for name, command in steps(output, arguments.cmake).items():
        results[name] = run(name, command, output)
        status, seconds = results[name]["status"], results[name]["seconds"]
        print(f"{'ok    ' if status == 0 else 'FAILED'} {name} ({seconds} s)", flush=True)
        if name == DESIGNS and (output / "designs.json").is_file() and status in (0, 1):
            measured = json.loads((output / "designs.json").read_text(encoding="utf-8"))
            results[name]["fastest"] = fastest_designs(measured)
            print("\n".join(f"  {line}" for line in results[name]["fastest"]), flush=True)
        if status != 0:
            print("\n".join([f"  {status}", *(f"  {line}" for line in results[name]["tail"])]))
        write_result(output / "summary.json", {"gpu": found, "steps": results})
    return sum(result["status"] != 0 for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
