"""Check and measure everything that needs a GPU, in one command: by default in 400 seconds.

    python benchmarks/gpu_check.py FOLDER [--budget SECONDS] [--steps STEP ...] [-- CMAKE ARGUMENTS]

Steps, in order: configure and build, for the GPU of this machine; "correctness", side by side:
memcheck, racecheck, synccheck and initcheck, which are compute-sanitizer's, of the plugins'
enqueue, pytest (the tests that are skipped elsewhere) and selfcheck; operators, beside mmcv's
CARAFE and torchvision; designs, which says where choose() takes another than the fastest; harness,
the plugins without TensorRT; detectors, an R-50 Mask R-CNN end to end in PyTorch; modes, forward
passes of both R-50 detectors in every way to run PyTorch; stream, from JPEG files to encoded masks;
onnxruntime; ncu, Nsight Compute.

Nothing is built where CARAFE_DEPLOY_PLUGIN names a folder with libraries; carafe_harness and
carafe_designs are then sought in the folder bin beside it, and in it. Neither an installed package
nor a network is needed. Where there is no git checkout, CARAFE_DEPLOY_COMMIT says what the sources
are (`git describe --always --abbrev=40 --dirty`).

Every step has a limit of its own, cut to what is left of the budget. FOLDER/gpu_check.json is
renewed after each: the machine, and of every step its status, reason, seconds and facts. FOLDER has
a log a step besides, and what the steps write. What this machine lacks (Nsight Compute, mmcv) is a
row with the reason. The exit status is 0 if something passed and nothing failed or was left out for
want of time, 1 otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _common import argument_parser, write_result
from _gpu_run import Row, Step, run_steps
from _gpu_steps import BUILD, ROOT, build_steps, steps

from carafe_deploy.environment import ask_nvidia_smi
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.libraries import ENVIRONMENT_VARIABLE, find_library

#: Seconds for everything.
BUDGET = 400.0
RESULT = "gpu_check.json"
_SCHEMA = 1
_WORDS = {"passed": "ok", "failed": "FAILED", "lacking": "LACKING", "not run": "NOT RUN"}
_GPU = ("name", "driver_version", "memory.total", "compute_cap")
_FACTS = ("gpu", "driver", "memory", "compute_capability")


class Record:
    """All rows so far, in a file that is renewed with each.

    Args:
        output: folder of the file.
        budget: seconds.
        machine: the GPU, and what else identifies a run.
    """

    def __init__(self, output: Path, budget: float, machine: dict[str, Any]) -> None:
        self.rows: list[Row] = []
        self._path = output / RESULT
        self._budget, self._machine = budget, machine
        self._begun = time.monotonic()
        self.seconds = 0.0

    @property
    def passed(self) -> bool:
        """Something passed, nothing failed, and everything asked for had its time."""
        statuses = {row.status for row in self.rows}
        return "passed" in statuses and not statuses & {"failed", "not run"}

    def add(self, row: Row) -> None:
        """Print the row and write everything."""
        self.rows.append(row)
        time_taken = f" ({row.seconds:.1f} s)" if row.seconds else ""
        reason = f": {row.reason}" if row.reason else ""
        print(f"{_WORDS[row.status]:8}{row.name}{time_taken}{reason}", flush=True)
        for line in row.facts.get("lines", ()):
            print(f"          {line}", flush=True)
        self.write()

    def write(self) -> None:
        """The file as of now."""
        self.seconds = time.monotonic() - self._begun
        content = {
            "schema": _SCHEMA,
            "passed": self.passed,
            "machine": self._machine,
            "budget_s": self._budget,
            "seconds": round(self.seconds, 1),
            "steps": self._published(),
        }
        write_result(self._path, content)

    def _published(self) -> Any:
        """The rows without this machine's folders: results are published."""
        text = json.dumps([dataclasses.asdict(row) for row in self.rows])
        names = {self._path.parent: "OUT", sys.executable: "python", ROOT: "."}
        for path, name in names.items():
            text = text.replace(json.dumps(str(path))[1:-1], name)
        return json.loads(text)


def gpu() -> tuple[dict[str, str], str]:
    """What the driver tells of the first GPU, and why there is none."""
    try:
        lines = ask_nvidia_smi(*_GPU)
    except FileNotFoundError:
        return {}, "there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError) as error:
        return {}, f"nvidia-smi: {error}"
    if not lines:
        return {}, "nvidia-smi finds none"
    return dict(zip(_FACTS, lines[0].split(", "), strict=False)), ""


def nvcc() -> str:
    """Version of the CUDA compiler; empty if there is none."""
    try:
        done = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return next((line for line in done.stdout.splitlines() if "release" in line), "").strip()


def places() -> tuple[Path, Path, bool]:
    """Folders of libraries and programs, and whether they are prebuilt.

    Raises:
        BackendUnavailableError: CARAFE_DEPLOY_PLUGIN names no libraries of ours.
    """
    if not os.environ.get(ENVIRONMENT_VARIABLE):
        return BUILD / "lib", BUILD / "bin", False
    library = find_library("carafe_kernels")
    if library is None:
        raise BackendUnavailableError(
            f"{ENVIRONMENT_VARIABLE} is {os.environ[ENVIRONMENT_VARIABLE]!r}, where there is no "
            "libcarafe_kernels.so: build it, or unset the variable to have it built"
        )
    folder = library.parent
    beside = folder.parent / "bin"
    return folder, beside if (beside / "carafe_harness").is_file() else folder, True


def chosen(names: list[str] | None, found: list[Step]) -> list[Step]:
    """The steps with these names, or of the groups with these names, in their own order.

    Raises:
        ValueError: a name is unknown.
    """
    if names is None:
        return found
    known = dict.fromkeys([*(step.group for step in found if step.group), *(s.name for s in found)])
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no step {unknown[0]!r}: choose from {', '.join(known)}")
    return [step for step in found if step.name in names or step.group in names]


def child_environment(libraries: Path) -> dict[str, str]:
    """Of the steps: this checkout's package and the libraries, whatever is installed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if any(libraries.glob("libcarafe_*.so")):
        environment[ENVIRONMENT_VARIABLE] = str(libraries)
    return environment


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the running steps, too."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check(output: Path, budget: float, names: list[str] | None, cmake: list[str]) -> int:
    """Everything; the exit status.

    Raises:
        BackendUnavailableError: see :func:`places`.
        ValueError: see :func:`chosen`.
    """
    deadline = time.monotonic() + budget
    libraries, programs, is_prebuilt = places()
    building = [] if is_prebuilt else build_steps(cmake)
    wanted = chosen(names, [*building, *steps(output, libraries, programs)])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output} cannot be a folder of results: {error.strerror}") from error
    found, lacking = gpu()
    machine = {**found, "cuda_compiler": nvcc(), "prebuilt_libraries": is_prebuilt}
    record = Record(output, budget, machine)
    record.write()
    if lacking:
        for step in wanted:
            record.add(Row(step.name, "lacking", f"it needs a GPU: {lacking}"))
    else:
        print(", ".join(found.values()), flush=True)
        with _terminable():
            first = [step for step in wanted if step in building]
            run_steps(first, output, deadline, dict(os.environ), ROOT, record.add)
            # Anew: what has been built is there only now.
            left = {step.name for step in wanted} - {step.name for step in first}
            rest = [step for step in steps(output, libraries, programs) if step.name in left]
            environment = child_environment(libraries)
            run_steps(rest, output, deadline, environment, ROOT, record.add)
    counts = {status: sum(row.status == status for row in record.rows) for status in _WORDS}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    verdict = "PASS" if record.passed else "FAIL"
    verdict += " nothing was checked:" if not counts["passed"] + counts["failed"] else ""
    print(f"{verdict} {words}; {record.seconds:.0f} s; {output / RESULT}")
    return 0 if record.passed else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="these steps or groups only")
    parser.add_argument("cmake", nargs="*", help="more arguments for cmake, after --")
    given = parser.parse_args(arguments)
    if not given.budget > 0:
        parser.error(f"--budget is {given.budget:g}: give a number of seconds above 0")
    try:
        return check(given.folder.resolve(), given.budget, given.steps, given.cmake)
    except (BackendUnavailableError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
