"""Write the tables and pictures of README.md and docs/ from benchmarks/results/.

    python benchmarks/readme_figures.py [--check]

With --check nothing is written; the exit status is 1 if a document or a picture is not what the
results say. A picture tells inside itself which results it shows: their SHA-256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _gpu_tables as gpu
import _quantization_tables as quantization
from _performance_tables import cpu_targets, designs

from carafe_deploy.types import ARCHITECTURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from carafe_deploy.bench.record import BenchResult, OperatorsResult
    from carafe_deploy.report.document import Table

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"

_BACKENDS = {
    "pytorch": "PyTorch",
    "torchscript": "TorchScript",
    "onnxruntime": "ONNX Runtime",
}


def accuracy(result: dict[str, Any]) -> str:
    """AP, AP50 and AP75 on the validation images, mmdetection's first."""
    lines = [
        "| detector | | box AP | mask AP | mmdetection's detections found again |",
        "|---|---|---:|---:|---:|",
    ]
    for title, detector in result["detectors"].items():
        recorded = detector["mmdetection"]
        lines.append(f"| {title} | mmdetection 3.3 | {_ap(recorded)} | |")
        for name, backend in detector["backends"].items():
            found = f"{backend['matched']} of {backend['recorded']}"
            lines.append(f"| | {_BACKENDS[name]} | {_ap(backend['numbers'])} | {found} |")
    return "\n".join(lines)


def _ap(numbers: dict[str, dict[str, float]]) -> str:
    masks = f"{numbers['segm']['AP']:.5f}" if "segm" in numbers else ""
    return f"{numbers['bbox']['AP']:.5f} | {masks}"


def engines(result: dict[str, Any]) -> str:
    """What building each engine took, and whether every custom node became a plugin."""
    lines = [
        f"| {result['weights']}, {_machine(result)}, no GPU | build | peak memory | engine "
        "| plugin layers of custom nodes | detections found in ONNX Runtime |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for engine in result["engines"]:
        build = engine["build"]
        model = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN"}[engine["model"]]
        cells = (
            f"{model}, {engine['precision']}, {engine['shape']}",
            f"{build['seconds']:.1f} s",
            f"{build['peak_memory_mb'] / 1000:.1f} GB",
            f"{build['engine_mb']:.0f} MB",
            f"{build['plugin_layers']} of {build['custom_nodes']}",
            f"{engine['parity']['matched']} of {engine['parity']['total']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _machine(result: dict[str, Any]) -> str:
    environment = result["environment"]
    return f"{environment['cores']} cores of {environment['cpu']}"


def releases(result: dict[str, Any]) -> str:
    """Kernels and function bodies in each release of ONNX Runtime, on the CPU."""
    lines = [
        f"| Mask R-CNN R-50, fp32, 832x1344, {_machine(result)} | kernels, ms | bodies, ms "
        "| bodies over kernels |",
        "|---|---:|---:|---:|",
    ]
    rows = {(row["onnxruntime"], row["operators"]): row for row in result["rows"]}
    for release in dict.fromkeys(release for release, _ in rows):
        kernels, bodies = rows[release, True], rows[release, False]
        cells = (f"{row['median_ms']:.0f}" for row in (kernels, bodies))
        lines.append(f"| {release} | {' | '.join(cells)} | {bodies['over_first']:.2f} |")
    return "\n".join(lines)


def quantized(result: dict[str, Any]) -> str:
    """All that results/quantization.json says."""
    tables = quantization
    parts = (tables.precisions, tables.layers, tables.engines)
    return "\n\n".join(part(result) for part in parts)


def ways(result: dict[str, Any]) -> str:
    """What the provider can be told, on a GPU."""
    lines = [
        "| Mask R-CNN R-50, 832x1344 | computed by | mode | told besides | ms | images/s | MB |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in result["rows"]:
        told = ", ".join(
            f"{name}={value}" for name, value in (row["provider_options"] or {}).items()
        )
        by = "kernels" if row["operators"] else "bodies"
        cells = [row["file"], by, row["mode"], told]
        if "error" in row:
            cells += ["failed", "", ""]
        else:
            cells += [f"{row['median_ms']:.2f}", f"{row['images_per_second']:.0f}"]
            cells.append(str(row.get("device_memory_mb", "")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bench(*results: BenchResult) -> str:
    """All backends of one detector, or of several, in a few columns."""
    from carafe_deploy.report.bench_tables import comparison_table

    first = results[0]
    processor = first.environment.get("GPU", "none")
    if processor.startswith("none"):
        processor = first.environment["processor"]
    title = "" if len(results) > 1 else f"{ARCHITECTURES[first.architecture]}, "
    return _markdown(comparison_table(results, f"{title}{processor}"))


#: Kinds of layers, as the profilers name them, that are convolutions or matrix products.
_PRODUCTS = {"Conv2d", "Linear", "aten::_convolution", "aten::linear", "Conv", "MatMul", "Gemm"}
_OPERATORS = {
    "CarafeEncoded": "CARAFE",
    "MultilevelRoiAlign": "RoIAlign",
    "BatchedNms": "NMS",
}


def shares(*results: BenchResult) -> str:
    """How the time of a run, without pre- and postprocessing, divides among operators."""
    heads = ["convolutions, linear layers", *_OPERATORS.values(), "rest"]
    lines = [f"| share of a run | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for result in results:
        title = ARCHITECTURES[result.architecture]
        for subject in result.measured:
            if subject.layers is None:
                continue
            times = dict.fromkeys(("products", *_OPERATORS, "rest"), 0.0)
            for row in subject.layers.rows:
                kind = "products" if row.kind in _PRODUCTS else "rest"
                times[row.operator or kind] += row.milliseconds
            total = sum(times.values())
            cells = [f"{100 * time / total:.1f} %" for time in times.values()]
            lines.append(f"| {title}, {subject.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def operators(result: OperatorsResult) -> str:
    """The operators as the detectors call them, implementations side by side."""
    from carafe_deploy.report.operator_tables import pivot_table

    # Detectors take the fused entry; other sizes and groups than theirs are in the results.
    rows = [
        row for row in result.rows if row.entry != "carafe" and not row.workload.startswith("k ")
    ]
    chosen = dataclasses.replace(result, rows=tuple(rows))
    return _markdown(pivot_table(chosen, f"ms, float32, {result.environment['processor']}"))


def _markdown(table: Table) -> str:
    from carafe_deploy.report.markdown import table_markdown

    return table_markdown(table)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_result(path: Path) -> Any:
    from carafe_deploy.bench.result_file import read_result

    return read_result(path)


@dataclass(frozen=True)
class Block:
    """A table of a document; a marker before and after it names its results.

    Attributes:
        sources: names of the results.
        render: makes Markdown of them.
        read: a file of results.
    """

    sources: tuple[str, ...]
    render: Callable[..., str]
    read: Callable[[Path], Any] = _read_json

    @property
    def marker(self) -> str:
        """``a.json b.json``."""
        return " ".join(f"{source}.json" for source in self.sources)


@dataclass(frozen=True)
class Picture:
    """A file in docs/.

    Attributes:
        name: of the file.
        sources: names of the results it shows.
        draw: makes a chart of them.
    """

    name: str
    sources: tuple[str, ...]
    draw: Callable[..., Figure]


def _draw_bench(*results: BenchResult) -> Figure:
    from carafe_deploy.report.plots import latency

    return latency(results)


def _draw_roofline(result: OperatorsResult) -> Figure:
    from carafe_deploy.report.plots import roofline

    return roofline(result)


BLOCKS = (
    Block(("accuracy",), accuracy),
    Block(("engines",), engines),
    Block(("bench_mask_r50",), bench, _read_result),
    Block(("bench_faster_r50",), bench, _read_result),
    Block(("bench_mask_r50", "bench_faster_r50"), shares, _read_result),
    Block(("bench_faster_shapes", "bench_mask_shapes"), bench, _read_result),
    Block(("operators_cpu",), operators, _read_result),
    Block(("h100/detectors", "h100/compiled"), gpu.detectors),
    Block(("h100/peer",), gpu.carafe),
    Block(("h100/operators_gpu",), gpu.others, _read_result),
    Block(("h100/onnxruntime",), gpu.tf32),
)
PERFORMANCE = (
    Block(("operators_cpu", "bench_mask_r50"), cpu_targets, _read_result),
    Block(("kernel_traffic", "kernel_static"), designs),
    Block(("h100/detectors",), gpu.shares),
    Block(("h100/designs",), gpu.designs),
    Block(("h100/ncu",), gpu.counters),
    Block(("h100/onnxruntime",), gpu.onnxruntime),
)
DOCUMENTS = {
    README: BLOCKS,
    DOCS / "performance.md": PERFORMANCE,
    DOCS / "onnxruntime.md": (
        Block(("onnxruntime_cpu",), releases),
        Block(("onnxruntime_gpu",), ways),
    ),
    DOCS / "quantization.md": (
        Block(("quantization_time",), quantization.time),
        Block(("quantization",), quantized),
    ),
}
PICTURES = (
    Picture("bench.png", ("bench_mask_r50", "bench_faster_r50"), _draw_bench),
    Picture("roofline.png", ("operators_cpu",), _draw_roofline),
)
#: Key of the text in a picture that names its results.
_SOURCES = "Sources"


def rendered(text: str, results: Path = RESULTS, blocks: Sequence[Block] = BLOCKS) -> str:
    """A document's text with every block between its markers made anew.

    A block has both results and markers, or neither.

    Args:
        text: README's, or another's.
        results: folder of the results.
        blocks: of the document.

    Raises:
        ValueError: one of them is missing, or a marker is of no block.
    """
    known = {block.marker for block in blocks}
    for marker in re.findall(r"<!-- /?((?:[\w/]+\.json ?)+) -->", text):
        if marker not in known:
            raise ValueError(f"there is the marker {marker!r}, which is of no block")
    for block in blocks:
        begin, end = f"<!-- {block.marker} -->\n", f"<!-- /{block.marker} -->"
        marked = [begin in text, end in text]
        paths = _paths(block.sources, results)
        if not any(marked) and not any(path.exists() for path in paths):
            continue
        if not all(marked):
            raise ValueError(f"the markers {begin.strip()} and {end} are missing")
        _require(paths, f"there is the marker {begin.strip()}")
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        table = block.render(*(block.read(path) for path in paths))
        text = f"{head}{begin}{table}\n{end}{tail}"
    return text


def _paths(sources: tuple[str, ...], results: Path) -> list[Path]:
    return [results / f"{source}.json" for source in sources]


def _require(paths: list[Path], why: str) -> None:
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} is missing, but {why}")


def stale_pictures(results: Path = RESULTS, docs: Path = DOCS) -> list[Picture]:
    """Pictures that are missing or show other results than there are.

    Raises:
        ValueError: some or all of a picture's results are missing.
    """
    stale = []
    for picture in PICTURES:
        paths, target = _paths(picture.sources, results), docs / picture.name
        if not target.exists() and not any(path.exists() for path in paths):
            continue
        _require(paths, f"{picture.name} is drawn from it")
        if not target.exists() or _sources_of(target) != _fingerprint(paths):
            stale.append(picture)
    return stale


def draw(picture: Picture, results: Path = RESULTS, docs: Path = DOCS) -> None:
    """Write one picture."""
    from carafe_deploy.report.style import save_png

    paths = _paths(picture.sources, results)
    figure = picture.draw(*map(_read_result, paths))
    save_png(figure, docs / picture.name, {_SOURCES: _fingerprint(paths)})


def _fingerprint(paths: list[Path]) -> str:
    """SHA-256 of each file, by name."""
    return " ".join(f"{p.name}:{hashlib.sha256(p.read_bytes()).hexdigest()}" for p in paths)


def _sources_of(path: Path) -> str:
    from PIL import Image  # matplotlib cannot do without it

    with Image.open(path) as image:
        return str(image.info.get(_SOURCES, ""))


def main() -> int:
    try:
        wanted = {
            path: rendered(path.read_text(encoding="utf-8"), blocks=blocks)
            for path, blocks in DOCUMENTS.items()
        }
        stale = stale_pictures()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    old = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    if sys.argv[1:] == ["--check"]:
        for name in [*(path.name for path in old), *(picture.name for picture in stale)]:
            print(f"{name} is not what the results say", file=sys.stderr)
        return int(bool(old or stale))
    for path in old:
        path.write_text(wanted[path], encoding="utf-8")
    for picture in stale:
        draw(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
