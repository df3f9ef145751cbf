"""`sdediff show`."""

from __future__ import annotations

from enum import Enum
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import DeviceOption, RunArgument, complete_solver, refuse, whole_numbers

EXAMPLES = """
\b
Examples:
sdediff show schedule                        alpha^2, g^2, SNR of processes
sdediff show forward runs/digits-vp          data on its way to noise
sdediff show reverse runs/digits-vp          from noise to data
sdediff show film runs/digits-vp --nfe 40    the same as a film, GIF or WebP
sdediff show solvers runs/digits-vp          solvers side by side, with errors
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
    solvers = "solvers"


# The options that each figure takes, next to --out.
TAKES = {
    Figure.schedule: ("sde",),
    Figure.forward: ("n", "seed", "device"),
    Figure.score: ("device",),
    Figure.reverse: ("solver", "nfe", "n", "seed", "device"),
    Figure.trajectories: ("solver", "nfe", "n", "seed", "device"),
    Figure.film: ("solver", "nfe", "n", "seed", "device"),
    Figure.solvers: ("solver", "nfe", "n", "seed", "device"),
}


def show(
    ctx: typer.Context,
    figure: Annotated[Figure, typer.Argument(help=f"Figure to draw: {', '.join(f.value for f in Figure)}.")],
    run: RunArgument = None,
    sde: Annotated[
        str,
        typer.Option(
            "--sde", help="Processes, separated by commas, for schedule: vp, cosine, subvp, ve, edm, flow, ddpm."
        ),
    ] = "vp,cosine,flow,edm",
    solver: Annotated[
        str,
        typer.Option(
            "--solver",
            help="Solver, for reverse, trajectories and film; several, separated by commas, for solvers.",
            show_default="of a distilled model its own, else pf-ode; ddim,unipc,pf-ode",
            autocompletion=complete_solver,
        ),
    ] = "",
    nfe: Annotated[
        str,
        typer.Option(
            "--nfe",
            help="Network evaluations; several, separated by commas, for solvers.",
            show_default="20, or its own of a distilled model; 5,10,20",
        ),
    ] = "",
    n: Annotated[
        int | None,
        typer.Option("--n", help="Number of samples, points or paths.", show_default="64; 16 images for solvers"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples.")] = 0,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Output file: .png, .svg or .pdf; a film is .gif, .webp or .mp4.", show_default="FIGURE.png"
        ),
    ] = None,
) -> dict[str, Any]:
    """Plot a process or a model: schedules, samples, the score field, trajectories, solvers, a film."""
    from sde_diffusion.files.writing import temporary
    from sde_diffusion.report.film import check_film, write_reverse
    from sde_diffusion.sampling.devices import device_for
    from sde_diffusion.sampling.sampler import MOST_SAMPLES
    from sde_diffusion.sampling.shown.model_figures import drawn, film, schedule, side_by_side
    from sde_diffusion.storage.locate import find_model
    from solvers.display.figures import check_format, save_figure
    from solvers.errors import ExistsError, InputError, require_whole

    others = [name for name in ("sde", "solver", "nfe", "n", "seed", "device") if name not in TAKES[figure]]
    refuse(ctx, others, f"the figure {figure.value} does not depend on it")
    if figure is Figure.schedule and run is not None:
        raise InputError(f"the figure schedule shows processes and takes no model; leave out {run}, see --sde")
    is_film = figure is Figure.film
    suffix = ".gif" if is_film else ".png"
    free = (Path(figure.value + end + suffix) for end in chain([""], (f"-{k}" for k in count(2))))
    path = out or next(name for name in free if not name.exists())
    if is_film:
        check_film(path, strips=False)
    else:
        check_format(path)
    if path.exists():
        raise ExistsError(f"{path} exists already; choose another file with --out")
    several = figure is Figure.solvers
    budgets = whole_numbers(nfe or "5,10,20", "--nfe")
    names = (solver or "ddim,unipc,pf-ode").split(",")
    if not several and ((nfe and len(budgets) > 1) or (solver and len(names) > 1)):
        raise InputError(f"the figure {figure.value} takes one solver and one NFE; sdediff show solvers takes several")
    place = str(device_for(device or "auto"))
    if n is None:
        n = 64 if not several else 16 if len(find_model(run).model["shape"] or ()) == 3 else 400
    require_whole("--n", n, 1, MOST_SAMPLES)
    settings = (place, names[0] if solver else None, budgets[0] if nfe else None, n, seed)
    partial = temporary(path).with_suffix(path.suffix)
    try:
        if figure is Figure.schedule:
            save_figure(partial, schedule(sde))
        elif several:
            save_figure(partial, side_by_side(find_model(run), place, names, budgets, n, seed))
        elif is_film:
            write_reverse(partial, film(find_model(run), *settings))
        else:
            save_figure(partial, drawn(figure.value, find_model(run), *settings))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    echo(f"picture {path}")
    return {"written": [path], "figure": figure.value}
