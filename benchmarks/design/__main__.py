"""The tables of ``pf-ode``: times, weights and gates fitted to a family of models at once.

    python -m benchmarks.design --plain --run DIGITS --out benchmarks/design/start.json --nfe 3 4 5 ...
    python -m benchmarks.design --run DIGITS STROKES GREY [--nfe 8 5 10 ...] [--out solvers/fitted/pf_ode.json]
    python -m benchmarks.design --settings 16 20 30 50 --run DIGITS STROKES GREY
    python -m benchmarks.design --large --run STROKES-28 LETTERS-28 GREY-28 [--nfe 8 5 10 ...]
    python -m benchmarks.design --large --exact --run STROKES-28 LETTERS-28 GREY-28 [--nfe 8 5 10 ...]
    python -m benchmarks.design --larger 1 1.25 1.5 1.75 2 2.5 --run STROKES-28 LETTERS-28 GREY-28 [--nfe 5 8 10 ...]

The family is of the kinds that ``benchmarks.solvers`` reports on, but of other data: two mixtures of Gaussians on
handwritten digits (other images and widths), 24 Gaussians at random places and 40 on two rings in the plane, clouds of
Gaussians in 3, 8 and 24 dimensions, Gaussians with three spectra, and the networks of ``--run``
(``benchmarks.design.images`` makes the images of the last two):

    sdediff train --sde vp --steps 6000 --out runs/digits-6000
    sdediff train --data strokes.npz --channels 16 --batch-size 64 --steps 4000 --ema 0.998 --out runs/strokes
    sdediff train --data grey.npz --channels 16 --batch-size 64 --steps 4000 --ema 0.998 --out runs/grey

What is minimised is the root mean square over the family of error / base, where the base of a model is the error of
the best pair of solver and grid for it alone (``sde_diffusion.tuning.grid_search``): no model may be sacrificed for
another. Networks are what people sample, so each counts three times (five with six steps or fewer); initial noise
that even a good solver takes to another mode is left out there. Held-out noise samples decide.

``--plain`` makes one table of numbers for all, with one network that counts five times (twelve times with five steps or
fewer): the best pairs for all start, then their times are fitted, with the weights that belong to them, then all
numbers. The file in use was made before the clouds joined the family. From there (or, where that file has no table,
from the engine), or from the existing mixture of tables, if that is better, every expert gets coefficients of its
own, and gates that recognise it (``kinds``). Tables for other numbers of steps in the file are kept; those for 3
and 4 are plain.

For many steps there is a member of the exponential engine instead: ``--settings 16 20 30 50`` ranks settings for it by
the same measure, each in units of the best setting for a model; with ``--large`` for the second family.

That is of models with 500 to 3,072 dimensions, with three networks of 28 x 28 pixels (the same line for each):

    sdediff train --data strokes-28.npz --channels 16 --batch-size 32 --steps 4000 --ema 0.998 --out runs/strokes-28

``--large`` makes the tables for samples of many dimensions, as above with kinds of its own: from the small table with
all rho times the best of four factors or the large one there is, every kind starting with the mean of its members'
rows; at the end the rows of kinds without a network are fitted alone. ``--exact`` makes gates and these rows anew for
tables that are there, when the family has grown, and leaves times and the rows of networks. ``--larger`` measures
that family with the small tables and all rho times a factor, and where there is no table with the grid of the engine
shifted by it; networks count as much as the other models together.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.design.gated_design import KINDS, LARGE_KINDS, GatedDesign
from benchmarks.design.training_set import Member, base, error, family, judged
from sde_diffusion import VPSDE
from sde_diffusion.tuning.fit import (
    Derivatives,
    TableFit,
    TableParameters,
    descend,
    differences,
    moved_times,
    run,
    sensitivities,
)
from sde_diffusion.tuning.grid_families import spaced
from sde_diffusion.tuning.grid_search import Start, search
from solvers import Solver
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import (
    ProbabilityFlow,
    engine_grid,
    fixed_order_engine,
    scale_noise_levels,
    shift_noise_levels,
    table_entry,
    table_of,
)
from solvers.fitted.table import Table

_NETWORK_WEIGHT = 5
_NETWORK_WEIGHT_FEW = 12  # with five steps or fewer
_SIZE = 0.5  # RMS of the data, for the scale of the weights
NETWORKS = {"digits-6000", "strokes", "grey"}
LARGE_NETWORKS = {"strokes-28", "letters-28", "grey-28"}
START = Path(__file__).with_name("start.json")
TABLES, LARGE_TABLES = Path("solvers/fitted/pf_ode.json"), Path("solvers/fitted/pf_ode_large.json")
_FACTORS = (1.0, 1.5, 2.0, 2.5)  # of the noise levels of a table that the large ones start from
_MOST = 2.0  # see GatedDesign


def weights_of(members: Sequence[Member], steps: int) -> list[float]:
    """Weight of each model."""
    networks = sum(one.network for one in members)
    weight = _NETWORK_WEIGHT if steps > 5 else _NETWORK_WEIGHT_FEW
    return [weight / networks if one.network else 1.0 for one in members]


class Design:
    """The table for one number of steps."""

    def __init__(self, members: Sequence[Member], steps: int, console: Console) -> None:
        self.members, self.steps, self.console = members, steps, console
        self.fits = [one.fit for one in members]
        self.bases = [base(one, steps) for one in members]
        # A base that is smaller by sqrt(w) counts w times in a sum of squares.
        weights = weights_of(members, steps)
        self.units = [b / math.sqrt(w) for b, w in zip(self.bases, weights, strict=True)]
        self.best = math.inf
        self.table: Table

    def offer(self, stage: str, table: Table) -> bool:
        """Compare on the held-out noise samples."""
        ends = [run(table, one.held) for one in self.members]
        found = judged(f"{self.steps} {stage}", self.members, ends, self.bases, self.units, self.console)
        if found < self.best:
            self.best, self.table = found, table
        return True

    def starts(self) -> list[Start]:
        """The best pairs for all."""

        def joint(which: Sequence[tuple[TableFit, float]]) -> Callable[[Solver, Tensor], float]:
            return lambda solver, times: math.sqrt(
                sum((error(fit, solver, times) / b) ** 2 for fit, b in which) / len(which)
            )

        fits = ([one.few for one in self.members], self.fits)
        few, all_ = (list(zip(which, self.units, strict=True)) for which in fits)
        return search(self.fits[0].sde, self.steps, joint(few), joint(all_), 3)

    def descend(
        self, stage: str, q: Tensor, table: Callable[[Tensor], Table | None], by_rows: Derivatives | None, n: int
    ) -> None:
        """Fit numbers."""

        def endpoints(q: Tensor) -> list[Tensor] | None:
            made = table(q)
            return None if made is None else [run(made, fit) for fit in self.fits]

        def accepted(q: Tensor) -> bool:
            made = table(q)
            return made is not None and self.offer(stage, made)

        descend(q, endpoints, by_rows or differences(endpoints), self.fits, self.units, n, accepted)

    def make(self) -> Table:
        """Search, times, weights."""
        sde = self.fits[0].sde
        for start in self.starts():
            self.offer("search", compile_table(start.solver, sde, self.steps, start.times))

            def moved(q: Tensor, start: Start = start) -> Table | None:
                times = moved_times(self.fits[0], start.times, q)
                return None if times is None else compile_table(start.solver, sde, self.steps, times)

            if self.steps > 2:
                self.descend("times", torch.zeros(self.steps - 1, dtype=torch.float64), moved, None, 5)
        numbers = TableParameters.around(self.table, self.fits[0], _SIZE)
        self.descend(
            "weights",
            torch.zeros(numbers.total, dtype=torch.float64),
            partial(numbers.table, fit=self.fits[0]),
            lambda q: [sensitivities(numbers, q, fit) for fit in self.fits],
            12,
        )
        return self.table


def settings(members: Sequence[Member], steps: int, console: Console, shown: int = 12) -> None:
    """The best settings of the engine for many steps, over all and for each model."""
    engine = partial(ExponentialAdams, variable="time", corrector=True)
    forms: dict[str, Solver] = {f"data {p}": engine(p) for p in (2, 3, 4, 5)}
    forms |= {"data 4 to 5": VariableOrder(engine(5)), "velocity 3": engine(3, "velocity")}
    found = {}
    for (form, solver), power, factor in product(forms.items(), (1.5, 1.75, 2, 2.25, 2.5, 3), (1, 3, 8, 20, 50)):
        low = factor / steps**2
        if not 5e-4 <= low <= 0.2:
            continue
        errors = [error(one.few, solver, spaced(one.fit.sde, f"power-{power:g}", steps, low)) for one in members]
        found[f"{form} t^{power:g} {factor:g}/n^2"] = errors
    best = [min(column) for column in zip(*found.values(), strict=True)]
    weights = weights_of(members, steps)

    def score(errors: Sequence[float]) -> float:
        squares = [w * (e / b) ** 2 for w, e, b in zip(weights, errors, best, strict=True)]
        return math.sqrt(sum(squares) / sum(weights))

    for name in sorted(found, key=lambda name: score(found[name]))[:shown]:
        each = " ".join(f"{e / b:.2f}" for e, b in zip(found[name], best, strict=True))
        console.print(f"{steps} {name}: {score(found[name]):.2f} from {each}")
    for one, b, errors in zip(members, best, zip(*found.values(), strict=True), strict=True):
        console.print(f"{steps} {one.name}: {b:.3g} by {list(found)[errors.index(b)]}")


def larger(
    members: Sequence[Member], steps: int, entry: dict[str, Any] | None, factors: Sequence[float], console: Console
) -> None:
    """Errors of a table, or of the engine, at raised noise levels, over those of the best pair for each model."""
    sde, plain = members[0].fit.sde, ProbabilityFlow(large=False)
    bases = [base(one, steps) for one in members]
    networks = sum(one.network for one in members)
    weights = [(len(members) - networks) / networks if one.network else 1.0 for one in members]
    for factor in factors:
        solver = table_of(sde, scale_noise_levels(entry, factor)) if entry else plain
        times = None if entry else shift_noise_levels(sde, engine_grid(sde, steps), factor)
        ends = [run(solver, one.held, times) for one in members]
        each = [float(one.held.errors(x).mean()) / b for one, x, b in zip(members, ends, bases, strict=True)]
        rms = math.sqrt(sum(w * e**2 for w, e in zip(weights, each, strict=True)) / sum(weights))
        mean = math.exp(sum(w * math.log(e) for w, e in zip(weights, each, strict=True)) / sum(weights))
        shown = " ".join(f"{e:.2f}" for e in each)
        console.print(f"{steps} x {factor:g}: {rms:.2f} (geometric {mean:.2f}) from {shown}")


def save(path: Path, tables: dict[int, dict[str, Any]]) -> None:
    """One line for each table."""
    lines = ",\n".join(json.dumps(tables[steps], separators=(",", ":")) for steps in sorted(tables))
    path.write_text(f'{{"tables": [\n{lines}\n]}}\n')


def engine(steps: int) -> dict[str, Any]:
    """The solver of ``pf-ode`` without a table, with the same coefficients for every sample."""
    sde = VPSDE()
    plain = compile_table(fixed_order_engine(steps), sde, steps, engine_grid(sde, steps))
    return table_entry(sde, MixtureOfTables((plain,), (None,) * steps))


def stored(path: Path) -> dict[int, dict[str, Any]]:
    """The entries of a file by number of steps; none where there is no file."""
    tables = json.loads(path.read_text())["tables"] if path.exists() else []
    return {len(entry["rows"]): entry for entry in tables}


def rounded(entry: Any) -> Any:
    """With numbers of eight digits."""
    if isinstance(entry, dict):
        return {key: rounded(value) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [rounded(value) for value in entry]
    return float(f"{entry:.8g}") if isinstance(entry, float) else entry


@torch.no_grad()
def main() -> None:
    """Make the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.design", description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", required=True, help="the networks of the family")
    parser.add_argument("--nfe", nargs="+", type=int, default=list(range(5, 16)))
    parser.add_argument("--plain", action="store_true", help="one table for all, without gates")
    parser.add_argument("--settings", nargs="+", type=int, help="numbers of steps; no tables are made")
    parser.add_argument("--larger", nargs="+", type=float, help="factors of rho for models of many dimensions")
    parser.add_argument("--large", action="store_true", help="for models of many dimensions")
    parser.add_argument("--exact", action="store_true", help="from the tables in the file, the last stage alone")
    parser.add_argument("--start", type=Path, default=START, help="plain tables to start from")
    parser.add_argument("--out", type=Path, help=f"{TABLES}, with --large {LARGE_TABLES}")
    args = parser.parse_args()
    out = args.out or (LARGE_TABLES if args.large else TABLES)
    torch.set_num_threads(1)
    console = Console(width=160)
    starts = stored(args.start)
    if args.large and args.plain:
        parser.error("--plain makes the tables that those with gates start from, and --large starts from these")
    if args.larger and min(args.larger) <= 0:
        parser.error(f"--larger takes factors of rho, above 0; got {min(args.larger):g}")
    missing = sorted(set(args.nfe) - set(stored(out))) if args.exact else []
    if missing:
        parser.error(f"--exact goes on from tables that are there; {out} has none for {missing} steps: make them first")
    if args.exact and (args.plain or args.settings or args.larger):
        parser.error("--exact fits gates and rows of mixtures of tables; leave --plain, --settings and --larger away")
    needed, kinds = (LARGE_NETWORKS, LARGE_KINDS) if args.large else (NETWORKS, KINDS)
    if not (args.plain or args.settings or args.larger) and {Path(run).name for run in args.run} != needed:
        parser.error(f"gates need the runs of {', '.join(sorted(needed))}, in folders of these names; got {args.run}")
    members = family(args.run, large=bool(args.large or args.larger))
    console.print("family:", ", ".join(one.name for one in members))
    if args.settings:
        for steps in args.settings:
            settings(members, steps, console)
        return
    small = stored(TABLES)
    if args.larger:
        for steps in args.nfe:
            larger(members, steps, small.get(steps), args.larger, console)
        return
    for steps in args.nfe:
        if args.plain:
            plain = Design(members, steps, console).make()
            made = table_entry(members[0].fit.sde, MixtureOfTables((plain,), (None,) * steps))
        else:
            first = (small if args.large else starts).get(steps) or engine(steps)
            which = [scale_noise_levels(first, factor) for factor in _FACTORS] if args.large else [first]
            which += [entry for n, entry in stored(out).items() if n == steps]
            most = _MOST if args.large else math.inf
            if args.exact:
                design = GatedDesign(members, kinds, [stored(out)[steps]], console, most, search=False)
                design.offer_gates("gates", design.starts)
                made = design.exact()
            else:
                made = GatedDesign(members, kinds, which, console, most).make()
        save(out, {**stored(out), steps: rounded(made)})


if __name__ == "__main__":
    main()
