"""Results of the demo as Markdown."""

from __future__ import annotations

import os
from pathlib import Path

from carafe_deploy.backends import title_of
from carafe_deploy.demo import (
    PARITY_IMAGES,
    DemoResult,
    EngineResult,
    Numbers,
)
from carafe_deploy.files import atomic_write_text
from carafe_deploy.parity import LEVELS
from carafe_deploy.report.markdown import markdown_table
from carafe_deploy.report.parity import level_summary
from carafe_deploy.tolerances import tolerance

__all__ = ["NEXT", "demo_report", "engine_summary", "write_demo_report"]

#: What to do with one's own checkpoint.
NEXT = (
    "carafe-deploy export YOUR_CHECKPOINT.pth -o detector.onnx",
    "carafe-deploy detect detector.onnx YOUR_IMAGES/",
    "carafe-deploy parity YOUR_CHECKPOINT.pth detector.onnx",
    "carafe-deploy build detector.onnx -o detector.engine",
)


def write_demo_report(result: DemoResult, path: Path) -> None:
    """Write :func:`demo_report` to a file; links are relative to its folder.

    Raises:
        CarafeDeployError: the path is not writable.
    """
    atomic_write_text(path, demo_report(result, path.parent))


def demo_report(result: DemoResult, folder: Path) -> str:
    """Markdown with AP, parity, pictures and versions.

    Args:
        result: of :func:`carafe_deploy.demo.run_demo`.
        folder: that file links are relative to.
    """
    verdict = "Everything agrees." if result.passed else "**Something deviates: see ✗ below.**"
    drawn = dict.fromkeys(title_of(d.drawn) for d in result.detectors if d.drawn)
    lines = [
        "# carafe-deploy demo",
        "",
        f"{verdict} Two small detectors, trained by mmdetection on synthetic shapes, exported to "
        f"TorchScript and ONNX, built into engines, and run on {result.images} validation images "
        f"in {result.seconds:.0f} s.",
        "",
        f"![detections]({_link(result.sheet, folder)})",
        "",
        f"Detections of {' and '.join(drawn) or 'no backend'}, enlarged for their names and "
        "scores.",
        "",
        *_failed(result),
        "## AP next to mmdetection's",
        "",
        *_ap_table(result),
        "",
        f"Limits: {tolerance('ap', 'ap').value:g} for each AP, "
        f"{tolerance('detections', 'matched').value:.1%} of mmdetection's recorded detections "
        f"found again (same class, IoU ≥ {tolerance('detections', 'iou').value:g}, score within "
        f"{tolerance('detections', 'score').value:g}, mask IoU ≥ "
        f"{tolerance('detections', 'mask_iou').value:g}). Times are for a whole image, from its "
        "file to its masks, in one PyTorch thread.",
        "",
        "## Parity with PyTorch",
        "",
        "Operators on random inputs, intermediate tensors and detections on "
        f"{PARITY_IMAGES} images: the largest error relative to the "
        "largest magnitude in its tensor, and how many proposals or detections found their partner "
        "if not all did. AP: the change from PyTorch. Every row is in "
        "[report.json](report.json).",
        "",
        *_parity_table(result),
        "",
        "## Engines",
        "",
        *(f"- {d.title}: {engine_summary(d.engine)}" for d in result.detectors),
        "",
        "## Files",
        "",
        *_files(result, folder),
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items())),
        "",
        "## Next",
        "",
        "```sh",
        *NEXT,
        "```",
    ]
    return "\n".join(lines) + "\n"


def _failed(result: DemoResult) -> list[str]:
    """What ended with an error, by step; nothing if all went well."""
    rows = [
        [f"✗ {detector.title}, {step}", " ".join(failure.reason.split())]
        for detector in result.detectors
        for step, failure in detector.failed.items()
    ]
    return ["## Failed", "", *markdown_table(["", "error"], rows), ""] if rows else []


def _ap_table(result: DemoResult) -> list[str]:
    rows = []
    for detector in result.detectors:
        recorded = detector.recorded
        rows.append([f"**{detector.title}**, mmdetection", *_numbers(recorded), "", "", ""])
        rows += [
            [
                f"{detector.title}, {title_of(backend.backend)}",
                *_numbers(backend.numbers),
                f"{backend.matched} of {backend.recorded}",
                f"{backend.seconds * 1e3:.0f} ms",
                _mark(detector.agrees(backend)),
            ]
            for backend in detector.backends
        ]
    header = ["", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75", "found again", "image", ""]
    return markdown_table(header, rows)


def _numbers(numbers: Numbers) -> list[str]:
    return [
        f"{numbers[kind][name]:.4f}" if kind in numbers else "–"
        for kind in ("bbox", "segm")
        for name in ("AP", "AP50", "AP75")
    ]


def _parity_table(result: DemoResult) -> list[str]:
    rows = []
    for detector in result.detectors:
        plain = {backend.backend: backend.numbers for backend in detector.backends}.get("pytorch")
        for backend in detector.backends:
            if backend.parity is None:
                continue
            report = backend.parity
            name = f"{detector.title}, {title_of(backend.backend)}"
            levels = [level_summary(report, level) for level in LEVELS if level != "ap"]
            rows.append([name, *levels, _change(backend.numbers, plain), _mark(report.passed)])
    return markdown_table(["", "operators", "stages", "detections", "AP", ""], rows)


def _change(numbers: Numbers, plain: Numbers | None) -> str:
    """Largest difference of an AP from PyTorch's."""
    if plain is None:
        return "–"
    change = max(abs(numbers[kind]["AP"] - plain[kind]["AP"]) for kind in plain)
    return f"{change:.0e}" if change else "0"


def _files(result: DemoResult, folder: Path) -> list[str]:
    rows = []
    for detector in result.detectors:
        files = {backend.backend: backend.file for backend in detector.backends}
        made = [files.get("torchscript"), files.get("onnxruntime"), detector.engine.file]
        pictures = " ".join(f"[{p.stem}]({_link(p, folder)})" for p in detector.pictures)
        rows.append(
            [
                detector.title,
                f"`{detector.checkpoint.name}`",
                *(f"[{_megabytes(f)}]({_link(f, folder)})" if f else "–" for f in made),
                pictures,
            ]
        )
    return markdown_table(["", "made from", "TorchScript", "ONNX", "engine", "pictures"], rows)


def engine_summary(engine: EngineResult) -> str:
    """One sentence on an engine: what was built, and whether it ran."""
    if engine.file is None:
        return f"not built: {engine.reason}"
    built = (
        f"{title_of(engine.backend)}, built in {engine.seconds:.1f} s, {engine.plugin_layers} "
        f"plugin layers for {engine.custom_nodes} custom nodes"
    )
    return f"{built}; not run: {engine.reason}" if engine.reason else built


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix().replace(" ", "%20")
