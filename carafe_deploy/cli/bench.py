"""``carafe-deploy bench``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from carafe_deploy.cli.bench_operators import bench_operators
from carafe_deploy.cli.common import (
    AnnotationsOption,
    Command,
    ConfigOption,
    DeviceOption,
    ImageDirOption,
    JsonOption,
    LimitOption,
    Steps,
    UsageError,
    artefact_path,
    default_images,
    examples,
    hint,
    hint_debug,
    line,
    plural,
    results_console,
    shell,
)

if TYPE_CHECKING:
    from carafe_deploy.bench.record import BenchResult, Subject
    from carafe_deploy.images import Image
    from carafe_deploy.runners.base import Runner

_INTERRUPTED = 130


def bench(
    artefacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARTEFACT...",
            help="Checkpoints, .ts, .onnx and .engine files of one model; the first is what the "
            "others are compared with.",
        ),
    ] = None,
    operators: Annotated[
        list[str] | None,
        typer.Option(
            "--op",
            metavar="NAME",
            help="Measure single operators instead: carafe, rpn_candidates, roi_align, "
            "box_candidates, nms or all; repeatable.",
        ),
    ] = None,
    device: DeviceOption = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="IMAGES",
            help="File, folder or glob, repeatable; by default one of the package in which the "
            "first artefact finds something.",
        ),
    ] = None,
    random_size: Annotated[
        str | None,
        typer.Option("--random", metavar="HEIGHTxWIDTH", help="An image of noise instead."),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="A,B",
            help="Of checkpoints: fp32, fp16, bf16; by default those of the exported artefacts.",
        ),
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="A,B",
            help="Of all but TorchScript: eager, cuda-graph; checkpoints also compile and "
            "compile-graph; by default eager, on a GPU cuda-graph as well.",
        ),
    ] = None,
    layouts: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="A,B",
            help="Of checkpoints: nchw, channels-last; by default channels-last.",
        ),
    ] = None,
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32",
            help="Measure what computes in fp32 with TF32 as well (GPU); engines have it inside.",
        ),
    ] = False,
    providers: Annotated[
        str | None,
        typer.Option(
            "--provider",
            metavar="A,B",
            help="Of ONNX Runtime: cpu, cuda, tensorrt, tensorrt-rtx; by default all that belong "
            "to the device.",
        ),
    ] = None,
    provider_options: Annotated[
        list[str] | None,
        typer.Option(
            "--provider-option",
            metavar="NAME=VALUE",
            help="Of ONNX Runtime's provider, by its own name, e.g. prefer_nhwc=0; repeatable.",
        ),
    ] = None,
    bodies: Annotated[
        bool,
        typer.Option(
            "--bodies",
            help="Measure ONNX files by the function bodies in them as well, as an ONNX Runtime "
            "without our kernels runs them.",
        ),
    ] = False,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", metavar="A,B", help="For throughput; 0 for none.")
    ] = "1,2,4",
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rounds; everything has its turn in each. 20 by default, fewer with --op."
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            min=1, help="Timed images a turn; by default as many as a quarter of a second holds."
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(min=1, help="Untimed runs of every image before.")] = 2,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of one operator on the CPU; by default what each runtime chooses."
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Profile layer by layer.")] = False,
    cold: Annotated[
        bool,
        typer.Option(
            "--memory/--no-memory", help="Measure memory, loading and first run in own processes."
        ),
    ] = True,
    samples: Annotated[int, typer.Option(min=0, help="Images to show in the report.")] = 2,
    annotations: AnnotationsOption = None,
    image_dir: ImageDirOption = None,
    limit: LimitOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="With --op: all types and layouts of all workloads.")
    ] = False,
    config: ConfigOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write the result.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a report.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure every form of a detector in one run.

    Artefacts take turns, so that drift of the machine hits all alike, and every
    figure comes with what it may be trusted for. What this machine cannot run is
    listed with the reason; one that breaks is a failed row beside the others.
    Ctrl-C keeps what was measured by then. The exit status is 1 if an artefact
    failed or does not detect what the first one does.
    """
    if operators:
        if artefacts:
            named = plural(len(artefacts), "artefact")
            raise UsageError(f"--op measures operators alone: drop {named}")
        if bodies or provider_options:
            given = "--bodies" if bodies else "--provider-option"
            raise UsageError(f"{given} is about ONNX files, and --op measures operators: drop one")
        bench_operators(
            operators,
            device=device or "cpu",
            rounds=rounds,
            threads=threads,
            full=full,
            output=output,
            html=html,
            json_output=json_output,
        )
        return
    if not artefacts:
        raise UsageError("nothing to measure: name artefacts, or operators with --op")
    if full:
        raise UsageError("--full belongs to --op: drop it")
    if random_size is not None and images:
        raise UsageError("--random and --images exclude each other: drop one")
    console = results_console(json_output)
    with Steps() as steps:
        steps("load packages")
        from carafe_deploy.bench.options import BenchOptions
        from carafe_deploy.bench.result_file import to_json
        from carafe_deploy.bench.run import run_bench
        from carafe_deploy.bench.subjects import Variants
        from carafe_deploy.files import atomic_write_text

        options = BenchOptions(
            device=device or "cpu",
            variants=Variants(
                precisions=_words(precisions),
                modes=_words(modes),
                layouts=_words(layouts),
                providers=_words(providers),
                tf32=tf32,
                bodies=bodies,
                provider_options=_named_values(provider_options or []),
            ),
            config=config,
            rounds=BenchOptions.rounds if rounds is None else rounds,
            block=block,
            warmup=warmup,
            batch_sizes=_batch_sizes(batch_sizes),
            threads=threads,
            cold=cold,
            layers=_PROFILED if layers else 0,
            samples=samples,
            annotations=annotations,
            image_dir=image_dir,
            limit=limit,
        )
        result = run_bench(
            [artefact_path(name) for name in artefacts],
            lambda runner: _images(runner, images, random_size),
            options,
            step=steps,
            progress=lambda done, total: steps.update(f"{done}/{total}"),
        )
        text = to_json(result)
        if output is not None:
            atomic_write_text(output, text)
        if html is not None:
            steps("report")
            from carafe_deploy.report.html import write_report

            write_report([result], html)
    if json_output:
        typer.echo(text, nl=False)
    else:
        _show(console, result, output, html)
    if result.partial:
        raise typer.Exit(_INTERRUPTED)
    if not _agrees(result):
        raise typer.Exit(1)


#: Runs that a profile is the mean of.
_PROFILED = 3


def _words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _named_values(words: Sequence[str]) -> dict[str, str]:
    parts = [word.partition("=") for word in words]
    for word, (name, _, value) in zip(words, parts, strict=True):
        if not name or not value:
            raise UsageError(f"--provider-option is {word!r}: give NAME=VALUE, e.g. prefer_nhwc=0")
    return {name: value for name, _, value in parts}


def _batch_sizes(text: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--batch-sizes is {text!r}: give numbers with commas between, e.g. 1,2,4")
    return () if words == ("0",) else tuple(dict.fromkeys(map(int, words)))


def _images(
    runner: Runner, named: list[str] | None, random_size: str | None
) -> Mapping[str, Image]:
    import numpy as np

    from carafe_deploy.images import find_images, load_image
    from carafe_deploy.samples import sample_images

    if random_size is not None:
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", random_size)
        if match is None:
            raise UsageError(f"--random is {random_size!r}: give HEIGHTxWIDTH, e.g. 800x1216")
        shape = (int(match[1]), int(match[2]), 3)
        return {"noise": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}
    if named:
        return {str(path): load_image(path) for path in find_images(named)}
    try:
        return default_images(runner, 1)
    except Exception:  # a runner that breaks shall be a row of the table, with the reason
        return dict([next(sample_images())])


def _agrees(result: BenchResult) -> bool:
    return not any(
        subject.status == "failed"
        or (subject.agreement is not None and not subject.agreement.passed)  # or nothing compared
        for subject in result.subjects
    )


def _show(console: Console, result: BenchResult, output: Path | None, html: Path | None) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(f"{result.model}, ms an image")
    for name in (*("median", "p95", "min", "±", "over first"), *_RATES, "memory", "agree"):
        table.add_column(name, justify="right", no_wrap=True)
    measured = result.measured
    for subject in measured:
        table.add_row(subject.name, *_cells(subject, measured[0]))
    parts = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    parts.add_column("of which, medians")
    for name in ("preprocess", "upload", "compute", "download", "postprocess"):
        parts.add_column(name, justify="right", no_wrap=True)
    for subject in measured:
        assert subject.samples is not None
        medians = [subject.samples.part(name).median for name in subject.samples.parts_ms]
        parts.add_row(subject.name, *(f"{median:.2f}" for median in medians))
    console.print()
    console.print(table)
    console.print()
    console.print(parts)
    console.print()
    for subject in result.subjects:
        if subject.status != "measured":
            style = "yellow" if subject.status == "skipped" else "red"
            line(console, f"{subject.name} {subject.status}: {subject.reason}", style=style)
    for warning in result.warnings:
        line(console, warning, style="yellow")
    for subject in measured:
        for warning in subject.warnings:
            line(console, f"{subject.name}: {warning}", style="dim")
    line(console, f"{result.settings['turns']}; {result.settings['images']}", style="dim")
    for path in (output, html):
        if path is not None:
            line(console, str(path))
    if result.partial:
        line(console, "interrupted: this is what was measured by then", style="yellow")
    failed = [subject for subject in result.subjects if subject.status == "failed"]
    if not result.partial and not _agrees(result):
        names = [
            f"{s.name} ({s.agreement.state})" if s.agreement.passed is None else s.name
            for s in measured
            if s.agreement is not None and not s.agreement.passed
        ]
        names = list(dict.fromkeys([*(subject.name for subject in failed), *names]))
        console.print(f"\n[bold red]FAIL[/bold red] {', '.join(names)}")
        if failed:
            hint_debug(console, "bench")
    elif output is not None and html is None:
        hint(console, shell("carafe-deploy", "report", str(output), "-o", "report.html"))


#: Images a second: of runs alone; from decoded images to detections with the stages overlapping;
#: likewise from files.
_RATES = ("images/s", "overlapped", "from files")


def _best(rates: Iterable[float | None]) -> str:
    best = max((rate for rate in rates if rate is not None), default=None)
    return "" if best is None else f"{best:.1f}"


def _cells(subject: Subject, first: Subject) -> list[str]:
    assert subject.samples is not None
    assert first.samples is not None
    total = subject.samples.total
    over = ""
    if subject is not first:
        ratio = subject.samples.over(first.samples)
        over = f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
    alone = _best(entry.images_per_second for entry in subject.throughput)
    overlapped = _best(entry.pipelined_images_per_second for entry in subject.throughput)
    files = _best([subject.streamed.images_per_second] if subject.streamed else [])
    memory = ""
    if subject.cold is not None and not subject.cold.reason:
        memory = f"{subject.cold.peak_memory_mb / 1e3:.2f} GB"
    agree = ""
    if subject.agreement is not None:
        agree = f"{subject.agreement.matched}/{subject.agreement.total}"
        if subject.agreement.passed is None:
            agree = "nothing"
    return [
        f"{total.median:.1f}",
        f"{total.p95:.1f}",
        f"{total.minimum:.1f}",
        f"{total.variation:.0%}",
        over,
        alone,
        overlapped,
        files,
        memory,
        agree,
    ]


COMMAND = Command(
    "bench",
    bench,
    examples(
        "carafe-deploy bench epoch_12.pth detector.ts detector.onnx --html bench.html",
        "carafe-deploy bench detector.onnx detector.engine --device cuda --images photos/ "
        "-o bench.json",
        "carafe-deploy bench --op carafe --op nms",
    ),
)
