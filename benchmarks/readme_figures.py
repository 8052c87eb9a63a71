"""Write the tables and pictures of README.md and docs/ from benchmarks/results/.

    python benchmarks/readme_figures.py [--check]

With --check nothing is written; the exit status is 1 if a document or a picture is not what the
results say. A picture tells inside itself which results it shows: their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _gpu_tables as gpu
import _onnxruntime_tables as onnxruntime
import _quantization_tables as quantization
import _readme_tables as tables
from _performance_tables import cpu_targets, designs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from carafe_deploy.bench.record import BenchResult, OperatorsResult

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"


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
    Block(("accuracy",), tables.accuracy),
    Block(("engines",), tables.engines),
    Block(("bench_mask_r50",), tables.bench, _read_result),
    Block(("bench_faster_r50",), tables.bench, _read_result),
    Block(("bench_mask_r50", "bench_faster_r50"), tables.shares, _read_result),
    Block(("bench_faster_shapes", "bench_mask_shapes"), tables.bench, _read_result),
    Block(("operators_cpu",), tables.operators, _read_result),
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
        Block(("onnxruntime_cpu",), onnxruntime.releases),
        Block(("onnxruntime_gpu",), onnxruntime.ways),
    ),
    DOCS / "quantization.md": (
        Block(("quantization_time",), quantization.time),
        Block(("quantization",), quantization.quantized),
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
