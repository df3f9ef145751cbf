"""``sdediff solvers``: the table of solvers, made from what each declares."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from sde_diffusion.verify.declarations import declaration
from sde_diffusion.verify.report import catalogue
from solvers import SOLVERS


def solvers(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """List every solver: order, evaluations for N steps, least budget, default grid and source."""
    if as_json:
        typer.echo(json.dumps({name: declaration(s) for name, s in SOLVERS.items()}, indent=2))
    else:
        console = Console()
        console.print(catalogue(SOLVERS, console.width))
