"""The program `sdediff`: one file per command, mounted here."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getdoc
from typing import Annotated

import typer

from sde_diffusion.cli import compare, evaluate, inspect, likelihood, prepare, sample, solvers, train, tune, verify
from sde_diffusion.cli.errors import Guarded
from sde_diffusion.storage.provenance import versions

HELP = """Train score-based diffusion models, and sample them with a solver you can choose.

\b
sdediff train --sde vp                     train on the bundled digits
sdediff sample --solver pf-ode --nfe 20    sample the latest run, or bundled
sdediff evaluate                           how good its samples are, with standard errors
sdediff likelihood                         how likely it finds held-out data, in nats and bits
sdediff tune --nfe 8                       fit a solver to one model at 8 evaluations
sdediff solvers                            the table of solvers
sdediff verify                             measure every solver against what it declares

Set SDEDIFF_TRACEBACK=1 to show full tracebacks."""

app = typer.Typer(
    name="sdediff",
    help=HELP,
    cls=Guarded,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a traceback, when asked for, is Python's own
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
    """What holds for all commands; its help is that of the app."""


def mount(command: Callable[..., None], examples: str | None = None) -> None:
    """Make a function a command; its docstring is the help, its examples end it."""
    paragraphs = (getdoc(command) or "").split("\n\n")
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(help=unwrapped, epilog=examples)(command)


mount(train.train, train.EXAMPLES)
mount(sample.sample, sample.EXAMPLES)
mount(evaluate.evaluate, evaluate.EXAMPLES)
mount(inspect.inspect, inspect.EXAMPLES)
mount(likelihood.likelihood, likelihood.EXAMPLES)
mount(prepare.prepare, prepare.EXAMPLES)
mount(compare.compare, compare.EXAMPLES)
mount(tune.tune, tune.EXAMPLES)
mount(solvers.solvers)
mount(verify.verify)
