"""The errors that carafe_deploy/tolerances.py calls "seen", between artefacts that are right.

    python benchmarks/tolerances.py [--images N]

PyTorch in float32 is the reference. Against it: ONNX Runtime in float32 and float16, PyTorch in
float16 and bfloat16; the small trained detectors on the first N of their validation images (all 100
by default), the R-50 detectors with seeded weights on one photograph in float32 alone, since seeded
weights amplify the rounding of half types. The worst of everything is written to
results/tolerances.json, in about 20 minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, argument_parser, write_result
from bench import DETECTORS, photograph, seeded_checkpoint

from carafe_deploy.artefacts import open_runner
from carafe_deploy.data import data_path
from carafe_deploy.demo import CHECKPOINTS
from carafe_deploy.graph.onnx_export import export_onnx
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.images import Image, load_image
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.operators import OPERATORS
from carafe_deploy.parity.compare import compare_ap, compare_detections
from carafe_deploy.parity.compatible import bounded_alike
from carafe_deploy.parity.operator_level import compare_operators
from carafe_deploy.parity.stage_level import StageError, stage_errors
from carafe_deploy.runners.base import Runner
from carafe_deploy.tolerances import TOLERANCES, coarsest

#: Level, kind, precision.
Row = tuple[str, str, str]


class Worst:
    """The worst of each row of the table, and where it was seen."""

    def __init__(self) -> None:
        self.rows: dict[Row, tuple[float, str]] = {}

    def add(self, level: str, kind: str, precision: str, value: float, where: str) -> None:
        """One more error, or share, or overlap."""
        key = level, kind, precision
        smaller_is_worse = TOLERANCES[level, kind][precision].measure in ("matched", "iou")
        sign = -1 if smaller_is_worse else 1
        if key not in self.rows or sign * value > sign * self.rows[key][0]:
            self.rows[key] = value, where

    def as_json(self) -> list[dict[str, Any]]:
        """In the order of the table."""
        return [
            {"level": level, "kind": kind, "precision": precision, "seen": value, "where": where}
            for (level, kind), row in TOLERANCES.items()
            for precision in row
            if (level, kind, precision) in self.rows
            for value, where in [self.rows[level, kind, precision]]
        ]


def compare(worst: Worst, pair: tuple[Runner, Runner], images: Sequence[Image], what: str) -> None:
    """Operators, stages and detections of two artefacts."""
    precision = coarsest(*(runner.info.precision for runner in pair))
    where = f"{what}, {pair[1].backend} {pair[1].info.precision}"
    for row in compare_operators(*pair):
        assert row.total
        share = (row.matched or 0) / row.total
        value = share if row.max_rel_error is None else row.max_rel_error
        kind = OPERATORS[row.name.partition(" ")[0]].tolerance
        worst.add("operators", kind, precision, value, where)
    for error in stage_errors(*pair, images):
        for kind, value in _stage_values(error):
            worst.add("stages", kind, precision, value, where)
    row = compare_detections(*pair, images)
    assert row.total
    worst.add("detections", "matched", precision, (row.matched or 0) / row.total, where)
    for kind, name in (("iou", "min_iou"), ("score", "max_score_error")):
        worst.add("detections", kind, precision, _number(row.details[name]), where)
    if pair[0].info.has_masks:
        overlap = _number(row.details["min_mask_iou"])
        worst.add("detections", "mask_iou", precision, overlap, where)


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _stage_values(error: StageError) -> Iterator[tuple[str, float]]:
    """Rows of the table that a stage tells something about."""
    if error.stage.name == "proposals":
        yield "proposals", error.error.fraction
        yield "proposal_boxes", error.error.max_rel
        yield "proposal_logits", _number(error.details["max_score_error"])
    elif error.limit.measure == "matched":
        yield error.stage.kind, error.error.fraction
    elif error.stage.rows:
        # Which rows lie within the limit is the question there, not how far out the last one is.
        yield "rows", error.error.fraction
    else:
        yield error.stage.kind, error.error.max_rel


def small_detectors(worst: Worst, count: int) -> None:
    """The trained ones, in every precision that runs here."""
    annotations = data_path("shapes/val.json")
    folder = data_path("shapes/val")
    images = [load_image(path) for path in sorted(folder.iterdir())[:count]]
    for name in CHECKPOINTS:
        path = data_path(f"shapes/{name}")
        for candidate in _candidates(path):
            with open_runner(path) as reference, candidate:
                pair = bounded_alike(reference, candidate)
                what = reference.info.name
                compare(worst, pair, images, what)
                precision = candidate.info.precision
                for row in compare_ap(*pair, annotations, folder, limit=count):
                    where = f"{what}, {candidate.backend} {precision}"
                    worst.add("ap", "ap", precision, _number(row.max_abs_error), where)
            print(f"{what}: {candidate.backend} {precision}", flush=True)


def _candidates(path: Path) -> Iterable[Runner]:
    for precision in ("fp16", "bf16"):
        any_size = ExportOptions(precision=precision)
        yield open_runner(path, options=any_size)
    detector, checkpoint = load_detector(path, None)
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "fp16"):
            target = Path(folder, f"{precision}.onnx")
            options = ExportOptions(precision=precision)
            export_onnx(detector, target, options, name=checkpoint.name, source=checkpoint.source)
            yield open_runner(target)


def full_size(worst: Worst) -> None:
    """R-50 with seeded weights on the photograph, in float32."""
    image = photograph()
    for name in ("faster_r50", "mask_r50"):
        with tempfile.TemporaryDirectory() as folder:
            path = seeded_checkpoint(DETECTORS[name].config, Path(folder, "seeded.pth"))
            detector, checkpoint = load_detector(path, None)
            target = Path(folder, "seeded.onnx")
            source = checkpoint.source
            export_onnx(detector, target, ExportOptions(), name=checkpoint.name, source=source)
            with open_runner(path) as reference, open_runner(target) as candidate:
                compare(worst, bounded_alike(reference, candidate), [image], name)
        print(name, flush=True)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--images", type=int, default=100, help="of the validation images")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    worst = Worst()
    small_detectors(worst, arguments.images)
    full_size(worst)
    result = {"images": arguments.images, "rows": worst.as_json()}
    write_result(arguments.results / "tolerances.json", result)


if __name__ == "__main__":
    main()
