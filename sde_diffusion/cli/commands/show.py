"""`sdediff show`."""

from __future__ import annotations

from enum import Enum
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import DeviceOption, RunArgument, complete_solver, refuse

EXAMPLES = """
\b
Examples:
sdediff show schedule                        alpha^2, g^2, SNR of processes
sdediff show forward runs/digits-vp          data on its way to noise
sdediff show reverse runs/digits-vp          from noise to data
sdediff show film runs/digits-vp --nfe 40    the same as a film, GIF or WebP
sdediff show score runs/moons-vp             the score field in 2-D
sdediff show trajectories runs/moons-vp --nfe 40 --out paths.svg
"""


class Figure(str, Enum):
    """The figures that ``show`` draws."""

    schedule = "schedule"
    forward = "forward"
    reverse = "reverse"
    score = "score"
    trajectories = "trajectories"
    film = "film"


# The options that each figure takes, next to --out.
TAKES = {
    Figure.schedule: ("sde",),
    Figure.forward: ("n", "seed", "device"),
    Figure.score: ("device",),
    Figure.reverse: ("solver", "nfe", "n", "seed", "device"),
    Figure.trajectories: ("solver", "nfe", "n", "seed", "device"),
    Figure.film: ("solver", "nfe", "n", "seed", "device"),
}


def show(
    ctx: typer.Context,
    figure: Annotated[Figure, typer.Argument(help="Figure to draw.")],
    run: RunArgument = None,
    sde: Annotated[
        str,
        typer.Option(
            "--sde", help="Processes, separated by commas, for schedule: vp, cosine, subvp, ve, edm, flow, ddpm."
        ),
    ] = "vp,cosine,flow,edm",
    solver: Annotated[
        str, typer.Option("--solver", help="Solver, for reverse and trajectories.", autocompletion=complete_solver)
    ] = "pf-ode",
    nfe: Annotated[int, typer.Option("--nfe", help="Network evaluations, for reverse and trajectories.")] = 20,
    n: Annotated[int, typer.Option("--n", help="Number of points or paths.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Output file: .png, .svg or .pdf; .gif or .webp for a film.", show_default="FIGURE.png"
        ),
    ] = None,
) -> dict[str, Any]:
    """Plot a process or a model: schedules, intermediate samples, the score field, trajectories, a film."""
    from sde_diffusion.files.writing import temporary
    from sde_diffusion.report.film import check_film, save_film
    from sde_diffusion.report.process_figures import check_format, save_figure
    from sde_diffusion.sampling.devices import device_for
    from sde_diffusion.sampling.model_figures import drawn, film, schedule
    from sde_diffusion.sampling.sampler import MOST_SAMPLES
    from sde_diffusion.storage.locate import find_model
    from solvers.errors import ExistsError, InputError, require_whole

    others = [name for name in ("sde", "solver", "nfe", "n", "seed", "device") if name not in TAKES[figure]]
    refuse(ctx, others, f"the figure {figure.value} does not depend on it")
    if figure is Figure.schedule and run is not None:
        raise InputError(f"the figure schedule is of processes and takes no model; leave out {run}, see --sde")
    is_film = figure is Figure.film
    suffix = ".gif" if is_film else ".png"
    names = (Path(figure.value + end + suffix) for end in chain([""], (f"-{k}" for k in count(2))))
    path = out or next(name for name in names if not name.exists())
    (check_film if is_film else check_format)(path)
    if path.exists():
        raise ExistsError(f"{path} exists already; choose another file with --out")
    require_whole("--n", n, 1, MOST_SAMPLES)
    settings = (str(device_for(device or "auto")), solver, nfe, n, seed)
    partial = temporary(path).with_suffix(path.suffix)
    try:
        if figure is Figure.schedule:
            save_figure(schedule(sde), partial)
        elif is_film:
            save_film(film(find_model(run), *settings), partial)
        else:
            save_figure(drawn(figure.value, find_model(run), *settings), partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    echo(f"picture {path}")
    return {"written": [path], "figure": figure.value}
