"""`sdediff tune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sde_diffusion.card import device_for
from sde_diffusion.checkpoint import load
from sde_diffusion.cli.options import DeviceOption, RunArgument
from sde_diffusion.places import find_model
from sde_diffusion.tuning import DEFAULT, Report, Tuned, tuned
from sde_diffusion.tuning.files import save_tuned, tuned_file

EXAMPLES = """
\b
Examples:
sdediff tune                               the latest run, or bundled, at 8 NFE
sdediff tune runs/digits-vp --nfe 5
sdediff sample --solver tuned --nfe 8      and use it
"""


def tune(
    run: RunArgument = None,
    nfe: Annotated[int, typer.Option("--nfe", help="Network evaluations of the solver that is made.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of the noises.")] = 0,
    noises: Annotated[int, typer.Option("--noises", help="Noises that the solver is fitted on.")] = 128,
    held_out: Annotated[int, typer.Option("--held-out", help="Others, which decide what is kept.")] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples in one call of the network.")] = 512,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write; replaced if it exists.", show_default="RUN/tuned/nfe-NFE.json"),
    ] = None,
) -> None:
    """Make a solver for one model and one number of evaluations.

    Times and weights are fitted so that samples end where the model's own converged flow ends; noises that took no part
    decide. The result is used by --solver tuned and is never worse than the default on them.
    """
    start = time.perf_counter()
    stored = find_model(run)
    model = load(stored, device=str(device_for(device or "auto")))

    def work(report: Report | None) -> Tuned:
        return tuned(model, nfe, seed=seed, noises=noises, held_out=held_out, batch_size=batch_size, report=report)

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("tuning", total=1.0)
            found = work(lambda share, text: progress.update(task, completed=share, description=text))
    else:
        found = work(None)
    path = out or tuned_file(stored, nfe)
    save_tuned(path, found, stored, seed=seed, noises=noises, held_out=held_out)
    typer.echo(f"model {stored.path}")
    typer.echo(
        f"error on {held_out} held-out noises: {DEFAULT} {found.default_error:.4g}, tuned {found.error:.4g} "
        f"({found.error / found.default_error:.2f} times); the converged samples are known to "
        f"{found.teacher_error:.1g}"
    )
    typer.echo("best of each stage: " + ", ".join(f"{name} {error:.4g}" for name, error in found.stages.items()))
    typer.echo(f"{found.table.source}, in {time.perf_counter() - start:.0f} s")
    typer.echo(f"solver {path}")
    typer.echo(f"use it: sdediff sample --solver tuned --nfe {nfe}")
