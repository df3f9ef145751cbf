"""The tables of ``pf-ode``: times, weights and gates fitted to a training set of models at once.

    python -m benchmarks.design --check
    python -m benchmarks.design --plain --run DIGITS --out benchmarks/design/start.json --nfe 3 4 5 ...
    python -m benchmarks.design --run DIGITS STROKES GREY [--nfe 8 5 10 ...] [--out solvers/fitted/pf_ode.json]
    python -m benchmarks.design --settings 16 20 30 50 --run DIGITS STROKES GREY
    python -m benchmarks.design --large --run STROKES-28 LETTERS-28 GREY-28 [--nfe 8 5 10 ...]
    python -m benchmarks.design --large --exact --run STROKES-28 LETTERS-28 GREY-28 [--nfe 8 5 10 ...]
    python -m benchmarks.design --larger 1 1.25 1.5 1.75 2 2.5 --run STROKES-28 LETTERS-28 GREY-28 [--nfe 5 8 10 ...]

The training set has models of the kinds that ``benchmarks.solvers`` reports on, but of other data: two mixtures of
Gaussians on handwritten digits (other images and widths), 24 Gaussians at random places and 40 on two rings in 2-D,
clouds of Gaussians in 3, 8 and 24 dimensions, Gaussians with three spectra, and the networks of ``--run``
(``benchmarks.design.images`` makes the images of the last two):

    sdediff train --sde vp --steps 6000 --out runs/digits-6000
    sdediff train --data strokes.npz --channels 16 --batch-size 64 --steps 4000 --ema 0.998 --out runs/strokes
    sdediff train --data grey.npz --channels 16 --batch-size 64 --steps 4000 --ema 0.998 --out runs/grey

The objective is the root mean square over the models of error / base, where the base of a model is the error of the
best pair of solver and grid for it alone (``sde_diffusion.tuning.grid_search``): no model may be sacrificed for
another. Networks are what people sample, so each counts three times (five with six steps or fewer); initial noise
that even a good solver takes to another mode is left out there. Held-out noise samples decide.

``--plain`` makes one table for all, with one network that counts five times (twelve times with five steps or fewer):
the best pairs for all start, then their times are fitted, with the weights that belong to them, then all
coefficients. ``start.json`` was made before the clouds joined the training set. From there (or, where that file has no
table, from the engine), or from the existing mixture of tables, if that is better, every expert gets coefficients of
its own, and gates that recognise it (``kinds``). Tables for other numbers of steps in the file are kept; those for 3
and 4 are plain.

For many steps there is a member of the exponential engine instead: ``--settings 16 20 30 50`` ranks settings for it by
the same measure, each in units of the best setting for a model; with ``--large`` for the second training set.

That is of models with 500 to 3,072 dimensions, with three networks of 28 x 28 pixels (the same line for each):

    sdediff train --data strokes-28.npz --channels 16 --batch-size 32 --steps 4000 --ema 0.998 --out runs/strokes-28

``--large`` makes the tables for samples of many dimensions, as above with experts of its own: from the small table with
all rho times the best of four factors or the large one there is, every expert starting with the mean of its models'
rows; at the end the rows of experts without a network are fitted alone. ``--exact`` makes gates and these rows anew for
existing tables, when the training set has grown, and leaves times and the rows of networks. ``--larger`` measures
that set with the small tables and all rho times a factor, and where there is no table with the grid of the engine
shifted by it; networks count as much as the other models together.

Each file has the origin of its tables: command, commit, training set with hashes, held-out errors (``origin``).
``--check`` repeats what the repository allows (``check``).
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.design import check, origin
from benchmarks.design.engine_settings import larger, settings
from benchmarks.design.gated_design import EXPERTS, LARGE_EXPERTS, GatedDesign
from benchmarks.design.plain_design import Design
from benchmarks.design.training_problems import TrainingProblem, training_set
from sde_diffusion import VPSDE
from solvers.fitted.compile import compile_table
from solvers.fitted.engine import engine_grid, fixed_order_engine
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import scale_noise_levels, table_entry

NETWORKS = {"digits-6000", "strokes", "grey"}
LARGE_NETWORKS = {"strokes-28", "letters-28", "grey-28"}
_FACTORS = (1.0, 1.5, 2.0, 2.5)  # of the noise levels of a table that the large ones start from
_MOST = 2.0  # see GatedDesign


def engine(steps: int) -> dict[str, Any]:
    """The solver of ``pf-ode`` without a table, with the same coefficients for every sample."""
    sde = VPSDE()
    plain = compile_table(fixed_order_engine(steps), sde, steps, engine_grid(sde, steps))
    return table_entry(sde, MixtureOfTables((plain,), (None,) * steps))


def arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(prog="benchmarks.design", description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", help="the networks of the training set")
    parser.add_argument("--nfe", nargs="+", type=int, default=list(range(5, 16)))
    parser.add_argument("--check", action="store_true", help="compare the stored tables with what can be made again")
    parser.add_argument("--write", action="store_true", help="with --check: store what was made again")
    parser.add_argument("--plain", action="store_true", help="one table for all, without gates")
    parser.add_argument("--settings", nargs="+", type=int, help="numbers of steps; no tables are made")
    parser.add_argument("--larger", nargs="+", type=float, help="factors of rho for models of many dimensions")
    parser.add_argument("--large", action="store_true", help="for models of many dimensions")
    parser.add_argument("--exact", action="store_true", help="from the tables in the file, the last stage alone")
    parser.add_argument("--start", type=Path, default=origin.START, help="plain tables to start from")
    parser.add_argument("--out", type=Path, help=f"{origin.TABLES}, with --large {origin.LARGE_TABLES}")
    args = parser.parse_args()
    if args.check:
        return args
    if args.write:
        parser.error("--write belongs to --check; fitted tables are always written")
    if not args.run:
        parser.error("--run is required: the folders of the networks of the training set")
    args.out = args.out or (origin.LARGE_TABLES if args.large else origin.TABLES)
    if args.large and args.plain:
        parser.error("--plain makes the tables that those with gates start from, and --large starts from these")
    if args.larger and min(args.larger) <= 0:
        parser.error(f"--larger takes factors of rho, above 0; got {min(args.larger):g}")
    missing = sorted(set(args.nfe) - set(origin.stored(args.out))) if args.exact else []
    if missing:
        parser.error(f"--exact needs existing tables; {args.out} has none for {missing} steps: make them first")
    if args.exact and (args.plain or args.settings or args.larger):
        parser.error("--exact fits gates and rows of mixtures of tables; leave --plain, --settings and --larger away")
    needed = LARGE_NETWORKS if args.large else NETWORKS
    if not (args.plain or args.settings or args.larger) and {Path(run).name for run in args.run} != needed:
        parser.error(f"gates need the runs of {', '.join(sorted(needed))}, in folders of these names; got {args.run}")
    return args


@torch.no_grad()
def main() -> None:
    """Make the tables that are asked for."""
    args = arguments()
    torch.set_num_threads(1)
    console = Console(width=160)
    if args.check:
        raise SystemExit(check.main(console, args.write))
    problems = training_set(args.run, large=bool(args.large or args.larger))
    console.print("training set:", ", ".join(one.name for one in problems))
    if args.settings:
        for steps in args.settings:
            settings(problems, steps, console)
    elif args.larger:
        small = origin.stored(origin.TABLES)
        for steps in args.nfe:
            larger(problems, steps, small.get(steps), args.larger, console)
    else:
        experts = {"all": ()} if args.plain else LARGE_EXPERTS if args.large else EXPERTS
        for steps in args.nfe:
            made = table_for(args, problems, steps, console)
            command = shlex.join(["python", "-m", "benchmarks.design", *sys.argv[1:]])
            origin.add(args.out, made, problems, experts, args.run, command)


def table_for(
    args: argparse.Namespace, problems: Sequence[TrainingProblem], steps: int, console: Console
) -> dict[str, Any]:
    """The fitted entry for a number of steps."""
    if args.plain:
        plain = Design(problems, steps, console).make()
        return table_entry(problems[0].fit.sde, MixtureOfTables((plain,), (None,) * steps))
    there = origin.stored(args.out)
    most = _MOST if args.large else math.inf
    experts = LARGE_EXPERTS if args.large else EXPERTS
    if args.exact:
        design = GatedDesign(problems, experts, [there[steps]], console, most, search=False)
        design.offer_gates("gates", design.starts)
        return design.exact()
    first = origin.stored(origin.TABLES if args.large else args.start).get(steps) or engine(steps)
    starts = [scale_noise_levels(first, factor) for factor in _FACTORS] if args.large else [first]
    starts += [there[steps]] if steps in there else []
    return GatedDesign(problems, experts, starts, console, most).make()


if __name__ == "__main__":
    main()
