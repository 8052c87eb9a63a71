"""README's tables and pictures: made of results, and noticed when they are not."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from carafe_deploy.bench.result_file import write_result
from tests.report import synthetic

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "readme_figures.py"
BLOCK = "<!-- {0} -->\nold\n<!-- /{0} -->\n"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """The script as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("readme_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results."""
    folder = tmp_path_factory.mktemp("results")
    for name, result in (
        ("bench_mask_r50", synthetic.cpu_bench()),
        ("bench_faster_r50", synthetic.tiny_bench()),
        ("bench_mask_shapes", synthetic.cpu_bench()),
        ("bench_faster_shapes", synthetic.tiny_bench()),
        ("operators_cpu", synthetic.operators()),
    ):
        write_result(folder / f"{name}.json", result)
    return folder


ALL = "".join(
    BLOCK.format(marker)
    for marker in (
        "bench_mask_r50.json",
        "bench_faster_r50.json",
        "bench_mask_r50.json bench_faster_r50.json",
        "bench_faster_shapes.json bench_mask_shapes.json",
        "operators_cpu.json",
    )
)


def test_blocks_are_filled(figures: ModuleType, measured: Path) -> None:
    text = figures.rendered(f"before\n{ALL}after", measured)
    assert text.startswith("before\n<!-- bench_mask_r50.json -->\n| Mask R-CNN, Imaginary CPU")
    assert text.endswith("<!-- /operators_cpu.json -->\nafter")
    assert "old" not in text
    assert "| Faster R-CNN, PyTorch fp32 | 50.0 |" in text
    # A quarter of 6 % more for the second call of CARAFE.
    assert "| 7.5 % | 4.0 % | 3.0 % |" in text
    assert "| ms, float32, Imaginary CPU 9000, 2 cores | CPU kernel | PyTorch |" in text
    assert figures.rendered(text, measured) == text


def test_results_without_markers_and_markers_without_results(
    figures: ModuleType, measured: Path, tmp_path: Path
) -> None:
    assert figures.rendered("nothing", tmp_path) == "nothing"
    with pytest.raises(ValueError, match=r"the markers <!-- bench_mask_r50\.json.* are missing"):
        figures.rendered("nothing", measured)
    with pytest.raises(ValueError, match=r"operators_cpu\.json is missing, but there is"):
        figures.rendered(BLOCK.format("operators_cpu.json"), tmp_path)
    with pytest.raises(ValueError, match=r"the markers .* are missing"):
        figures.rendered(ALL.replace("<!-- /operators_cpu.json -->", ""), measured)


def test_a_marker_of_no_block(figures: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the marker 'typo\.json', which is of no block"):
        figures.rendered("<!-- typo.json -->\n", tmp_path)


def test_pictures_know_their_results(figures: ModuleType, measured: Path, tmp_path: Path) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    shutil.copytree(measured, results)
    assert list(figures.stale_pictures(results, docs)) == list(figures.PICTURES)
    for picture in figures.PICTURES:
        figures.draw(picture, results, docs)
    assert figures.stale_pictures(results, docs) == []
    # One byte of one result is enough.
    path = results / "bench_mask_r50.json"
    path.write_text(path.read_text() + " ")
    assert [picture.name for picture in figures.stale_pictures(results, docs)] == ["bench.png"]
    path.unlink()
    with pytest.raises(ValueError, match=r"bench_mask_r50\.json is missing, but bench\.png is"):
        figures.stale_pictures(results, docs)


def test_no_results_no_pictures(figures: ModuleType, tmp_path: Path) -> None:
    assert figures.stale_pictures(tmp_path, tmp_path) == []


def test_no_invented_number_was_published() -> None:
    root = SCRIPT.parents[1]
    for path in [*SCRIPT.parent.glob("results/*.json"), root / "README.md"]:
        assert "synthetic.py" not in path.read_text(encoding="utf-8")
        assert "Imaginary" not in path.read_text(encoding="utf-8")
