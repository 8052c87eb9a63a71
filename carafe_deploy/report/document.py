"""What a report says, apart from how it looks: sections of text, tables, figures and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from carafe_deploy.brief import OneLine

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "Block",
    "Comparison",
    "Figure",
    "Fold",
    "Gallery",
    "Heading",
    "Items",
    "Section",
    "Table",
    "Text",
    "Tile",
    "items",
]


@dataclass(frozen=True)
class Heading:
    """Begins a part of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; its tone: ``"good"``, ``"bad"``, ``"warn"``, ``"note"`` (minor) or ``""``."""

    text: str
    tone: str = ""


@dataclass(frozen=True, repr=False)
class Items(OneLine):
    """Things, each with a remark; tones as of :class:`Text`, a title for all."""

    rows: tuple[tuple[str, str], ...]
    tone: str = ""
    title: str = ""


@dataclass(frozen=True, repr=False)
class Table(OneLine):
    """Cells by row.

    Attributes:
        header: names of the columns.
        rows: as long as the header.
        align: ``l`` or ``r`` a column.
        best: rows to emphasise.
        key: column that is emphasised in them.
        note: how to read it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    best: frozenset[int] = frozenset()
    key: int = 0
    note: str = ""

    def without_empty_columns(self, empty: str) -> Table:
        """The same without columns that hold nothing but this text."""
        kept = [i for i in range(len(self.header)) if {row[i] for row in self.rows} != {empty}]
        return replace(
            self,
            header=tuple(self.header[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
            align="".join(self.align[i] for i in kept),
        )


@dataclass(frozen=True, repr=False)
class Figure(OneLine):
    """A chart, drawn only where charts are shown; the caption says how to read it."""

    draw: Callable[[], Drawing]
    caption: str


@dataclass(frozen=True)
class Tile:
    """One picture: who found these detections, and what differs; tones as of :class:`Text`.

    ``jpeg`` is base64, width and height are in pixels.
    """

    title: str
    verdict: str
    tone: str
    jpeg: str
    width: int
    height: int


@dataclass(frozen=True, repr=False)
class Comparison(OneLine):
    """Pictures of one image side by side, so many in a row where there is room."""

    title: str
    tiles: tuple[Tile, ...]
    columns: int


@dataclass(frozen=True, repr=False)
class Gallery(OneLine):
    """Pictures side by side, made when they are needed."""

    draw: Callable[[], tuple[Comparison, ...]]
    caption: str


@dataclass(frozen=True, repr=False)
class Fold(OneLine):
    """Blocks that are shown when asked for."""

    summary: str
    blocks: tuple[Block, ...]


Block = Heading | Text | Items | Table | Figure | Gallery | Fold


def items(rows: Sequence[tuple[str, str]], tone: str, title: str = "") -> list[Block]:
    """A block of :class:`Items`, or none where there are none."""
    return [Items(tuple(rows), tone, title)] if rows else []


@dataclass(frozen=True, repr=False)
class Section(OneLine):
    """What one result says.

    Attributes:
        title: of what was measured.
        subtitle: on what.
        verdict: the outcome in a few sentences, also shown at the top of the page.
        blocks: figures and tables.
        partial: measuring was interrupted.
        environment: facts by name; empty if the result does not say.
    """

    title: str
    subtitle: str
    verdict: tuple[Text, ...]
    blocks: tuple[Block, ...]
    partial: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
