"""Break the CUDA kernels in small ways and count how many breaks the tests notice.

Usage: python plugins/tests/mutate.py [--count N] [--jobs N] [--only FILE | --new] [--out FILE]

A mutant is one change of one token in the kernels' source: a bound, an index, a sign, a barrier, a
constant, a condition. Each is compiled for the emulator and runs the problems of tests/plugins,
with the threads in every order, until one of them fails; a mutant that hangs or crashes is noticed
as well. The choice is the same on every machine. Survivors are explained in known_mutants.json;
those that are equivalent, since they compute the same or differ in speed only, are drawn but not
run. Mutants are drawn from all files in turn, so those of a file that is new can be added to the
results of the others, whose code is what it was: --new.

Exits with 1 when a survivor has no reason there, or fewer than 95 % of those run were killed.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from carafe_deploy.kernels import Device  # noqa: E402
from tests.ops import test_roi_levels as levels  # noqa: E402
from tests.plugins import candidates, problems  # noqa: E402
from tests.plugins.emulated import BACKWARD, FORWARD, EmulatedLibrary, at_random  # noqa: E402
from tests.plugins.test_preprocess import one_column, random_case  # noqa: E402
from tests.plugins.varied import (  # noqa: E402
    Twins,
    neighbours_nms,
    varied_nms,
    varied_roi_align,
)

KERNELS = ROOT / "plugins/kernels"
KNOWN = Path(__file__).with_name("known_mutants.json")
RESULTS = Path(__file__).parent / "results/mutants.json"
SOURCES = ("carafe.cu", "candidates.cu", "roi_align.cu", "nms.cu", "preprocess.cu")
#: Computes the workspace's size from a header of the kernels.
HOST_SOURCE = "nms_params.cpp"
#: What a kernel includes but shares with the interface, the build or the CPU twins' callers.
NOT_MUTATED = (
    *("types.h", "carafe.h", "candidates.h", "roi_align.h", "nms.h", "preprocess.h"),
    *("cuda_kernels.h", "host_device.h", "carafe_designs.h"),
)
SEED = 20190501
#: Seconds on a processor; the slowest problem list takes a fraction of it.
TIMEOUT = 60
#: As many times longer on a clock, for what waits without computing, or a busy machine.
PATIENCE = 20
REQUIRED = 0.95


# --- mutants -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One changed line of one file."""

    file: str
    line: int
    operator: str
    before: str
    after: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it when lines move."""
        return self.file, self.before.strip(), self.after.strip()


Change = Callable[[re.Match[str]], str]


def _to(text: str) -> Change:
    return lambda match: match.expand(text)


def _swapped(first: str, second: str) -> Change:
    return lambda match: match[0].replace(match[1], second if match[1] == first else first)


#: Name, what it looks for (binary operators stand between spaces), and what it makes of it.
OPERATORS: Sequence[tuple[str, str, Change]] = (
    ("barrier", r"__sync(?:threads|warp)\([^()]*\);", _to(";")),
    ("bound", r" (<=?) (?!<)", _swapped("<", "<=")),
    ("bound", r" (>=?) (?!>)", _swapped(">", ">=")),
    ("sign", r"(?<=[\w)\]]) ([+-]) ", _swapped("+", "-")),
    ("factor", r"(?<=[\w)\]]) ([*/]) ", _swapped("*", "/")),
    ("factor", r"(?<=[\w)\]]) % ", _to(" / ")),
    ("equality", r" ([!=]=) ", _swapped("==", "!=")),
    ("logic", r" (&&|\|\|) ", _swapped("&&", "||")),
    ("shift", r" (<<|>>) ", _swapped("<<", ">>")),
    ("index", r"\[([^\[\]]+)\](?= *[;,)+\-*/%.\]=<>&|?:]| *$)", _to(r"[\1 + 1]")),
    ("index", r"\[([^\[\]]+)\](?= *[;,)+\-*/%.\]=<>&|?:]| *$)", _to(r"[\1 - 1]")),
    ("condition", r"\bif \((?!constexpr)(.+)\)(?= |$)", _to(r"if (!(\1))")),
    ("check", r"\bif \((?!constexpr)(.+)\)(?= |$)", _to("if (true)")),
    ("check", r"\bif \((?!constexpr)(.+)\)(?= |$)", _to("if (false)")),
    ("extremum", r"\b(fmin|fmax)f\(", _swapped("fmin", "fmax")),
    ("extremum", r"(?<![\w:.])(min|max)\(", _swapped("min", "max")),
    ("constant", r"(?<![\w.<])0(?![\w.])", _to("1")),
    ("constant", r"(?<![\w.<])1(?![\w.])", _to("2")),
    ("constant", r"(?<![\w.<])2(?![\w.])", _to("3")),
    ("scale", r"\b0\.0f", _to("1.0f")),
    ("scale", r"\b0\.5f", _to("0.25f")),
    ("scale", r"\b1\.0f", _to("0.5f")),
    ("step", r"(\w)\+\+|\+\+(\w+)(?=\))", lambda match: match[0].replace("++", "--")),
    ("update", r" \+= ", _to(" = ")),
    ("update", r" \*= ", _to(" += ")),
    ("update", r" /= ", _to(" *= ")),
    ("leave", r"\b(?:return|continue|break);", _to(";")),
)

#: Lines that hold no arithmetic of a kernel.
SKIPPED = re.compile(r"\s*(?:#|//|/\*|\*|static_assert|template|using|namespace|case |default)")


def mutants_of(file: str) -> Iterator[Mutant]:
    """All changes of one file."""
    for number, line in enumerate((KERNELS / file).read_text().splitlines(), start=1):
        if SKIPPED.match(line):
            continue
        code = line.partition("//")[0]
        for operator, pattern, change in OPERATORS:
            for match in re.finditer(pattern, code):
                after = line[: match.start()] + change(match) + line[match.end() :]
                if after != line:
                    yield Mutant(file, number, operator, line, after)


def included(file: str) -> set[str]:
    """The file and what it includes of this folder, and so on."""
    found, queue = set(), [file]
    while queue:
        name = queue.pop()
        if name not in found and (KERNELS / name).exists():
            found.add(name)
            queue += re.findall(r'#include "([^"]+)"', (KERNELS / name).read_text())
    return found


def mutated_files() -> list[str]:
    """Every file with code of a kernel."""
    return sorted(set().union(*map(included, SOURCES)) - set(NOT_MUTATED))


def code_hash(file: str) -> str:
    """SHA-256 of a file without comments and blank lines, which no mutant changes."""
    lines = (line.partition("//")[0].rstrip() for line in (KERNELS / file).read_text().splitlines())
    return hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()


def known_mutants() -> dict[tuple[str, str, str], dict[str, Any]]:
    """What is known of survivors, by :attr:`Mutant.key`."""
    entries = json.loads(KNOWN.read_text())
    return {(entry["file"], entry["before"], entry["after"]): entry for entry in entries}


def choose(count: int, files: Sequence[str]) -> list[Mutant]:
    """``count`` mutants, drawn in turn over files and operators."""
    queues: dict[str, list[list[Mutant]]] = {}
    for file in files:
        by_operator: dict[str, list[Mutant]] = collections.defaultdict(list)
        for mutant in mutants_of(file):
            by_operator[mutant.operator].append(mutant)
        shuffled = [by_operator[operator] for operator in sorted(by_operator)]
        for queue in shuffled:
            random.Random(f"{SEED} {file} {queue[0].operator}").shuffle(queue)
        queues[file] = shuffled
    chosen: list[Mutant] = []
    while len(chosen) < count and any(queues.values()):
        for waiting in queues.values():
            if waiting:
                queue = waiting.pop(0)
                chosen.append(queue.pop())
                if queue:
                    waiting.append(queue)
        queues = {file: waiting for file, waiting in queues.items() if waiting}
    return chosen[:count]


# --- tests ---------------------------------------------------------------------------------------

Check = Callable[[EmulatedLibrary], None]


def _in_order(problem: Any, order: Any) -> Check:
    def check(library: EmulatedLibrary) -> None:
        library.set_order(order)
        problem.check(library)

    return check


def check_levels(library: EmulatedLibrary) -> None:
    """Both sides of the boundaries between pyramid levels."""
    rois = levels.squares(list(levels.BOUNDARIES)).unsqueeze(0)
    found = levels.by_kernels(Device.CUDA, problems.NCHW, rois, library)
    assert found.flatten().round().tolist() == list(levels.BOUNDARIES.values())


def checks_by_source() -> dict[str, list[Check]]:
    """Most of what the emulator runs in tests/plugins; quick and random ones first."""
    lists: dict[str, list[Any]] = {
        "carafe.cu": problems.DESIGN_CHOICES
        + [problems.random_carafe(seed) for seed in range(400)]
        + [problems.random_designs(seed) for seed in range(500)]
        + problems.carafe_problems(),
        "candidates.cu": [candidates.random_box(seed) for seed in range(40)]
        + candidates.rpn_problems()[::3]
        + candidates.box_problems()[::2],
        "roi_align.cu": [problems.random_roi_align(seed) for seed in range(150)]
        + problems.roi_align_problems(),
        "nms.cu": problems.nms_problems()
        + [problems.random_nms(seed) for seed in range(150)]
        + [problems.long_nms(candidates) for candidates in (4096, 4097)],
    }
    twins: dict[str, list[Twins]] = {
        "candidates.cu": [
            *(Twins(candidates.random_rpn(seed)) for seed in range(80)),
            *(Twins(candidates.scattered_rpn(count)) for count in (1, 1000, 4096)),
        ],
        "roi_align.cu": [Twins(varied_roi_align(seed)) for seed in range(250)],
        "nms.cu": [
            Twins(neighbours_nms()),
            *(Twins(varied_nms(seed)) for seed in range(250)),
        ],
    }
    checks: dict[str, list[Check]] = {}
    for source, entries in lists.items():
        checks[source] = [
            _in_order(pair, (FORWARD, BACKWARD, at_random(number))[number % 3])
            for number, pair in enumerate(twins.get(source, []))
        ]
        for number, problem in enumerate(entries):
            _ = problem.expected  # once, before the workers fork
            orders = [(FORWARD, BACKWARD, at_random(number))[number % 3]]
            if not problem.reason.startswith("random"):
                orders = [FORWARD, BACKWARD, at_random(1)]
            checks[source] += [_in_order(problem, order) for order in orders]
    checks["roi_align.cu"].append(check_levels)
    checks["preprocess.cu"] = [
        _in_order(random_case(seed, 90), (FORWARD, BACKWARD, at_random(seed))[seed % 3])
        for seed in range(100)
    ]
    checks["preprocess.cu"].append(one_column().check)
    return checks


def run_checks(library: Path, checks: Sequence[Check]) -> str:
    """In a process of its own: "killed", "crashed", "hung" or "survived"."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = 0
        resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT + 5))
        try:
            loaded = EmulatedLibrary(library)
            for check in checks:
                check(loaded)
        except BaseException:
            status = 1
        os._exit(status)
    deadline = time.monotonic() + PATIENCE * TIMEOUT
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if os.WIFSIGNALED(status):
                return "hung" if os.WTERMSIG(status) == signal.SIGXCPU else "crashed"
            return "killed" if os.WEXITSTATUS(status) else "survived"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


# --- build ---------------------------------------------------------------------------------------


class Build:
    """A build of the emulated library, and how to make it again with other sources."""

    def __init__(self, folder: Path) -> None:
        options = {
            "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_FLAGS_RELEASE": "-O1",
            "CARAFE_CUDA": "OFF",
            "CARAFE_TENSORRT": "OFF",
            "CARAFE_TESTS": "ON",
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["cmake", "-S", ROOT, "-B", folder, *definitions], **quiet)
        subprocess.run(
            ["cmake", "--build", folder, "--target", "carafe_emulated", "--parallel", "2"], **quiet
        )
        commands = json.loads((folder / "compile_commands.json").read_text())
        self.commands = {
            Path(entry["file"]).name: shlex.split(entry["command"])
            for entry in commands
            if "carafe_emulated_kernels.dir" in entry["command"]
            or Path(entry["file"]).name == HOST_SOURCE
        }
        targets = ("kernels/CMakeFiles/carafe_cpu.dir", "emulator/CMakeFiles/carafe_emulator.dir")
        folders = [*targets, "emulator/CMakeFiles/carafe_emulated.dir"]
        self.objects = {
            source: next(folder.rglob(f"carafe_*.dir/**/{source}.o"))
            for source in (*SOURCES, HOST_SOURCE)
        }
        self.common = [
            path
            for name in folders
            for path in sorted((folder / "plugins" / name).rglob("*.o"))
            if path not in self.objects.values()
        ]
        self.unchanged = folder / "lib/libcarafe_kernels_emulated.so"
        self.compiler = subprocess.run(
            [self.commands[SOURCES[0]][0], "--version"], check=True, capture_output=True, text=True
        ).stdout.splitlines()[0]

    def library(self, mutant: Mutant, folder: Path) -> tuple[Path, list[str]] | None:
        """The library with a mutant, and the sources that hold it; None when it is no C++."""
        kernels = folder / "kernels"
        shutil.copytree(KERNELS, kernels)
        lines = (KERNELS / mutant.file).read_text().splitlines(keepends=True)
        lines[mutant.line - 1] = mutant.after + "\n"
        (kernels / mutant.file).write_text("".join(lines))
        touched = [source for source in self.objects if mutant.file in included(source)]
        objects = dict(self.objects)
        for source in touched:
            objects[source] = folder / f"{source}.o"
            command = [part.replace(str(KERNELS), str(kernels)) for part in self.commands[source]]
            command[command.index("-o") + 1] = str(objects[source])
            command = [part for part in command if not part.startswith(("-W", "-MT", "-MF"))]
            if subprocess.run([*command, "-w"], stderr=subprocess.DEVNULL).returncode:
                return None
        library = folder / "libmutant.so"
        # Of an inline function in several objects the linker keeps the first.
        parts = [*objects.values(), *self.common]
        compiler = self.commands[SOURCES[0]][0]
        subprocess.run([compiler, "-shared", "-pthread", "-o", library, *parts], check=True)
        return library, [source for source in touched if source != HOST_SOURCE]


# --- campaign ------------------------------------------------------------------------------------

_build: Build
_checks: dict[str, list[Check]]


def judge(mutant: Mutant) -> tuple[Mutant, str, float]:
    """Compile and test one mutant in a worker."""
    start = time.monotonic()
    if known_mutants().get(mutant.key, {}).get("equivalent"):
        return mutant, "equivalent", 0.0
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        built = _build.library(mutant, Path(folder))
        if built is None:
            return mutant, "invalid", time.monotonic() - start
        library, touched = built
        checks = [check for source in touched for check in _checks[source]]
        return mutant, run_checks(library, checks), time.monotonic() - start


def head() -> str:
    """The commit, marked when sources differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "plugins/kernels", "plugins/emulator", "tests/plugins")
    return git("rev-parse", "HEAD") + ("-modified" if changed else "")


def summary(outcomes: Sequence[tuple[Mutant, str, float]]) -> dict[str, Any]:
    """What is written to the results file."""
    valid = [outcome for outcome in outcomes if outcome[1] not in ("invalid", "equivalent")]
    drawn = collections.Counter(status for _, status, _ in outcomes)
    survivors = [mutant for mutant, status, _ in outcomes if status in ("survived", "equivalent")]
    known = known_mutants()
    by_file: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    by_operator: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for mutant, status, _ in valid:
        by_file[mutant.file][status] += 1
        by_operator[mutant.operator][status] += 1
    return {
        "commit": head(),
        "compiler": _build.compiler,
        "seed": SEED,
        "code": {file: code_hash(file) for file in mutated_files()},
        "mutants": len(valid),
        "killed": len(valid) - drawn["survived"],
        "share": round(1 - drawn["survived"] / max(1, len(valid)), 4),
        "does_not_compile": drawn["invalid"],
        "equivalent": drawn["equivalent"],
        "by_file": {file: dict(counts) for file, counts in sorted(by_file.items())},
        "by_operator": {name: dict(counts) for name, counts in sorted(by_operator.items())},
        "survivors": [
            {
                "file": mutant.file,
                "line": mutant.line,
                "operator": mutant.operator,
                "equivalent": known.get(mutant.key, {}).get("equivalent", False),
                "before": mutant.before.strip(),
                "after": mutant.after.strip(),
                "reason": known.get(mutant.key, {}).get("reason", ""),
            }
            for mutant in survivors
        ],
    }


def added(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Results of files together with those of others."""
    whole = old | new
    for name in ("mutants", "killed", "does_not_compile", "equivalent", "seconds"):
        whole[name] = old[name] + new[name]
    whole["share"] = round(whole["killed"] / max(1, whole["mutants"]), 4)
    whole["by_file"] = dict(sorted((old["by_file"] | new["by_file"]).items()))
    names = sorted({*old["by_operator"], *new["by_operator"]})
    whole["by_operator"] = {
        name: dict(
            collections.Counter(old["by_operator"].get(name, {}))
            + collections.Counter(new["by_operator"].get(name, {}))
        )
        for name in names
    }
    survivors = [*old["survivors"], *new["survivors"]]
    whole["survivors"] = sorted(survivors, key=lambda one: (one["file"], one["line"], one["after"]))
    return whole


def main() -> int:
    """Run the campaign."""
    global _build, _checks
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=140, help="mutants to generate")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", help="one file of plugins/kernels")
    parser.add_argument("--new", action="store_true", help="files that the results lack; add them")
    parser.add_argument("--build", type=Path, default=ROOT / "build/mutants", help="build folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # nothing may hold threads when processes fork
    old = json.loads(arguments.out.read_text()) if arguments.new else {}
    files = mutated_files()
    count = arguments.count
    if arguments.new:
        changed = [
            file for file in files if old["code"].get(file, code_hash(file)) != code_hash(file)
        ]
        if changed:
            sys.exit(
                f"the results are of other code than today's {', '.join(changed)}: run them all"
            )
        new = [file for file in files if file not in old["code"]]
        count = count * len(new) // len(files)
        files = new
    chosen = choose(count, [arguments.only] if arguments.only else files)
    _build, _checks = Build(arguments.build), checks_by_source()
    for source, checks in _checks.items():
        status = run_checks(_build.unchanged, checks)
        if status != "survived":
            sys.exit(f"the unchanged {source} is {status}: the tests must pass first")
    start, outcomes = time.monotonic(), []
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        for outcome in pool.imap_unordered(judge, chosen):
            outcomes.append(outcome)
            mutant, status, seconds = outcome
            print(f"{len(outcomes):4} {status:8} {seconds:5.1f} s  {mutant.file}:{mutant.line}")
            if status == "survived":
                print(f"      - {mutant.before.strip()}\n      + {mutant.after.strip()}")
            sys.stdout.flush()
    outcomes.sort(key=lambda outcome: (outcome[0].file, outcome[0].line, outcome[0].after))
    report = summary(outcomes) | {"seconds": round(time.monotonic() - start)}
    report = added(old, report) if old else report
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['killed']} of {report['mutants']} mutants killed ({report['share']:.1%})")
    explained = all(survivor["reason"] for survivor in report["survivors"])
    return int(report["share"] < REQUIRED or not explained)


if __name__ == "__main__":
    sys.exit(main())
