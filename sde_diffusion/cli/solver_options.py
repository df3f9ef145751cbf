"""Options of the solver, its time grid and its noise, which several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from sde_diffusion.cli.options import option
from solvers import GRIDS
from solvers.errors import InputError

StepsOption = Annotated[int | None, option("--steps", "Number of steps of the time grid, instead of --nfe.")]
GridOption = Annotated[
    str | None,
    option(
        "--grid",
        f"Time grid of the solver: {', '.join(GRIDS)}; or the times, such as 1,0.6,0.2,0.",
        "the solver's own",
        values=GRIDS,
    ),
]
EtaOption = Annotated[
    float | None,
    option(
        "--eta",
        "Noise level of the reverse process: 0 is the probability-flow ODE, 1 the reverse-time SDE.",
        "1 for stochastic solvers, else 0",
    ),
]


def times_of(grid: str | None) -> str | list[float] | None:
    """A grid's name, or its times.

    >>> times_of("karras"), times_of("1,0.5,0")
    ('karras', [1.0, 0.5, 0.0])
    """
    if grid is None or "," not in grid:
        return grid
    try:
        return [float(t) for t in grid.split(",")]
    except ValueError:
        raise InputError(
            f"--grid takes a name or times separated by commas, such as 1,0.6,0.2,0; got '{grid}'"
        ) from None


def listed(names: Iterable[str]) -> str:
    """Options by name.

    >>> listed(["nfe", "batch_size"])
    '--nfe, --batch-size'
    """
    return ", ".join("--cfg++" if name == "plus_plus" else f"--{name.replace('_', '-')}" for name in names)
