"""Tables of one benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    rows = []
    for entry, total in zip(subjects, totals, strict=True):
        numbers = (total.median, total.minimum, total.mean, total.p90, total.p95, total.p99)
        warned = " ⚠" if entry.subject.warnings else ""
        rows.append(
            (
                f"{entry.name}{warned}",
                *(f"{number:.{places}f}" for number in numbers),
                share(total.variation),
                *((_ratio(entry, subjects[0]),) if several else ()),
                str(total.count),
            )
        )
    header = ("ms an image", "median", "min", "mean", "p90", "p95", "p99", "CV")
    ratios = (
        f"Over the first: time over that of {subjects[0].name}, with its 95% bootstrap interval "
        "over rounds; ≈ where that holds 1, so that this run does not tell which is faster. "
    )
    return Table(
        header=(*header, *(("over the first",) if several else ()), "images"),
        rows=tuple(rows),
        align="l" + "r" * (len(rows[0]) - 1),
        best=frozenset({subjects.index(fastest(subjects))}) if several else frozenset(),
        note=ratios * several + "CV: standard deviation over mean. Outliers are kept.",
    )


def _ratio(entry: Timed, reference: Timed) -> str:
    if entry is reference:
        return "1"
    ratio = ratio_over(entry, reference)
    return NONE if ratio is None else interval(ratio)


def stages_table(result: BenchResult) -> Table | None:
    """Medians of the parts of an image; None without any."""
    subjects = timed(result)
    medians = [
        {name: summary(times).median for name, times in entry.samples.parts_ms.items() if times}
        for entry in subjects
    ]
    parts = [name for name in PARTS if any(median.get(name) for median in medians)]
    if not parts:
        return None
    launching = [
        summary(entry.samples.enqueue_ms).median if entry.samples.enqueue_ms else None
        for entry in subjects
    ]
    places = min(3, 1 + decimals(min(entry.median for entry in subjects)))
    columns = [
        [optional(median.get(name), f"{{:.{places}f}}") for median in medians] for name in parts
    ]
    header = ["ms an image, median", *parts]
    if any(value is not None for value in launching):
        columns.append([optional(value, f"{{:.{places}f}}") for value in launching])
        header.append("launching")
    return Table(
        header=tuple(header),
        rows=tuple(
            (entry.name, *(cells[index] for cells in columns))
            for index, entry in enumerate(subjects)
        ),
        align="l" + "r" * len(columns),
        note=" ".join(text for name, text in _STAGE_NOTES.items() if name in header),
    )


_STAGE_NOTES = {
    "upload": "Upload and download are copies between host and device.",
    "launching": "Launching is the host's time to hand the device its work, while that computes.",
}


def throughput_table(result: BenchResult) -> Table | None:
    """Images a second by batch size, of runs alone and overlapped; None if nothing was measured."""
    batches = sorted({entry.batch for subject in result.subjects for entry in subject.throughput})
    subjects = [subject for subject in result.subjects if subject.throughput]
    if not any(entry.samples_ms for subject in subjects for entry in subject.throughput):
        return None
    alone = [
        {entry.batch: entry.images_per_second for entry in subject.throughput}
        for subject in subjects
    ]
    overlapped = [
        {entry.batch: entry.pipelined_images_per_second for entry in subject.throughput}
        for subject in subjects
    ]
    header = ["images/s"]
    columns = []
    for rates, words in ((alone, ""), (overlapped, ", overlapped")):
        if any(rate is not None for by_batch in rates for rate in by_batch.values()):
            header += [f"batch {batch}{words}" for batch in batches]
            columns += [column(rate.get(batch) for rate in rates) for batch in batches]
    note = "At the median run of a batch, without pre- and postprocessing."
    if len(columns) > len(batches):
        note += (
            " Overlapped: from decoded images to detections with encoded masks, one batch in "
            "preprocessing, one in the run and one in postprocessing at a time."
        )
    return Table(
        header=tuple(header),
        rows=tuple(
            (subject.name, *(cells[index] for cells in columns))
            for index, subject in enumerate(subjects)
        ),
        align="l" + "r" * len(columns),
        note=note,
    )


def cost_table(result: BenchResult) -> Table | None:
    """File, build, loading and memory; None if no subject tells."""
    subjects = [subject for subject in result.subjects if subject.status == "measured"]
    if not subjects:
        return None
    cold = [None if s.cold is None or s.cold.reason else s.cold for s in subjects]
    columns = {
        "file MB": [f"{subject.file_mb:.1f}" for subject in subjects],
        "build s": _column(subject.build_s for subject in subjects),
        "load s": column((one.load_s if one else None for one in cold), 2),
        "first run s": column((one.first_s if one else None for one in cold), 2),
        "memory MB": [optional(one.peak_memory_mb if one else None) for one in cold],
        "of it imports": [optional(one.import_memory_mb if one else None) for one in cold],
        "device MB": [optional(one.device_memory_mb if one else None) for one in cold],
    }
    table = Table(
        header=("", *columns),
        rows=tuple(
            (subject.name, *(cells[index] for cells in columns.values()))
            for index, subject in enumerate(subjects)
        ),
        align="l" + "r" * len(columns),
        note="Loading, first run and most resident memory are those of a process of its own that "
        "opens the artefact and runs it once; imports are what it held before."
        if any(cold)
        else "",
    )
    return table.without_empty_columns(NONE)


def _column(values: Iterable[float | None]) -> list[str]:
    return [optional(value, "{:.1f}") for value in values]


def accuracy_table(result: BenchResult) -> Table | None:
    """Agreement with the first subject, and average precision; None if neither is known."""
    subjects = [subject for subject in result.subjects if subject.agreement or subject.ap]
    if not subjects:
        return None
    compared = any(subject.agreement for subject in subjects)
    first = result.measured[0] if result.measured else None
    if compared and first is not None and first not in subjects:
        subjects.insert(0, first)
    header = ["", *(["found again", "score", "box IoU", "mask IoU"] if compared else [])]
    header += [name for kind, name in _AP.items() if any(kind in s.ap for s in subjects)]
    rows = []
    for subject in subjects:
        cells = [subject.name]
        if compared:
            cells += _agreement(subject, is_reference=subject is first)
        cells += [
            f"{subject.ap[kind]:.4f}" if kind in subject.ap else NONE
            for kind, name in _AP.items()
            if name in header
        ]
        rows.append((*cells, _mark(subject)))
    table = Table(
        header=(*header, ""),
        rows=tuple(rows),
        align="l" + "r" * (len(header) - 1) + "l",
        note="Found again: detections paired with those of the first, of all that either has; "
        "then the largest difference of a score and the smallest IoU among the pairs."
        if compared
        else "",
    )
    return table.without_empty_columns(NONE)


_AP = {"bbox": "box AP", "segm": "mask AP"}


def _agreement(subject: Subject, *, is_reference: bool) -> list[str]:
    found = subject.agreement
    if found is None:
        return ["reference" if is_reference else NONE, NONE, NONE, NONE]
    return [
        found.found_again,
        scientific(found.max_score_error) if found.total else NONE,
        optional(found.min_iou, "{:.4f}"),
        optional(found.min_mask_iou, "{:.4f}"),
    ]


def _mark(subject: Subject) -> str:
    return "" if subject.agreement is None else mark_of(subject.agreement.passed)


def comparison_table(results: Sequence[BenchResult], corner: str = "") -> Table:
    """The numbers that matter most, of one or more benchmarks; short enough for a README.

    Args:
        results: the first column names the detector if there are several.
        corner: heading of the first column.
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
            detector = ARCHITECTURES.get(result.architecture, result.architecture)
            name = f"{detector}, {entry.name}" if several else entry.name
            rows.append(
                (
                    name,
                    f"{total.median:.{places}f}",
                    f"{total.p95:.{places}f}",
                    _ratio(entry, subjects[0]),
                    _best_throughput(entry.subject),
                    _memory(entry.subject),
                    significant(entry.subject.file_mb),
                    _found(entry.subject),
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


def _memory(subject: Subject) -> str:
    if subject.cold is None or subject.cold.reason:
        return NONE
    return f"{subject.cold.peak_memory_mb:.0f}"


def _found(subject: Subject) -> str:
    found = subject.agreement
    return "" if found is None else found.found_again
