"""The Markdown: the comparison's text, and names that Markdown would read otherwise."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from carafe_deploy.report.bench_tables import comparison_table
from carafe_deploy.report.markdown import table_markdown
from carafe_deploy.report.sections import to_markdown
from tests.report import synthetic

TINY = synthetic.tiny_bench()


def test_a_benchmark() -> None:
    expected = (Path(__file__).parent / "tiny_bench.md").read_text(encoding="utf-8")
    assert to_markdown([TINY]) == expected


def test_tables_have_as_many_cells_in_every_row() -> None:
    results = [synthetic.gpu_bench(), synthetic.operators("cuda"), synthetic.parity(passed=False)]
    lines = to_markdown(results).splitlines()
    widths = [line.count("|") if line.startswith("|") else 0 for line in lines if "\\|" not in line]
    for width, following in itertools.pairwise(widths):
        assert width in (0, following) or following == 0


def test_interruption_is_marked() -> None:
    assert "**⚠ Interrupted: partial." in to_markdown([synthetic.partial_bench()])
    assert "**⚠ Interrupted: partial." in to_markdown(
        [dataclasses.replace(synthetic.operators(), partial=True)]
    )


def test_names_are_no_markup() -> None:
    first, *others = TINY.subjects
    evil = dataclasses.replace(first, name="a|b <img src=x>\nc")
    text = to_markdown([dataclasses.replace(TINY, subjects=(evil, *others))])
    assert "<img" not in text
    assert "| a\\|b &lt;img src=x> c | 50.0 |" in text


def test_sections_follow_each_other() -> None:
    text = to_markdown([synthetic.parity(), TINY, synthetic.operators()])
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Faster R-CNN, model", "## Operators on the CPU", "## Parity"]


def test_no_heading_stands_alone() -> None:
    lines = [line for line in to_markdown([synthetic.gpu_bench()]).splitlines() if line]
    for line, following in itertools.pairwise(lines):
        assert not (line.startswith("###") and following.startswith("#"))
    # Pictures and the roofline are for pages only.
    assert "### Sample detections" not in lines
    assert "### Roofline" not in to_markdown([synthetic.operators()])


def test_short_table() -> None:
    assert table_markdown(comparison_table([TINY], "corner")).splitlines() == [
        "| corner | ms | p95 | over the first | images/s | memory MB | file MB | found |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| PyTorch fp32 | 50.0 | 50.9 | 1 | 25.0 at 2 | 900 | 178 |  |",
        "| **ONNX Runtime fp32** | 25.0 | 25.9 | 0.500 [0.490–0.510] | 43.5 at 1 | – | 178 "
        "| 90 of 91 |",
    ]


def test_short_table_of_several_detectors_names_them() -> None:
    table = comparison_table([TINY, synthetic.cpu_bench()])
    assert [row[0] for row in table.rows][:3] == [
        "Faster R-CNN, PyTorch fp32",
        "Faster R-CNN, ONNX Runtime fp32",
        "Mask R-CNN, PyTorch fp32",
    ]
    assert table.best == {1, 5}


def test_short_table_of_nothing_measured() -> None:
    assert comparison_table([dataclasses.replace(TINY, subjects=())]).rows == ()
