"""Two programs that write an engine and its sidecar under one name, and one that reads them.

The writers are ended at any moment, politely or not. Whatever the reader finds belongs together.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from carafe_deploy import termination
from carafe_deploy.engine.pair import read_pair, written_pair
from carafe_deploy.engine.profiles import Profile
from carafe_deploy.engine.sidecar import Sidecar
from carafe_deploy.errors import ArtefactError
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing
from tests.fuzz.outcome import MOST_FAILURES, Outcome

#: Seconds that writers live at most, from their first pair on.
LIFE = 2.0


def attack(seconds: float, seed: int) -> Outcome:
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    while True:
        with tempfile.TemporaryDirectory() as folder:
            _round(Path(folder) / "x.engine", seed, outcomes, failures)
        seed += 1
        if time.monotonic() >= end or len(failures) >= MOST_FAILURES:
            return Outcome(sum(outcomes.values()) + len(failures), outcomes, failures)


def _round(path: Path, seed: int, outcomes: Counter[str], failures: list[str]) -> None:
    """Pairs are read while two writers live, and once more when they are gone."""
    chance = random.Random(seed)
    number = chance.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
    command = [sys.executable, "-c", "from tests.fuzz.writers import write; write()", str(path)]
    writers = [
        subprocess.Popen(
            [*command, str(seed + i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # What a shell starts in the background ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        for i in range(2)
    ]
    try:
        for writer in writers:  # before that line signals are Python's
            assert writer.stdout is not None
            writer.stdout.readline()
        while not path.exists():
            time.sleep(0.01)
        end = time.monotonic() + chance.uniform(0.1, LIFE)
        while time.monotonic() < end:
            _read(path, "while two write", seed, outcomes, failures)
    finally:
        for writer in writers:
            writer.send_signal(number)
        said = b"".join(writer.communicate()[1] for writer in writers)
    _read(path, f"after {number.name}", seed, outcomes, failures)
    if number == signal.SIGKILL:  # nobody can tidy up
        return
    names = sorted(one.name for one in path.parent.iterdir())
    if names != ["x.engine", "x.engine.json"] or b"Traceback" in said:
        failures.append(f"--seed {seed} --seconds 0: {number.name} left {names} and said {said!r}")


def _read(path: Path, when: str, seed: int, outcomes: Counter[str], failures: list[str]) -> None:
    try:
        sidecar, plan = read_pair(path)
    except ArtefactError as error:
        failures.append(f"--seed {seed} --seconds 0: {when}: {error}")
    else:
        assert sidecar.source["sha256"] == hashlib.sha256(plan[:8]).hexdigest()
        outcomes[f"whole pair {when}"] += 1


def write() -> None:
    """Write one pair after the other, for ever."""
    termination.guard()
    print("ready", flush=True)
    path, chance = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    while True:
        plan = chance.randbytes(chance.choice((10, 1000, 1 << 20)))
        with written_pair(path) as put:
            put(plan, _sidecar(plan))


def _sidecar(plan: bytes) -> Sidecar:
    size = (1, 64, 64)
    model = ModelInfo(
        name="x",
        architecture="faster_rcnn",
        classes=("cat",),
        preprocessing=Preprocessing(scale=(200, 100)),
        input=InputFormat("nchw_float32", (1, 1), (64, 64), (64, 64)),
    )
    return Sidecar(
        bytes=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        flavour="tensorrt_rtx",
        version="1.7",
        compute_capabilities=("8.6",),
        plugin=None,
        source={"file": "x.onnx", "sha256": hashlib.sha256(plan[:8]).hexdigest()},
        profiles=(Profile(size, size, size),),
        stages=False,
        layers={},
        build={"seconds": 1.5, "peak_memory_bytes": 10, "workspace_bytes": None, "tf32": False},
        model=model,
    )
