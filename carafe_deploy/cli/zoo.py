"""``carafe-deploy models``."""

from __future__ import annotations

from rich.table import Table

from carafe_deploy.cli.common import (
    Command,
    JsonOption,
    examples,
    hint,
    line,
    print_json,
    results_console,
    shell,
)


def models(json_output: JsonOption = False) -> None:
    """List the published models that can be named instead of a checkpoint."""
    from carafe_deploy.models import zoo

    entries = zoo.models()
    if json_output:
        print_json(
            [
                {
                    "name": entry.name,
                    "architecture": entry.architecture,
                    "box_ap": entry.box_ap,
                    "mask_ap": entry.mask_ap,
                    "fps": entry.fps,
                    "file": entry.file_name,
                    "url": entry.url(),
                }
                for entry in entries
            ]
        )
        return
    console = results_console(json_output)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in ("box AP", "mask AP", "fps"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        mask_ap = "" if entry.mask_ap is None else f"{entry.mask_ap:.1f}"
        table.add_row(entry.name, f"{entry.box_ap:.1f}", mask_ap, f"{entry.fps:.1f}")
    console.print(table)
    line(console, "COCO val2017; fps of mmdetection on a V100, from its model card\n", style="dim")
    for entry in entries:
        line(console, entry.file_name)
        line(console, f"  {entry.url()}", style="dim")
    hint(console, shell("carafe-deploy", "export", entries[-1].name))


COMMAND = Command(
    "models",
    models,
    examples("carafe-deploy models", "carafe-deploy models --json"),
    needs_arguments=False,
)
