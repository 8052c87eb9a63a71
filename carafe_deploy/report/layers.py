"""Where the time goes, layer by layer."""

from __future__ import annotations

from carafe_deploy.bench.record import BenchResult, Layer, Layers
from carafe_deploy.operators import FAMILIES, TITLES
from carafe_deploy.report.document import Block, Fold, Heading, Items, Table
from carafe_deploy.report.numbers import share, significant

__all__ = ["layer_blocks"]

#: Rows shown of a profile.
SHOWN = 10
#: Operators of a family, by its title, as profiles call them.
_FAMILIES = {
    TITLES[family]: tuple(operator.onnx_name for operator in operators)
    for family, operators in FAMILIES.items()
}
_CARAFE = _FAMILIES[TITLES["carafe"]]


def layer_blocks(result: BenchResult) -> list[Block]:
    """Shares of the operators in every profile, and its most expensive layers; may be empty."""
    profiles = [(s.name, s.layers) for s in result.subjects if s.layers is not None]
    if not profiles:
        return []
    blocks: list[Block] = [Heading("Layers")]
    found = [(name, layers) for name, layers in profiles if layers.rows]
    if found:
        blocks.append(_shares(found))
    blocks += [
        Fold(
            f"{name}: CARAFE takes {share(layers.share(*_CARAFE))} of "
            f"{significant(layers.total_ms)} ms; the {min(SHOWN, len(layers.rows))} most expensive "
            f"of {len(layers.rows)} layers",
            (_top(layers),),
        )
        for name, layers in found
    ]
    missing = tuple((name, layers.reason) for name, layers in profiles if not layers.rows)
    if missing:
        blocks.append(Items(missing, "note", "No profile"))
    return blocks


def _shares(profiles: list[tuple[str, Layers]]) -> Table:
    rows = []
    for name, layers in profiles:
        shares = [layers.share(*operators) for operators in _FAMILIES.values()]
        cells = [share(part) for part in (*shares, 1 - sum(shares))]
        rows.append((name, f"{significant(layers.total_ms)}", *cells, layers.source))
    return Table(
        header=("share of the time", "ms a run", *_FAMILIES, "other layers", "measured by"),
        rows=tuple(rows),
        align="l" + "r" * (len(_FAMILIES) + 2) + "l",
        note="Profiling costs time itself: shares mean more than milliseconds.",
    )


def _top(layers: Layers) -> Table:
    rows = layers.rows[:SHOWN]
    ours = frozenset(i for i, row in enumerate(rows) if row.operator in _CARAFE)
    return Table(
        header=("layer", "type", "ms", "share"),
        rows=tuple(
            (
                row.name,
                _kind(row),
                f"{row.milliseconds:.3f}",
                share(row.milliseconds / layers.total_ms if layers.total_ms else 0.0),
            )
            for row in rows
        ),
        align="llrr",
        best=ours,
        note=f"Mean of {layers.runs} runs, by {layers.source}."
        + " CARAFE's layers are bold." * bool(ours),
    )


def _kind(row: Layer) -> str:
    return row.kind if row.operator in ("", row.kind) else f"{row.kind} of {row.operator}"
