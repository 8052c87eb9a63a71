"""``carafe-deploy report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from carafe_deploy.cli.common import (
    Command,
    JsonOption,
    Steps,
    UsageError,
    examples,
    line,
    print_json,
    results_console,
)


def report(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json...", help="What `bench -o` or `parity -o` wrote."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", help="The page to write.")
    ] = Path("report.html"),
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE.md",
            help="Write the tables there; by default they go to stdout.",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show measurements and comparisons as a page and as Markdown.

    The page is one file that needs nothing else: which backend is fastest
    and by how much, distributions, stages, layers, memory, operators below
    the machine's roofline, and detections side by side.
    """
    _check_outputs(files, [path for path in (output, markdown) if path is not None])
    with Steps() as steps:
        steps("read")
        from carafe_deploy.files import atomic_write_text
        from carafe_deploy.report import read, to_markdown, write_report
        from carafe_deploy.report.sections import sections

        results = [read(path) for path in files]
        steps("write")
        write_report(results, output)
        text = to_markdown(results)
        if markdown is not None:
            atomic_write_text(markdown, text)
    if json_output:
        print_json(
            {
                "html": str(output),
                "markdown": None if markdown is None else str(markdown),
                "sections": [
                    {
                        "title": section.title,
                        "verdict": [sentence.text for sentence in section.verdict],
                        "partial": section.partial,
                    }
                    for section in sections(results)
                ],
            }
        )
    elif markdown is None:
        sys.stdout.write(text)
    else:
        console = results_console(json_output)
        for path in (output, markdown):
            line(console, str(path))


def _check_outputs(files: list[Path], outputs: list[Path]) -> None:
    """Nothing is written over what is read, or twice.

    Raises:
        UsageError: an output is an input or another output.
    """
    taken = {path.resolve(): path for path in files}
    for path in outputs:
        if path.resolve() in taken:
            raise UsageError(f"{path} would be overwritten: choose another output")
        taken[path.resolve()] = path


COMMAND = Command(
    "report",
    report,
    examples(
        "carafe-deploy report bench.json",
        "carafe-deploy report bench.json operators.json parity.json -o report.html "
        "--markdown report.md",
    ),
)
