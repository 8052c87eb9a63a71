"""Signals at any moment of any command, from 0 s on, the moment before the first line included.

A command ends at once with 128 and the signal's number, or has ended before. It says no more than
a word, leaves nothing half-written and no process behind.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from carafe_deploy.data import CHECKPOINTS, data_path
from carafe_deploy.engine.pair import read_pair
from tests.fuzz.outcome import Broken, Outcome, repeated

#: Seconds that ending is to take, and that it may on a machine with much else to do.
SOON, LIMIT = 2.0, 10.0
#: Seconds from the start within which a signal is sent, in half of all cases.
EARLY = 0.5
#: Otherwise.
LATE = 12.0

#: Among temporary files after any run, signalled or not: of ONNX Runtime, and of PyTorch.
THEIRS = (".ses", "torchinductor_")

SHAPES = data_path("shapes")
FASTER = SHAPES / CHECKPOINTS[0]
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_faster_shapes.json"

#: Their outputs go to a folder ``out``. {model} is an ONNX file.
COMMANDS = {
    "models": ["models"],
    "export": ["export", FASTER, "-o", "out/x.onnx", "--size", "128x192"],
    "export .ts": ["export", FASTER, "-o", "out/x.ts"],
    "build": ["build", "{model}", "-o", "out/x.engine"],
    "inspect": ["inspect", "{model}"],
    "detect": ["detect", FASTER, SHAPES / "val", "-o", "out"],
    "parity": ["parity", FASTER, FASTER, "-o", "out/parity.json"],
    "eval": [
        *("eval", FASTER, "--annotations", SHAPES / "val.json"),
        *("--images", SHAPES / "val", "-o", "out"),
    ],
    "bench": ["bench", FASTER, "--rounds", 3, "-o", "out/bench.json"],
    "bench --op": ["bench", "--op", "nms", "--rounds", 1, "-o", "out/operators.json"],
    "report": ["report", RESULT, "-o", "out/report.html"],
    "demo": ["demo", "-o", "out"],
    "selfcheck": ["selfcheck", "-o", "out"],
    "doctor": ["doctor"],
}


def attack(seconds: float, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "tiny.onnx")
        return repeated(seconds, seed, lambda number: _case(number, model))


def make_model(path: Path) -> Path:
    """In a process of its own, since this one is to stay light."""
    program = "import sys; from pathlib import Path; from tests.engine.tiny import tiny_model"
    program += "; tiny_model(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    return path


def _case(seed: int, model: Path) -> str:
    chance = random.Random(seed)
    name = chance.choice(list(COMMANDS))
    number = chance.choice((signal.SIGTERM, signal.SIGINT))
    moment = chance.uniform(0, chance.choice((EARLY, LATE)))
    return f"{name}: {one(COMMANDS[name], number, moment, model)}"


def one(command: list[object], number: signal.Signals, moment: float, model: Path) -> str:
    """Start a command, signal it, and look at what is left.

    Returns:
        How it ended.

    Raises:
        Broken: it did what it must not.
    """
    words = [str(model) if word == "{model}" else str(word) for word in command]
    what = f"{number.name} after {moment:.3f} s of {' '.join(words[:1])}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        process = _start(words, folder)
        try:
            status, seconds, err = _signalled(process, number, moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Broken(f"{what}: goes on for {LIMIT + 60:g} s") from None
        if seconds is None:
            return "had ended"
        if seconds > LIMIT:
            raise Broken(f"{what}: took {seconds:.1f} s to end, status {status}")
        if _before_the_program(status, number, err):
            ending = f"{status} before the program's first line"
            ending += ", with Python's traceback" if err else ""
        elif status == 128 + number and _is_quiet(err):
            ending = f"{status}" if seconds <= SOON else f"{status} in {LIMIT:g} s"
        elif status == -number and _is_quiet(err):
            ending = f"{status} as Python left"  # which gives the signals back before it is gone
        elif status == 0 and _is_quiet(err):
            ending = "was at its end"
        else:
            raise Broken(f"{what}: status {status}, it says {err[-1500:]}")
        _nothing_half_written(folder, what)
        _no_process_left(folder, what)
        return ending


def _start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """As a terminal or a container does: in a group of its own, signals as usual."""
    program = "import sys\nfrom carafe_deploy.cli import main\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _signalled(
    process: subprocess.Popen[str], number: signal.Signals, moment: float
) -> tuple[int, float | None, str]:
    """Status, seconds that ending took (None: it had ended before) and what it said on stderr."""
    try:
        _, err = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        pass
    else:
        return process.returncode, None, err
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    begun = time.monotonic()
    _, err = process.communicate(timeout=LIMIT + 60)
    return process.returncode, time.monotonic() - begun, err


def _before_the_program(status: int, number: signal.Signals, err: str) -> bool:
    """Python's own start, and reading the program: its first line sets the handlers."""
    if status == -number and not err:
        return True
    ours = re.search(r'File "(?!<frozen).*, in main', err)  # the module site has a main, too
    return number == signal.SIGINT and status in (1, -number) and ours is None


def _is_quiet(err: str) -> bool:
    return "Traceback" not in err and "Exception" not in err and "error:" not in err


def _nothing_half_written(folder: Path, what: str) -> None:
    left = [path for path in (folder / "tmp").iterdir() if not path.name.startswith(THEIRS)]
    if left:
        raise Broken(f"{what}: leaves {[path.name for path in left]} among temporary files")
    for path in (folder / "out").rglob("*"):
        if path.name.startswith("."):
            raise Broken(f"{what}: leaves {path.relative_to(folder)}")
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".engine":
            read_pair(path)
        if path.suffix == ".png" and not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
            raise Broken(f"{what}: leaves half of {path.name}")


def _no_process_left(folder: Path, what: str) -> None:
    """None has this folder for its own for longer than a moment."""
    end = time.monotonic() + LIMIT
    while (found := _in_folder(folder)) and time.monotonic() < end:
        time.sleep(0.01)
    if found:
        raise Broken(f"{what}: leaves the processes {found}")


def _in_folder(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder.resolve():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found
