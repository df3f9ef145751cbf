"""`sdediff tune`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import DeviceOption, ModelOption, RunArgument, model_at, whole_numbers
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.tuned_solver import Tuned, file_name, save_tuned, tuned_folder
from sde_diffusion.tuning.effort import bar
from sde_diffusion.tuning.tuner import DEFAULT_SOLVER, tuned_each

EXAMPLES = """
\b
Examples:
sdediff tune                               latest run, or bundled, at 8 NFE
sdediff tune runs/digits-vp --nfe 5,8,10
sdediff tune --minutes 1                   as good as it gets in a minute
sdediff sample --solver tuned --nfe 8      and use it
"""


def tune(
    run: RunArgument = None,
    given: ModelOption = None,
    nfe: Annotated[
        str, typer.Option("--nfe", help="Network evaluations of the tuned solver; several by commas.")
    ] = "8",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the initial noise.")] = 0,
    noises: Annotated[int, typer.Option("--noises", help="Initial noise samples that the solver is fitted on.")] = 128,
    held_out: Annotated[
        int, typer.Option("--held-out", help="Other noise samples, on which the candidates are compared.")
    ] = 128,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help="How long it may take, for all budgets together; the numbers of noise samples then follow from how "
            "fast the network is.",
            show_default="as long as --noises and --held-out take",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples in one call of the network.")] = 512,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for nfe-NFE.json, replaced if it exists.", show_default="RUN/tuned"),
    ] = None,
) -> None:
    """Fit a solver to one model and one number of evaluations.

    Times and weights are fitted to the endpoints of the model's reference solution. The candidate with the lowest error
    on held-out noise samples is kept, so it is never worse than the default on them; --solver tuned uses it.
    """
    start = time.perf_counter()
    stored = model_at(run, given)
    budgets = whole_numbers(nfe, "--nfe")
    tune_model(stored, budgets, minutes, device or "auto", seed, noises, held_out, batch_size, out)
    echo(f"{time.perf_counter() - start:.0f} s")
    if out is None:
        model = stored.argument if stored.given else name_of(stored)
        echo("use it:", f"sdediff sample {model} --nfe {budgets[0]}")
    else:
        echo(f"--solver tuned looks in {tuned_folder(stored)}; move the files there to use them")


def tune_model(
    stored: StoredModel,
    budgets: Sequence[int],
    minutes: float | None,
    device: str = "auto",
    seed: int = 0,
    noises: int = 128,
    held_out: int = 128,
    batch_size: int = 512,
    out: Path | None = None,
) -> None:
    """Tune, store each solver as soon as it is made, and say what it is worth."""
    model = load(stored, device=str(device_for(device)))
    folder = out or tuned_folder(stored)
    found: list[Tuned] = []
    with bar() as progress:
        for made in tuned_each(
            model,
            budgets,
            seed=seed,
            noises=noises,
            held_out=held_out,
            batch_size=batch_size,
            minutes=minutes,
            progress=progress or False,
            on_effort=lambda effort: echo(f"tuning takes {effort}", err=True),
        ):
            path = folder / file_name(made.nfe)
            save_tuned(path, made, stored, seed=seed, noises=made.noises, held_out=made.held_out)
            found.append(made)
    echo(f"model {stored.path}")
    for made in found:
        echo(
            f"{made.nfe} evaluations, error on the {made.held_out} noise samples that chose it: {DEFAULT_SOLVER} "
            f"{made.default_error:.4g}, tuned {made.error:.4g}, {made.gain:.2f} times that"
        )
        stages = ", ".join(f"{name} {error:.4g}" for name, error in made.stages.items())
        echo(f"  best of each stage: {stages}; reference solution known to {made.teacher_error:.1g}")
        echo(f"  solver {folder / file_name(made.nfe)}")
