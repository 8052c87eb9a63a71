"""AP and detections of every backend beside mmdetection's, on the two small trained detectors.

    python benchmarks/accuracy.py

The same comparison as `carafe-deploy demo`, recorded in results/accuracy.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _common import RESULTS, write_result

from carafe_deploy.demo import DetectorResult, run_demo


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(Path(folder), step=lambda name: print(name, flush=True))
    rows = {detector.title: _summary(detector) for detector in result.detectors}
    write_result(
        RESULTS / "accuracy.json",
        {"images": result.images, "passed": result.passed, "detectors": rows},
    )


def _summary(detector: DetectorResult) -> dict[str, Any]:
    return {
        "mmdetection": detector.recorded,
        "backends": {
            backend.backend: {
                "numbers": backend.numbers,
                "largest_deviation": detector.deviation(backend),
                "matched": backend.matched,
                "recorded": backend.recorded,
            }
            for backend in detector.backends
        },
    }


if __name__ == "__main__":
    main()
