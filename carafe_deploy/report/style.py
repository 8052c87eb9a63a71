"""Colours and type of all charts, and how a chart becomes part of a page or a picture file.

A chart is drawn in :data:`INK` on nothing; inside a page its ink becomes the colour of the text
around it, so that it suits light and dark pages. Other colours are chosen to be read on both.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from carafe_deploy.files import atomic_path

__all__ = [
    "GRID",
    "INK",
    "PALETTE",
    "PARTS",
    "drawn",
    "plain_axes",
    "plain_log",
    "save_png",
    "to_svg",
]

#: Of text and axes; nothing else has this colour.
INK = "#010203"
GRID = "#8c929c"
#: By part of an image's way.
PARTS = {
    "preprocess": "#9aa4b2",
    "upload": "#d99a2b",
    "compute": "#4a8fd0",
    "download": "#b779c4",
    "postprocess": "#4fa87a",
}
#: Of whatever has no colour of its own, in this order.
PALETTE = ("#4a8fd0", "#e0663f", "#5fa32f", "#b779c4", "#d99a2b", "#2fa184", "#c25b7a", "#8a7f5c")

#: matplotlib's stub wants each name as a literal.
_STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.dpi": 72,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "text.color": INK,
    # Names hold dollars and underscores that are no formulas.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def drawn(draw: Callable[[], Figure]) -> Figure:
    """Call a function that draws, in this style."""
    with matplotlib.rc_context(_STYLE):
        return draw()


def plain_axes(axes: Axes, *, grid: str) -> None:
    """No frame but the lower edge, and a grid along one axis, ``"x"``, ``"y"`` or ``"both"``."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, axis="y")
    axes.tick_params(length=2.5, axis="x")
    axes.grid(axis=grid)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def plain_log(axes: Axes, *, base: int = 10, both: bool = False) -> None:
    """Logarithmic x, or x and y, labelled 0.5, 1, 2, 5, 10 without powers."""
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        if axis is axes.yaxis and not both:
            continue
        scale("log", base=base)
        axis.set_major_locator(LogLocator(base, (1, 2, 5) if base == 10 else (1,), numticks=30))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())


def to_svg(figure: Figure, name: str, description: str) -> str:
    """An element to put into HTML.

    Args:
        figure: made by :func:`drawn`.
        name: unique in the page; what the chart refers to inside itself begins with it.
        description: for those who cannot see it.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # A browser has letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r'(?<= id=")(?=[^"])', f"{name}-", text)
    text = re.sub(r'(?<=href="#)|(?<=url\(#)', f"{name}-", text)
    label = html.escape(description)
    opening = f'<svg class="chart" role="img" aria-label="{label}"'
    return re.sub(r'^<svg( [a-z:]+="[^"]*")*? width="[^"]*" height="[^"]*"', opening, text)


def save_png(figure: Figure, path: Path, text: Mapping[str, str]) -> None:
    """Write a picture, on white, with text inside the file.

    Raises:
        CarafeDeployError: the path is not writable.
    """
    metadata = {"Software": None, **text}
    with matplotlib.rc_context(_STYLE), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=144, facecolor="white", metadata=metadata)
