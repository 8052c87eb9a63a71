"""Sections as one HTML page that needs nothing else: styles, charts and pictures are inside."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import jinja2
from markupsafe import Markup

from carafe_deploy import __version__
from carafe_deploy.files import atomic_write_text
from carafe_deploy.report.document import Figure, Section
from carafe_deploy.report.inputs import Reportable, read
from carafe_deploy.report.markdown import PARTIAL
from carafe_deploy.report.sections import sections
from carafe_deploy.report.timings import gpus

__all__ = ["page", "write_report"]


def write_report(
    results: Sequence[Reportable | str | os.PathLike[str]], path: str | os.PathLike[str]
) -> None:
    """Write :func:`page` of results, or of the files that hold them, to a file.

    Raises:
        CarafeDeployError: a file is no result, see :func:`carafe_deploy.report.inputs.read`, or
            the path is not writable.
    """
    loaded = [read(each) if isinstance(each, (str, os.PathLike)) else each for each in results]
    atomic_write_text(path, page(loaded))


def page(results: Sequence[Reportable]) -> str:
    """At least one result as one self-contained page, a section each; comparisons share one.

    Raises:
        ArtefactError: a stored picture is damaged.
    """
    made = sections(results)
    numbers = itertools.count()

    def chart(figure: Figure) -> Markup:
        from carafe_deploy.report.style import to_svg

        return Markup(to_svg(figure.draw(), f"c{next(numbers)}", figure.caption))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("carafe_deploy", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # The name of the macro that shows a block is that of its class.
    environment.filters.update(kind=lambda block: type(block).__name__.lower(), chart=chart)
    return environment.get_template("page.html.jinja").render(
        sections=made,
        machines=list(_machines(made)),
        partial=PARTIAL,
        version=__version__,
    )


def _machines(made: Sequence[Section]) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Each machine once: titles of what was measured there, its facts, and what it lacks."""
    groups: dict[tuple[tuple[str, str], ...], list[Section]] = {}
    for section in made:
        facts = tuple(item for item in section.environment.items() if item[0] not in _PASSING)
        if facts:
            groups.setdefault(facts, []).append(section)
    for facts, members in groups.items():
        passing = {
            name: " · ".join(dict.fromkeys(m.environment[name] for m in members))
            for name in _PASSING
            if all(name in member.environment for member in members)
        }
        missing = [name for name, value in facts if value == _MISSING]
        present = {
            name: gpus(value) if name == "GPU" else value
            for name, value in facts
            if value != _MISSING
        }
        yield (
            "; ".join(member.title for member in members) if len(groups) > 1 else "",
            {**present, **passing},
            ", ".join(missing),
        )


_MISSING = "not installed"
#: Facts that differ from run to run on the same machine.
_PASSING = ("date",)
