"""The table of solvers, from what each declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_SOURCE = 30  # columns that a source needs at least
_CAPTION = "order: weak (strong) for SDEs; N: steps, the last one to sigma = 0; least: minimum NFE"


def table_of_solvers(declarations: Mapping[str, Mapping[str, Any]], width: int = 80) -> Table:
    """One line for each solver. Columns are never cut; on narrow terminals sources are wrapped or left out.

    Args:
        declarations: of each solver by its name, as ``verify.declarations.declaration`` returns them.
        width: columns of the terminal.
    """
    rows = []
    for name, said in declarations.items():
        strong = "" if said["strong_order"] is None else f" ({said['strong_order']:g})"
        kind = "SDE" if said["stochastic"] else "ODE"
        counts = (said["evaluations"], str(said["minimum"]))
        rows.append([name, kind, f"{said['order']}{strong}", *counts, said["grid"], said["source"]])
    heads = ["name", "kind", "order", "evaluations", "least", "grid"]
    table = Table(
        title="Solvers",
        caption=_CAPTION,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        min_width=min(width, len(_CAPTION)),
    )
    fixed = 0
    for k, head in enumerate(heads):
        size = max(len(head), *(len(row[k]) for row in rows))
        table.add_column(head, no_wrap=True, min_width=size)
        fixed += size + 2
    if width - fixed >= _SOURCE:
        table.add_column("source")
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    return table
