"""A benchmark of whole detectors: which backend is fastest, at what price, and do they agree?"""

from __future__ import annotations

from types import ModuleType

from carafe_deploy.bench.record import BenchResult
from carafe_deploy.report.bench_tables import (
    accuracy_table,
    cost_table,
    files_table,
    latency_table,
    stages_table,
    throughput_table,
)
from carafe_deploy.report.document import (
    Block,
    Comparison,
    Figure,
    Gallery,
    Heading,
    Items,
    Section,
    Text,
    items,
)
from carafe_deploy.report.layers import layer_blocks
from carafe_deploy.report.numbers import significant, span
from carafe_deploy.report.timings import Timed, machine, ratio_over, timed, title

__all__ = ["bench_section"]


def bench_section(result: BenchResult) -> Section:
    """Everything that is known of a benchmark."""
    blocks = [
        *(Text(warning, "warn") for warning in result.warnings),
        *_latency(result),
        *_stages(result),
        *_throughput(result),
        *_cost(result),
        *_accuracy(result),
        *layer_blocks(result),
        *_samples(result),
        Heading("Rules of measurement"),
        Items(tuple(result.settings.items())),
    ]
    return Section(
        title=title(result),
        subtitle=machine(result.environment),
        verdict=tuple(filter(None, (_speed(result), _agreement(result)))),
        blocks=tuple(blocks),
        partial=result.partial,
        environment=result.environment,
    )


def _speed(result: BenchResult) -> Text:
    """Who is fastest among those that detect the same, over the first subject."""
    subjects = timed(result)
    if not subjects:
        return Text("No subject was measured.", "bad")
    first = subjects[0]
    if len(subjects) == 1:
        return Text(f"{first.name} takes {_ms(first)} an image.")
    ranked = sorted(subjects, key=lambda entry: entry.median)
    agreeing = [entry for entry in ranked if entry.agrees]
    best = agreeing[0]  # the first subject agrees with itself
    sentences = [_lead(best, first)]
    if len(agreeing) > 1 and (best is first or agreeing[1] is not first):
        sentences.append(f"Next is {agreeing[1].name}{_slower(agreeing[1], best)}.")
    faster = [entry.name for entry in ranked[: ranked.index(best)]]
    if faster:
        verbs = ("takes", "finds") if len(faster) == 1 else ("take", "find")
        sentences.append(f"{', '.join(faster)} {verbs[0]} less, but {verbs[1]} something else.")
    return Text(" ".join(sentences))


def _lead(best: Timed, first: Timed) -> str:
    ratio = ratio_over(best, first)
    if best is first or ratio is None:
        return f"{best.name} is fastest: {_ms(best)} an image."
    speed = span(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    if not ratio.is_decided:
        return (
            f"{best.name} has the smallest median, {_ms(best)} an image, but this run does not "
            f"tell whether it is faster than {first.name}: {speed} times as fast."
        )
    return (
        f"{best.name} is fastest: {_ms(best)} an image, {speed} times as fast as {first.name} "
        "(95% interval)."
    )


def _slower(entry: Timed, best: Timed) -> str:
    ratio = ratio_over(entry, best)
    if ratio is None:
        return f" with {_ms(entry)}"
    if not ratio.is_decided:
        return f" with {_ms(entry)}, which this run cannot tell apart"
    return f" with {_ms(entry)}, {significant(ratio.value)} times as long"


def _ms(entry: Timed) -> str:
    return f"{significant(entry.median)} ms"


def _agreement(result: BenchResult) -> Text | None:
    found = [(s.name, s.agreement) for s in result.measured if s.agreement is not None]
    if not found:
        return None
    first = result.measured[0].name
    failed = [f"{name} ({a.found_again})" for name, a in found if a.passed is False]
    if failed:
        return Text(f"Other detections than {first}: {', '.join(failed)}.", "bad")
    if any(a.passed is None for _, a in found):
        return Text("Nothing is found in these images, so no detections were compared.", "bad")
    name, worst = min(found, key=lambda entry: entry[1].matched / (entry[1].total or 1))
    if worst.matched == worst.total:
        return Text(f"All backends detect what {first} detects.", "good")
    return Text(
        f"All backends detect what {first} detects, within tolerance: at least "
        f"{worst.matched} of {worst.total} detections are found again ({name}).",
        "good",
    )


def _latency(result: BenchResult) -> list[Block]:
    subjects = timed(result)
    blocks: list[Block] = [Heading("Latency")]
    if subjects:
        caption = (
            "Left: median time from a decoded image to its detections. Right: how far every "
            "timed image lies from its backend's median; thick: the middle half, thin: 5th to "
            "95th percentile, ▸: samples beyond the axis."
        )
        figure = Figure(lambda: _plots().latency([result]), caption)
        blocks += [figure, latency_table(result)]
    doubts = [(s.name, "; ".join(s.warnings)) for s in result.subjects if s.warnings]
    blocks += items(doubts, "warn")
    for status, tone in (("failed", "bad"), ("skipped", "note")):
        left_out = [(s.name, s.reason) for s in result.subjects if s.status == status]
        blocks += items(left_out, tone, status.capitalize())
    return blocks


def _stages(result: BenchResult) -> list[Block]:
    table = stages_table(result)
    if table is None:
        return []
    figure = Figure(lambda: _plots().stages(result), "Medians of the parts of an image.")
    return [Heading("Stages"), figure, table]


def _throughput(result: BenchResult) -> list[Block]:
    table = throughput_table(result)
    blocks: list[Block] = []
    if table is not None:
        caption = "Images a second over the batch size."
        if sum(len(s.throughput) for s in result.subjects) > len(table.rows):
            blocks.append(Figure(lambda: _plots().throughput(result), caption))
        blocks.append(table)
    refused = [
        (f"{subject.name}, batch {entry.batch}", entry.reason)
        for subject in result.subjects
        for entry in subject.throughput
        if entry.reason
    ]
    blocks += items(refused, "note", "Not measured")
    files = files_table(result)
    if files is not None:
        caption = (
            "From the middle of each stream of files: what its stages were doing when. Darker: "
            "several threads at the same time."
        )
        blocks += [files, Figure(lambda: _plots().timeline(result), caption)]
    return [Heading("Throughput"), *blocks] if blocks else []


def _cost(result: BenchResult) -> list[Block]:
    table = cost_table(result)
    if table is None:
        return []
    missing = [(s.name, s.cold.reason) for s in result.subjects if s.cold and s.cold.reason]
    return [
        Heading("Size, loading, memory"),
        table,
        *items(missing, "note", "Not measured"),
    ]


def _accuracy(result: BenchResult) -> list[Block]:
    table = accuracy_table(result)
    return [] if table is None else [Heading("Detections and average precision"), table]


def _samples(result: BenchResult) -> list[Block]:
    def draw() -> tuple[Comparison, ...]:
        from carafe_deploy.report.side_by_side import comparisons

        return comparisons(result)

    caption = (
        "What the first backend finds comes first. Of the others, a detection that has no "
        "partner there is framed in magenta, one that is there and missing here in dashed "
        "yellow; partners have the colour of their class. Partners are drawn from a score of 0.5 "
        "on, differences from 0.3."
    )
    return [Heading("Sample detections"), Gallery(draw, caption)] if result.samples else []


def _plots() -> ModuleType:
    """Imported, and matplotlib with it, only where a figure is drawn."""
    from carafe_deploy.report import plots

    return plots
