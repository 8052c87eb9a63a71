"""Tables of one benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from carafe_deploy.bench.record import PARTS, BenchResult, Subject
from carafe_deploy.bench.statistics import summary
from carafe_deploy.report.document import Table
from carafe_deploy.report.numbers import (
    NONE,
    column,
    decimals,
    interval,
    optional,
    scientific,
    share,
    significant,
)
from carafe_deploy.report.timings import Timed, fastest, ratio_over, timed
from carafe_deploy.types import ARCHITECTURES
from carafe_deploy.verdict import mark_of

__all__ = [
    "accuracy_table",
    "comparison_table",
    "cost_table",
    "files_table",
    "latency_table",
    "stages_table",
    "throughput_table",
]


def latency_table(result: BenchResult) -> Table:
    """Summaries of all samples, and the ratio over the first subject."""
    subjects = timed(result)
    totals = [entry.samples.total for entry in subjects]
    places = decimals(min(total.median for total in totals))
    several = len(subjects) > 1
    columns = {
        title: [f"{getattr(total, name):.{places}f}" for total in totals]
        for title, name in _SUMMARY.items()
    }
    columns["CV"] = [share(total.variation) for total in totals]
    if several:
        columns["over the first"] = [_ratio(entry, subjects[0]) for entry in subjects]
    columns["images"] = [str(total.count) for total in totals]
    ratios = (
        f"Over the first: time over that of {subjects[0].name}, with its 95% bootstrap interval "
        "over rounds; ≈ where that holds 1, so that this run does not tell which is faster. "
    )
    table = _by_columns(
        "ms an image",
        [f"{entry.name}{' ⚠' * bool(entry.subject.warnings)}" for entry in subjects],
        columns,
        note=ratios * several + "CV: standard deviation over mean. Outliers are kept.",
    )
    best = {subjects.index(fastest(subjects))} if several else ()
    return replace(table, best=frozenset(best))


#: Heading -> attribute of a summary.
_SUMMARY = {"median": "median", "min": "minimum", "mean": "mean"} | {
    name: name for name in ("p90", "p95", "p99")
}


def _by_columns(
    corner: str, names: Iterable[str], columns: Mapping[str, Iterable[str]], note: str
) -> Table:
    """A row a name; cells by column."""
    rows = zip(names, *columns.values(), strict=True)
    return Table((corner, *columns), tuple(rows), "l" + "r" * len(columns), note=note)


def _ratio(entry: Timed, reference: Timed) -> str:
    if entry is reference:
        return "1"
    ratio = ratio_over(entry, reference)
    return NONE if ratio is None else interval(ratio)


def stages_table(result: BenchResult) -> Table | None:
    """Medians of the parts of an image; None without any."""
    subjects = timed(result)
    times = [
        {**entry.samples.parts_ms, "launching": entry.samples.enqueue_ms} for entry in subjects
    ]
    medians = [
        {name: summary(values).median for name, values in parts.items() if values}
        for parts in times
    ]
    parts = [name for name in PARTS if any(median.get(name) for median in medians)]
    if not parts:
        return None
    if any("launching" in median for median in medians):
        parts.append("launching")
    places = min(3, 1 + decimals(min(entry.median for entry in subjects)))
    return _by_columns(
        "ms an image, median",
        [entry.name for entry in subjects],
        {
            name: [optional(median.get(name), f"{{:.{places}f}}") for median in medians]
            for name in parts
        },
        note=" ".join(text for name, text in _STAGE_NOTES.items() if name in parts),
    )


_STAGE_NOTES = {
    "upload": "Upload and download are copies between host and device; what a GPU preprocesses is "
    "part of upload.",
    "launching": "Launching is the host's time to hand the device its work, while that computes.",
}


def throughput_table(result: BenchResult) -> Table | None:
    """Images a second by batch size, of runs alone and overlapped; None if nothing was measured."""
    subjects = [subject for subject in result.subjects if subject.throughput]
    entries = [{entry.batch: entry for entry in subject.throughput} for subject in subjects]
    batches = sorted({batch for by_batch in entries for batch in by_batch})
    if not any(entry.samples_ms for by_batch in entries for entry in by_batch.values()):
        return None
    columns = {}
    for words, rate in (
        ("", "images_per_second"),
        (", overlapped", "pipelined_images_per_second"),
    ):
        rates = [[getattr(each.get(batch), rate, None) for each in entries] for batch in batches]
        if any(value is not None for values in rates for value in values):
            for batch, values in zip(batches, rates, strict=True):
                columns[f"batch {batch}{words}"] = column(values)
    note = "At the median run of a batch, without pre- and postprocessing."
    if len(columns) > len(batches):
        note += (
            " Overlapped: from decoded images to detections with encoded masks, one batch in "
            "preprocessing, one in the run and one in postprocessing at a time."
        )
    return _by_columns("images/s", [subject.name for subject in subjects], columns, note)


def files_table(result: BenchResult) -> Table | None:
    """Of streams of files; None if there was none."""
    streams = [(s.name, s.streamed) for s in result.subjects if s.streamed is not None]
    if not streams:
        return None
    columns = {
        "images/s": column([one.images_per_second for _, one in streams]),
        "batch": [str(one.batch) for _, one in streams],
        "run idles": [share(one.idle) for _, one in streams],
    }
    note = (
        "From JPEG files, decoding included, to detections with encoded masks. The run idles for "
        "the share of the time that is left over when each takes as long as alone."
    )
    return _by_columns("from files", [name for name, _ in streams], columns, note)


def cost_table(result: BenchResult) -> Table | None:
    """File, build, loading and memory; None if no subject tells."""
    subjects = [subject for subject in result.subjects if subject.status == "measured"]
    if not subjects:
        return None
    cold = [None if s.cold is None or s.cold.reason else s.cold for s in subjects]

    def told(name: str) -> list[float | None]:
        return [getattr(one, name, None) for one in cold]

    columns = {
        "file MB": [f"{subject.file_mb:.1f}" for subject in subjects],
        "build s": [optional(subject.build_s, "{:.1f}") for subject in subjects],
        "load s": column(told("load_s"), 2),
        "first run s": column(told("first_s"), 2),
        "memory MB": map(optional, told("peak_memory_mb")),
        "of it imports": map(optional, told("import_memory_mb")),
        "device MB": map(optional, told("device_memory_mb")),
    }
    note = (
        "Loading, first run and most resident memory are those of a process of its own that opens "
        "the artefact and runs it once; imports are what it held before."
    )
    table = _by_columns("", [s.name for s in subjects], columns, note if any(cold) else "")
    return table.without_empty_columns(NONE)


def accuracy_table(result: BenchResult) -> Table | None:
    """Agreement with the first subject, and average precision; None if neither is known."""
    subjects = [subject for subject in result.subjects if subject.agreement or subject.ap]
    if not subjects:
        return None
    compared = any(subject.agreement for subject in subjects)
    first = result.measured[0] if result.measured else None
    if compared and first is not None and first not in subjects:
        subjects.insert(0, first)
    columns: dict[str, Iterable[str]] = {}
    if compared:
        cells = [_agreement(subject, is_reference=subject is first) for subject in subjects]
        names = ("found again", "score", "box IoU", "mask IoU")
        columns.update(zip(names, zip(*cells, strict=True), strict=True))
    for kind, name in (("bbox", "box AP"), ("segm", "mask AP")):
        if any(kind in subject.ap for subject in subjects):
            columns[name] = [optional(subject.ap.get(kind), "{:.4f}") for subject in subjects]
    note = (
        "Found again: detections paired with those of the first, of all that either has; "
        "then the largest difference of a score and the smallest IoU among the pairs."
    )
    marks = ["" if s.agreement is None else mark_of(s.agreement.passed) for s in subjects]
    columns[""] = marks
    table = _by_columns("", [s.name for s in subjects], columns, note if compared else "")
    aligned = replace(table, align=table.align[:-1] + "l")
    return aligned.without_empty_columns(NONE)


def _agreement(subject: Subject, *, is_reference: bool) -> tuple[str, str, str, str]:
    found = subject.agreement
    if found is None:
        return "reference" if is_reference else NONE, NONE, NONE, NONE
    return (
        found.found_again,
        scientific(found.max_score_error) if found.total else NONE,
        optional(found.min_iou, "{:.4f}"),
        optional(found.min_mask_iou, "{:.4f}"),
    )


def comparison_table(results: Sequence[BenchResult], corner: str = "") -> Table:
    """The numbers that matter most, of one or more benchmarks; short enough for a README.

    The first column, headed ``corner``, names the detector if there are several benchmarks.
    """
    several = len(results) > 1
    rows: list[tuple[str, ...]] = []
    best = set()
    for result in results:
        subjects = timed(result)
        if not subjects:
            continue
        places = decimals(min(entry.median for entry in subjects))
        for entry in subjects:
            total = entry.samples.total
            if entry is fastest(subjects) and len(subjects) > 1:
                best.add(len(rows))
            cold, found = entry.subject.cold, entry.subject.agreement
            detector = ARCHITECTURES.get(result.architecture, result.architecture)
            name = f"{detector}, {entry.name}" if several else entry.name
            rows.append(
                (
                    name,
                    f"{total.median:.{places}f}",
                    f"{total.p95:.{places}f}",
                    _ratio(entry, subjects[0]),
                    _best_throughput(entry.subject),
                    NONE if cold is None or cold.reason else f"{cold.peak_memory_mb:.0f}",
                    significant(entry.subject.file_mb),
                    "" if found is None else found.found_again,
                )
            )
    header = (corner, "ms", "p95", "over the first", "images/s", "memory MB", "file MB", "found")
    return Table(header, tuple(rows), "l" + "r" * 7, frozenset(best))


def _best_throughput(subject: Subject) -> str:
    rates = [
        (entry.images_per_second, entry.batch)
        for entry in subject.throughput
        if entry.images_per_second is not None
    ]
    if not rates:
        return NONE
    rate, batch = max(rates)
    return f"{significant(rate)} at {batch}"
