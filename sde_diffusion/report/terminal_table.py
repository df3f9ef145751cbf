"""A table of results in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sde_diffusion.files.text import printable
from solvers.display.result_table import ResultTable


def rich_table(found: ResultTable, sections: Sequence[object] = ()) -> Table:
    """The table for a rich console; a line is drawn wherever the value of ``sections`` changes from row to row."""
    out = Table(*found.heads, title=found.title or None, box=SIMPLE_HEAD, pad_edge=False)
    for k, row in enumerate(found.rows):
        out.add_row(*map(printable, row), end_section=k + 1 < len(sections) and sections[k] != sections[k + 1])
    return out
