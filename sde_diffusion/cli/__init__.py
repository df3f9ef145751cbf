"""The program `sdediff`: one file per command, listed here and imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sde_diffusion.cli.lazy import LazyGroup
from sde_diffusion.storage.provenance import versions

HELP = """Train score-based diffusion models, and sample them with a solver you can choose.

\b
sdediff train --sde vp                     train on the bundled digits
sdediff sample --solver pf-ode --nfe 20    sample the latest run, or bundled
sdediff evaluate                           quality of its samples, with errors
sdediff likelihood                         likelihood of held-out data
sdediff tune --nfe 8                       a solver for one model and NFE
sdediff distill                            a student of 1 to 4 evaluations
sdediff doctor --model mine.py:model       check a network of your own
sdediff solvers                            the table of solvers
sdediff verify                             test the declared properties

Set SDEDIFF_TRACEBACK=1 to show full tracebacks."""

# Repeats the first sentence of each command's docstring, so that the overview needs no import of the command.
SUMMARIES = {
    "train": "Train a score model by denoising score matching.",
    "config": "Print a TOML file of all training options, for train --config.",
    "sample": "Draw samples from a trained model.",
    "restore": "Restore images: fill in hidden parts, enlarge, deblur or colour them.",
    "edit": "Edit images: variations, interpolation between two, or transport from one class to another.",
    "show": "Plot a process or a model: schedules, samples, the score field, trajectories, solvers, a film.",
    "app": "Sample a model live in a browser: choose solver, NFE and grid, compare two, watch the path.",
    "evaluate": "Measure sample quality, with standard errors.",
    "inspect": "Describe a run or checkpoint (process, network, data, training), or a data set.",
    "likelihood": "Measure the log-likelihood of data under a trained model.",
    "prepare": "Decode and resize a data set once, into one array that training maps from disk.",
    "compare": "Compare solvers on a trained model: same initial noise, paired error, distance to the data, time.",
    "distill": "Distill a trained model into a student that needs one to four evaluations.",
    "tune": "Fit a solver to one model and one number of evaluations.",
    "doctor": "Check a model for common mistakes: parametrization, time, schedule, data range, mode, dtype.",
    "solvers": "List every solver: order, evaluations for N steps, minimum NFE, default grid and source.",
    "verify": "Measure order, evaluations, batch independence and more on exact targets.",
}


class Program(LazyGroup):
    """`sdediff`."""

    modules = {  # noqa: RUF012
        name: ("sde_diffusion.cli.app_command" if name == "app" else f"sde_diffusion.cli.commands.{name}", text)
        for name, text in SUMMARIES.items()
    }


app = typer.Typer(
    name="sdediff",
    help=HELP,
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # SDEDIFF_TRACEBACK=1 prints the standard traceback of Python
)


def print_versions(wanted: bool) -> None:
    """Print the versions and leave."""
    if wanted:
        typer.echo(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print versions.", callback=print_versions, is_eager=True),
    ] = False,
) -> None:
    """Define the options common to all commands; typer takes the help text from the app."""
