"""Charts: what they hold, and that every sample is accounted for."""

from __future__ import annotations

import dataclasses
import re

import matplotlib
import numpy as np
import pytest

from carafe_deploy.bench.record import BenchResult, Throughput
from carafe_deploy.report import plots, style
from tests.report import synthetic

MASK = synthetic.cpu_bench()


def texts(svg: str) -> list[str]:
    """Labels of a chart."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def drawn_samples(result: BenchResult) -> tuple[int, int]:
    """Samples in the chart of latencies, and those said to lie beyond it."""
    _, spread = plots.latency([result]).axes
    shown = sum(len(c.get_offsets()) for c in spread.collections if c.get_offsets().shape[0] > 1)
    beyond = sum(int(t.get_text().split()[0]) for t in spread.texts)
    return shown, beyond


def test_no_sample_is_lost() -> None:
    shown, beyond = drawn_samples(MASK)
    assert beyond > 0
    assert shown + beyond == 4 * 160


def test_bars_are_medians() -> None:
    bars, _ = plots.latency([MASK]).axes
    medians = [s.samples.total.median for s in MASK.measured if s.samples is not None]
    assert [bar.get_width() for bar in bars.patches] == medians


def test_two_detectors_are_two_parts() -> None:
    figure = plots.latency([MASK, synthetic.cpu_bench("faster_rcnn")])
    assert len(figure.axes) == 4
    svg = style.to_svg(figure, "c", "d")
    assert "Faster R-CNN, shapes_faster_rcnn_carafe" in texts(svg)


def test_stages_add_up() -> None:
    absolute, relative = plots.stages(synthetic.gpu_bench()).axes
    ends = {bar.get_y(): 0.0 for bar in relative.patches}
    for bar in relative.patches:
        ends[bar.get_y()] = max(ends[bar.get_y()], bar.get_x() + bar.get_width())
    assert list(ends.values()) == pytest.approx([100.0] * 9)
    assert max(bar.get_x() + bar.get_width() for bar in absolute.patches) == pytest.approx(
        51.3, abs=0.5
    )


def test_throughput_leaves_out_what_was_not_measured() -> None:
    [axes] = plots.throughput(synthetic.gpu_bench()).axes
    lengths = {line.get_label(): len(line.get_xdata()) for line in axes.lines}
    assert lengths["TorchScript fp32"] == 3
    assert lengths["TensorRT fp32"] == 4


def test_one_batch_size_can_be_drawn() -> None:
    subject = dataclasses.replace(MASK.subjects[0], throughput=(Throughput(1, (40.0,)),))
    figure = plots.throughput(dataclasses.replace(MASK, subjects=(subject,)))
    assert "images/s" in texts(style.to_svg(figure, "c", "d"))


def one_subject(rounds: tuple[int, ...], values: tuple[float, ...]) -> BenchResult:
    """These milliseconds of computing, and nothing else."""
    tiny = synthetic.tiny_bench()
    samples = synthetic.Samples(rounds, values, {"compute": values})
    subject = dataclasses.replace(tiny.subjects[0], samples=samples)
    return dataclasses.replace(tiny, subjects=(subject,))


@pytest.mark.parametrize("values", [(5.0,), (5.0, 5.0, 5.0), (0.001, 5.0, 60_000.0)])
def test_odd_samples_can_be_drawn(values: tuple[float, ...]) -> None:
    result = one_subject(tuple(range(len(values))), values)
    for figure in (plots.latency([result]), plots.stages(result)):
        assert style.to_svg(figure, "c", "d").startswith("<svg")


def test_many_samples_become_one_picture() -> None:
    many = tuple(np.random.default_rng(0).normal(10, 0.1, 20_000).tolist())
    result = one_subject((0,) * len(many), many)
    assert len(style.to_svg(plots.latency([result]), "c", "d")) < 300_000


def test_charts_can_share_a_page() -> None:
    first, second = (style.to_svg(plots.latency([MASK]), name, "d") for name in ("c0", "c1"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0].isdisjoint(ids[1])
    for svg, known in zip((first, second), ids, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used <= known
        assert used


def test_the_same_result_gives_the_same_chart() -> None:
    first, second = (style.to_svg(plots.latency([MASK]), "c", "d") for _ in range(2))
    assert first == second


def test_descriptions_are_escaped() -> None:
    svg = style.to_svg(plots.stages(MASK), "c", '"><script>')
    assert 'aria-label="&quot;&gt;&lt;script&gt;"' in svg


def test_names_are_no_formulas() -> None:
    first, *others = MASK.subjects
    named = dataclasses.replace(first, name="a_$b$ 日本")
    result = dataclasses.replace(MASK, subjects=(named, *others))
    assert "a_$b$ 日本" in texts(style.to_svg(plots.latency([result]), "c", "d"))


def test_settings_of_matplotlib_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    style.to_svg(plots.roofline(synthetic.operators()), "c", "d")
    assert dict(matplotlib.rcParams) == before
