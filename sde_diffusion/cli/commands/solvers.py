"""``sdediff solvers``: the table of solvers.

The command reads `solvers.json` beside this file, because importing the solvers imports torch and takes longer than
the rest of the command. A test compares the file with the declarations of the solvers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sde_diffusion.report import terminal
from sde_diffusion.report.solver_table import table_of_solvers

LISTING = Path(__file__).with_name("solvers.json")


def solvers(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")] = False,
) -> None:
    """List every solver: order, evaluations for N steps, minimum NFE, default grid and source."""
    listing = LISTING.read_text(encoding="utf-8")
    if as_json:
        typer.echo(listing, nl=False)
        return
    console = terminal.stdout()
    console.print(table_of_solvers(json.loads(listing), console.width))
