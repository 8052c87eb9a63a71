"""`detect` over many images of mixed sizes, in batches: order, detections, memory, and Ctrl-C.

``python tests/fuzz/soak.py [ARTEFACT] --images 2000 --sizes 200``; it takes minutes, so `run.py`
lacks it. Files are links to as many pictures as there are sizes, and one in a hundred is no image.
Each file must be found in its place, what is found in it must be what the picture alone gives, and
a thousand more files must not take more memory. A second run is interrupted half-way, and must
leave what was done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).resolve()
if __name__ == "__main__":  # tests.fuzz is found from the root
    sys.path[0] = str(HERE.parents[2])

from carafe_deploy.artefacts import open_runner  # noqa: E402
from carafe_deploy.data import CHECKPOINTS, data_path  # noqa: E402
from carafe_deploy.pipeline import Pipeline  # noqa: E402
from carafe_deploy.types import Detections  # noqa: E402
from tests.fuzz.outcome import Outcome  # noqa: E402

ARTEFACT = data_path("shapes") / CHECKPOINTS[0]

#: One in so many files is no image.
BROKEN = 100
#: Scores, and pixels of boxes, by which a batch of several may be off.
SCORE, PIXELS = 1e-4, 0.02
#: Fewer tell nothing of a slope.
TELLING = 1000
#: 10^6 bytes a thousand images: what is found is kept for detections.json, some kB an image.
MOST = 10.0


def soak(artefact: Path, count: int, sizes: int, batch: str, seed: int) -> Outcome:
    """Memory is that of the process, from the moment on when half is done."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _images(folder / "in", count, sizes, seed)
        process, said = _detect(artefact, folder, batch)
        samples = _watched(process, folder / "out")
        broken = [number for number in range(count) if _is_broken(number)]
        if process.returncode != (2 if broken else 0):
            return Outcome(count, {}, [f"status {process.returncode}: {said()}"])
        found = json.loads((folder / "out" / "detections.json").read_text())
        failures = _wrong(found, count, broken)
        failures += _unlike(found, _alone(artefact, folder / "in", sizes), sizes)
        failures += _interrupted(artefact, folder, batch, count)
    slope = _slope([one for one in samples if one[0] >= count / 2])
    if count >= TELLING and slope > MOST:
        failures.append(f"{slope:.1f} MB more every thousand images")
    peak = max((memory for _, memory in samples), default=0.0)
    told = f"images of {sizes} sizes, {slope:+.2f} MB every thousand, {peak:.0f} MB at most"
    return Outcome(count, {told: count}, failures)


def _detect(
    artefact: Path, folder: Path, batch: str
) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
    """The command, and what reads the end of what it said."""
    program = "import sys\nfrom carafe_deploy.cli import main\nsys.exit(main())"
    command = ["detect", str(artefact), "in", "-o", "out", "--batch-size", batch, "--overwrite"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *command],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    return process, lambda: (folder / "said").read_text()[-1500:]


def _is_broken(number: int) -> bool:
    return number % BROKEN == BROKEN - 1


def _images(folder: Path, count: int, sizes: int, seed: int) -> None:
    """Links to different pictures, so that they take no room."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    sources = sorted((data_path("shapes") / "val").glob("*.png"))
    for number in range(sizes):
        height, width = random.integers(48, 400, 2).tolist()
        image = cv2.imread(str(sources[number % len(sources)]))
        cv2.imwrite(str(folder / f".{number}.png"), cv2.resize(image, (width, height)))
    for number in range(count):
        target = folder / f"{number:06}.png"
        if _is_broken(number):
            target.write_bytes(b"no image")
        else:
            target.hardlink_to(folder / f".{number % sizes}.png")


def _alone(artefact: Path, folder: Path, sizes: int) -> list[Detections]:
    """Of each picture, one by one."""
    with open_runner(artefact) as runner:
        return Pipeline(runner).detect(folder / f".{number}.png" for number in range(sizes))


def _wrong(found: dict[str, Any], count: int, broken: list[int]) -> list[str]:
    """Files that are not in their place."""
    expected = [f"in/{number:06}.png" for number in range(count)]
    places = [image["file_name"] for image in found["images"]]
    unreadable = [one["file_name"] for one in found["info"]["unreadable"]]
    wrong = [expected[number] for number in broken]
    failures = [f"{len(unreadable)} of {len(wrong)} broken files are named"]
    failures *= unreadable != wrong
    if places != [path for path in expected if path not in set(wrong)]:
        failures.append(f"{len(places)} images of {count}, or in another order")
    return failures


def _unlike(found: dict[str, Any], alone: list[Detections], sizes: int) -> list[str]:
    """The first image in which something else is found than in its picture alone."""
    entries: dict[int, list[dict[str, Any]]] = {}
    for entry in found["annotations"]:
        entries.setdefault(entry["image_id"], []).append(entry)
    for image in found["images"]:
        ours = entries.get(image["id"], [])
        theirs = alone[int(Path(image["file_name"]).stem) % sizes]
        corners = theirs.boxes.copy()
        corners[:, 2:] -= corners[:, :2]
        if (
            [entry["category_id"] - 1 for entry in ours] != theirs.labels.tolist()
            or not np.allclose([entry["score"] for entry in ours], theirs.scores, atol=SCORE)
            or (ours and not np.allclose([e["bbox"] for e in ours], corners, atol=PIXELS))
        ):
            return [f"{image['file_name']}: something else than alone"]
    return []


def _interrupted(artefact: Path, folder: Path, batch: str, count: int) -> list[str]:
    """A run that gets Ctrl-C after a half is to list what is there, and nothing else."""
    shutil.rmtree(folder / "out")
    process, said = _detect(artefact, folder, batch)
    while process.poll() is None and len(_names(folder / "out")) < count // 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait()
    if process.returncode != 128 + signal.SIGINT:
        return [f"interrupted, status {process.returncode}: {said()}"]
    found = json.loads((folder / "out" / "detections.json").read_text())
    pictures = [Path(image["picture"]).name for image in found["images"]]
    if not found["info"]["interrupted"] or not count // 3 < len(pictures) < count:
        return [f"interrupted, it lists {len(pictures)} pictures of {count}"]
    if sorted([*pictures, "detections.json"]) != _names(folder / "out"):
        return [f"interrupted, it lists {len(pictures)} pictures, others are there"]
    return []


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def _watched(process: subprocess.Popen[bytes], pictures: Path) -> list[tuple[int, float]]:
    """Images done and 10^6 bytes resident, as long as the process lives."""
    samples: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(0.25)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            done = len(os.listdir(pictures)) if pictures.exists() else 0
        except OSError:
            break  # it has ended meanwhile
        resident = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        if done and resident:
            samples.append((done, int(resident[0].split()[1]) * 1024 / 1e6))
    process.wait()
    return samples


def _slope(samples: list[tuple[int, float]]) -> float:
    """10^6 bytes a thousand images, by least squares."""
    done, memory = np.array(samples, float).reshape(-1, 2).T
    return float(np.polyfit(done, memory, 1)[0]) * 1e3 if len(done) > 2 else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefact", nargs="?", type=Path, default=ARTEFACT)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sizes", type=int, default=200)
    parser.add_argument("--batch-size", default="4")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcome = soak(
        given.artefact.resolve(), given.images, given.sizes, given.batch_size, given.seed
    )
    for text, count in outcome.outcomes.items():
        print(count, text)
    print("\n".join(outcome.failures))
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
