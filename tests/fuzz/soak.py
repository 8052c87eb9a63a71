"""`detect` over many images of mixed sizes: how much memory a thousand more of them take.

``python tests/fuzz/soak.py [ARTEFACT] --images 5000``; it takes minutes, so `run.py` lacks it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).resolve()
if __name__ == "__main__":  # tests.fuzz is found from the root
    sys.path[0] = str(HERE.parents[2])

from carafe_deploy.data import CHECKPOINTS, data_path  # noqa: E402
from tests.fuzz.outcome import Outcome  # noqa: E402

ARTEFACT = data_path("shapes") / CHECKPOINTS[0]

#: Different images; their sizes are all different.
SIZES = 60
#: Fewer tell nothing of a slope.
TELLING = 1000
#: 10^6 bytes a thousand images: what is found is kept for detections.json, some kB an image.
MOST = 10.0


def soak(artefact: Path, count: int, seed: int) -> Outcome:
    """Memory is that of the process, from the moment on when a quarter is done."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _images(folder / "in", count, seed)
        program = "import sys\nfrom carafe_deploy.cli import main\nsys.exit(main())"
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", program, "detect", str(artefact), "in", "-o", "out"],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=said,
                stderr=said,
            )
            samples = _watched(process, folder / "out")
            said.seek(0)
            if process.returncode:
                return Outcome(count, {}, [f"status {process.returncode}: {said.read()[-1500:]}"])
        found = json.loads((folder / "out" / "detections.json").read_text())["images"]
    slope = _slope([one for one in samples if one[0] >= count / 4])
    failures = [f"{len(found)} of {count} images are detected"] * (len(found) != count)
    if count >= TELLING and slope > MOST:
        failures.append(f"{slope:.1f} MB more every thousand images")
    peak = max((memory for _, memory in samples), default=0.0)
    told = f"images, {slope:+.2f} MB every thousand, {peak:.0f} MB at most"
    return Outcome(count, {told: count}, failures)


def _images(folder: Path, count: int, seed: int) -> None:
    """Links to different pictures, so that they take no room."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    sources = sorted((data_path("shapes") / "val").glob("*.png"))
    for number in range(count):
        target = folder / f"{number:06}.png"
        if number < SIZES:
            height, width = random.integers(48, 400, 2).tolist()
            image = cv2.imread(str(sources[number % len(sources)]))
            cv2.imwrite(str(target), cv2.resize(image, (width, height)))
        else:
            target.hardlink_to(folder / f"{number % SIZES:06}.png")


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
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcome = soak(given.artefact.resolve(), given.images, given.seed)
    for text, count in outcome.outcomes.items():
        print(count, text)
    print("\n".join(outcome.failures))
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
