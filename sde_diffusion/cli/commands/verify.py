"""``sdediff verify``: tests of the properties that solvers declare."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sde_diffusion.report import terminal
from sde_diffusion.verify import verify_all
from sde_diffusion.verify.report import as_dict, details, failures, overview


def verify(
    solvers: Annotated[
        list[str] | None,
        typer.Argument(help="Solvers: names, or your own as path/to/file.py:Name; all by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all measurements as JSON.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Number of processes; one per core by default.")] = None,
) -> None:
    """Measure order, evaluations, batch independence and more on exact targets."""
    console = terminal.stdout()
    with terminal.stderr().status("measuring") as status:
        reports = verify_all(
            solvers or None,
            jobs=jobs,
            on_report=lambda report: status.update(f"{report.solver} done"),
        )
    failed = [report for report in reports if not report.passed]
    if as_json:
        typer.echo(json.dumps([as_dict(report) for report in reports], indent=2))
    else:
        console.print(details(reports[0]) if len(reports) == 1 else overview(reports))
        if len(reports) > 1 and failed:
            console.print(failures(reports))
    if failed:
        raise typer.Exit(1)
