"""Charts of benchmarks. They are drawn without pyplot, so that nothing global remembers them."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from typing import ParamSpec

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from carafe_deploy.backends import BACKENDS
from carafe_deploy.bench.record import PARTS, BenchResult, OperatorsResult, Subject
from carafe_deploy.bench.statistics import summary
from carafe_deploy.report import style
from carafe_deploy.report.numbers import large, significant
from carafe_deploy.report.timings import Timed, timed, title

__all__ = ["latency", "roofline", "stages", "throughput", "timeline"]

#: Inches of a chart's width, a row of bars, and what is above and below the rows.
WIDTH, ROW, FRAME = 9.4, 0.3, 0.85
#: Letters of a backend's name in a line.
NAME = 30
_Floats = npt.NDArray[np.float64]
_P = ParamSpec("_P")


def _styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    def in_style(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        return style.drawn(lambda: draw(*args, **kwargs))

    return in_style


@_styled
def latency(results: Sequence[BenchResult]) -> Figure:
    """Median latencies as bars, and beside them how the samples lie around the median.

    Each result has its part of the chart; at least one subject of each was timed.
    """
    subjects = [timed(result) for result in results]
    heights = [_height([entry.name for entry in each], named=len(results) > 1) for each in subjects]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(results), 1, height_ratios=heights, squeeze=False)[:, 0]
    for result, part, entries in zip(results, parts, subjects, strict=True):
        if len(results) > 1:
            part.suptitle(title(result), x=0.01, ha="left", fontsize=10, fontweight="bold")
        _latency(part, entries)
    return figure


def _height(names: Sequence[str], *, named: bool = False) -> float:
    lines = sum(max(1, len(_wrapped(name).splitlines()) * 0.62) for name in names)
    return FRAME + 0.3 * named + ROW * lines


def _latency(part: SubFigure, subjects: Sequence[Timed]) -> None:
    bars, spread = part.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
    medians = [entry.median for entry in subjects]
    colours = [_colour(entry.subject) for entry in subjects]
    rows = _rows(bars, [entry.name for entry in subjects])
    drawn = bars.barh(rows, medians, height=0.62, color=colours)
    bars.bar_label(drawn, [f" {significant(median)}" for median in medians], fontsize=9)
    bars.set_xlim(0, 1.16 * max(medians))
    bars.set_xlabel("ms an image, median")
    bars.xaxis.set_major_locator(MaxNLocator(5))
    _spread(spread, subjects, colours)


def _rows(axes: Axes, names: Sequence[str]) -> list[int]:
    """Positions of named rows, the first on top."""
    rows = list(range(len(names)))
    axes.set_yticks(rows, [_wrapped(name) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    style.plain_axes(axes, grid="x")
    return rows


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, NAME)) or name


def _spread(axes: Axes, subjects: Sequence[Timed], colours: Sequence[str]) -> None:
    """Every sample's distance from its subject's median, in percent."""
    distances = [
        100 * (np.asarray(entry.samples.total_ms) / entry.median - 1) for entry in subjects
    ]
    low, high = _limits(distances)
    generator = np.random.default_rng(0)
    for row, (values, colour) in enumerate(zip(distances, colours, strict=True)):
        shown = values[(values >= low) & (values <= high)]
        heights = row + generator.uniform(-0.26, 0.26, len(shown))
        axes.scatter(
            shown, heights, s=5, color=colour, alpha=0.4, linewidths=0, rasterized=len(shown) > 1500
        )
        p5, p25, p75, p95 = (float(p) for p in np.percentile(values, (5, 25, 75, 95)))
        axes.hlines(row, max(p5, low), min(p95, high), color=style.INK, linewidth=1)
        axes.hlines(row, max(p25, low), min(p75, high), color=style.INK, linewidth=4.5)
        beyond = values[values > high]
        if len(beyond):
            axes.plot(high, row, marker=">", markersize=5, color=colour, clip_on=False)
            text = f"{len(beyond)} beyond, up to +{beyond.max():.0f}%"
            axes.text(high, row - 0.36, text, ha="right", va="center", fontsize=7.5)
    axes.set_xlim(low, high)
    axes.axvline(0, color=style.GRID, linewidth=0.8)
    axes.set_xlabel("distance from the own median")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+.3g}%" if value else "0%")
    )
    style.plain_axes(axes, grid="x")
    axes.tick_params(labelleft=False)


def _limits(distances: Sequence[_Floats]) -> tuple[float, float]:
    """An axis on which most distributions have a width, even if one has a long tail."""
    tails = [float(np.percentile(values, 95)) for values in distances]
    high = 2.5 * min(max(tails), 2 * float(np.median(tails)))
    high = max(min(high, 1.05 * max(float(values.max()) for values in distances)), 1.0)
    low = 1.05 * min(float(values.min()) for values in distances)
    return max(min(low, -1.0), -3 * high), high


@_styled
def stages(result: BenchResult) -> Figure:
    """Parts of an image stacked: their milliseconds, and their shares. A subject was timed."""
    subjects = timed(result)
    names = [entry.name for entry in subjects]
    figure = Figure(figsize=(WIDTH, _height(names) + 0.3), layout="constrained")
    absolute, relative = figure.subplots(1, 2, sharey=True)
    rows = _rows(absolute, names)
    style.plain_axes(relative, grid="x")
    relative.tick_params(labelleft=False)
    medians = np.array([_part_medians(entry) for entry in subjects])  # [subjects, parts]
    totals = medians.sum(axis=1)
    shares = 100 * medians / np.where(totals > 0, totals, 1)[:, None]
    handles = []
    for index, part in enumerate(PARTS):
        if not medians[:, index].any():
            continue
        colour = style.PARTS[part]
        for axes, widths in ((absolute, medians), (relative, shares)):
            left = widths[:, :index].sum(axis=1)
            axes.barh(rows, widths[:, index], left=left, height=0.62, color=colour)
        for row in rows:
            if shares[row, index] >= 9:
                middle = shares[row, :index].sum() + shares[row, index] / 2
                text = f"{shares[row, index]:.0f}%"
                relative.text(middle, row, text, ha="center", va="center", fontsize=8)
        handles.append(Line2D([], [], color=colour, linewidth=7, label=part))
    absolute.set_xlabel("ms an image, medians")
    absolute.xaxis.set_major_locator(MaxNLocator(5))
    relative.set_xlabel("share")
    relative.set_xlim(0, 100)
    relative.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(PARTS), handlelength=0.8)
    return figure


def _part_medians(entry: Timed) -> list[float]:
    parts = entry.samples.parts_ms
    return [summary(parts[name]).median if parts.get(name) else 0.0 for name in PARTS]


@_styled
def throughput(result: BenchResult) -> Figure:
    """Images a second over the batch size. A throughput was measured."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    batches: set[int] = set()
    seen: dict[str, int] = {}
    best = 0.0
    for subject in result.subjects:
        points = [
            (entry.batch, rate)
            for entry in subject.throughput
            if (rate := entry.images_per_second) is not None
        ]
        if not points:
            continue
        number = seen[subject.backend] = seen.get(subject.backend, -1) + 1
        batches.update(batch for batch, _ in points)
        best = max(best, *(rate for _, rate in points))
        axes.plot(
            *zip(*points, strict=True),
            color=_colour(subject),
            linestyle=_LINES[number % len(_LINES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.4,
            label=_wrapped(subject.name),
        )
    style.plain_log(axes, base=2)
    axes.set_xticks(sorted(batches))
    axes.set_xlim(min(batches) / 1.15, max(batches) * 1.15)
    axes.set_ylim(0, 1.08 * best)
    axes.set_xlabel("batch size")
    axes.set_ylabel("images/s")
    style.plain_axes(axes, grid="both")
    figure.legend(loc="outside right upper")
    return figure


_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@_styled
def timeline(result: BenchResult) -> Figure:
    """Stages of the streams of files over time. One was measured."""
    streams = [(s.name, s.streamed) for s in result.subjects if s.streamed is not None]
    figure = Figure(figsize=(WIDTH, 0.35 + 0.95 * len(streams)), layout="constrained")
    grid = figure.subplots(len(streams), squeeze=False)
    for axes, (name, stream) in zip(grid[:, 0], streams, strict=True):
        for row, (stage, spans) in enumerate(reversed(list(stream.spans.items()))):
            bars = [(1e3 * begun, 1e3 * (ended - begun)) for begun, ended in spans]
            axes.broken_barh(bars, (row - 0.4, 0.8), color=_STAGES.get(stage, _GREY), alpha=0.6)
        axes.set_yticks(range(len(stream.spans)), list(stream.spans)[::-1], fontsize=7)
        axes.set_ylim(-0.6, len(stream.spans) - 0.4)
        axes.set_xlim(0, max(1e3 * stream.window_s, 1e-3))
        axes.set_title(_wrapped(name), fontsize=8, loc="left")
        style.plain_axes(axes, grid="x")
    grid[-1, 0].set_xlabel("ms")
    return figure


_GREY = style.PARTS["preprocess"]
_STAGES = {
    "load": style.PARTS["upload"],
    "preprocess": _GREY,
    "run": style.PARTS["compute"],
    "postprocess": style.PARTS["postprocess"],
}


@_styled
def roofline(result: OperatorsResult) -> Figure:
    """Arithmetic over its intensity, below what copying and computing allow.

    One row at least has a time, bytes and operations.
    """
    rows = [row for row in result.rows if row.median_us and row.num_bytes and row.flops]
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    style.plain_log(axes, both=True)
    points = [(row.flops / row.num_bytes, row.gigaflops or 0.0) for row in rows]
    _roof(axes, result, points)
    colours = _assigned([row.implementation for row in rows], style.PALETTE)
    markers = _assigned([row.entry for row in rows], _MARKERS)
    sizes = _sizes([row.num_bytes for row in rows])
    for row, (x, y), size in zip(rows, points, sizes, strict=True):
        colour = colours[row.implementation]
        axes.scatter(
            *(x, y, size),
            marker=markers[row.entry],
            facecolor=colour if row.dtype == "float32" else "none",
            edgecolor=colour,
            alpha=0.85,
            linewidths=1.2,
            zorder=3,
        )
    axes.set_xlabel("arithmetic intensity, operations a byte")
    axes.set_ylabel("GFLOP/s")
    style.plain_axes(axes, grid="both")
    handles = [
        *(_handle(name, colour, "o") for name, colour in colours.items()),
        *(_handle(name, style.GRID, marker) for name, marker in markers.items()),
    ]
    figure.legend(handles=handles, loc="outside right upper", labelspacing=0.6)
    return figure


def _assigned(names: Sequence[str], looks: Sequence[str]) -> dict[str, str]:
    """A look for each name, in the order of the names."""
    return dict(zip(dict.fromkeys(names), itertools.cycle(looks), strict=False))


def _sizes(num_bytes: Sequence[int]) -> list[float]:
    """Areas, from 18 to 90 points squared, on a logarithmic scale."""
    logs = np.log(np.asarray(num_bytes, np.float64))
    span = logs.max() - logs.min()
    return [float(18 + 72 * (log - logs.min()) / span) if span else 45.0 for log in logs]


def _roof(axes: Axes, result: OperatorsResult, points: Sequence[tuple[float, float]]) -> None:
    """Both limits, as far as they were measured, and axes that hold them and all points."""
    slope, peak = result.copy_bytes_per_second / 1e9, result.flops_per_second / 1e9
    known = [value for value in (slope, peak) if value > 0]
    ridge = peak / slope if len(known) == 2 else max(x for x, _ in points)
    low = min(*(x for x, _ in points), ridge) / 2.5
    high = max(*(x for x, _ in points), ridge) * 3
    bottom = min(y for _, y in points) / 2
    xs = np.geomspace(low, high, 200)
    if known:
        limits = [slope * xs] * (slope > 0) + [np.full_like(xs, peak)] * (peak > 0)
        roof = np.minimum.reduce(limits)
        axes.plot(xs, roof, color=style.INK, linewidth=1.2)
        axes.fill_between(xs, roof, bottom, color=style.GRID, alpha=0.08, linewidth=0)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, 2.2 * max(peak, *(y for _, y in points)))
    if slope > 0:
        x = float(np.sqrt(low * ridge))
        axes.text(
            *(x, 1.12 * slope * x, f"copy {large(slope)} GB/s"),
            ha="center",
            va="bottom",
            rotation=float(np.degrees(np.arctan(slope))),
            rotation_mode="anchor",
            transform_rotates_text=True,
        )
    if peak > 0:
        axes.annotate(
            *(f"float32 {large(peak)} GFLOP/s", (high, peak)),
            ha="right",
            va="bottom",
            xytext=(-4, 3),
            textcoords="offset points",
        )


def _handle(name: str, colour: str, marker: str) -> Line2D:
    """A line of the legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=_wrapped(name))


def _colour(subject: Subject) -> str:
    backend = BACKENDS.get(subject.backend)
    return style.GRID if backend is None else backend.colour
