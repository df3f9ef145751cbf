"""The tables of ``pf-ode``: times and weights fitted to a family of models at once.

    python -m benchmarks.design --run RUN [RUN ...] [--nfe 8 5 10 ...] [--out solvers/pf_ode.json]
    python -m benchmarks.design --run RUN [RUN ...] --settings 16 20 30 50

The family is of the kinds that ``benchmarks.solvers`` reports on, but of other data: two mixtures of Gaussians on
handwritten digits (other images and widths), 24 Gaussians at random places and 40 on two rings in the plane, Gaussians
with three spectra, and the networks of ``--run``. The tables in use were made with the first of these three alone, and
the setting for many steps with all of them (``benchmarks.design_data`` makes the images of the other two):

    sdediff train --sde vp --steps 6000 --out runs/digits-6000
    sdediff train --data strokes.npz --channels 16 --batch-size 64 --steps 4000 --ema 0.998 --out runs/strokes
    sdediff train --data grey.npz --channels 16 --batch-size 64 --steps 4000 --ema 0.998 --out runs/grey

What is minimised is the root mean square over the family of error / base, where the base of a model is the error of
the best pair of solver and grid for it alone (``sde_diffusion.tuning.search``): no model may be sacrificed for another.
The networks together count five times, since networks are what people sample, and twelve times with five steps or
fewer, where they would lose to UniPC otherwise; noises that even a good solver takes to another mode are left out
there. The best pairs for all start; then their times are fitted, with the weights that belong to them, then all
numbers. Held-out noises decide. Tables for other numbers of steps in the file are kept.

For many steps there is a member of the exponential engine instead: ``--settings 16 20 30 50`` ranks settings for it by
the same measure, each in units of the best setting for a model.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.problems import gaussian_spectrum
from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, load
from sde_diffusion.converged import converged, rms
from sde_diffusion.tuning.fit import (
    Derivatives,
    Fit,
    TableParameters,
    descend,
    differences,
    moved_times,
    objective,
    run,
    sensitivities,
)
from sde_diffusion.tuning.search import Start, search
from sde_diffusion.tuning.spacing import spaced
from solvers import Solver, solve
from solvers.exponential import ExponentialAdams
from solvers.pf_ode import table_entry
from solvers.table import Table, compile_table

_FEW = 32
_SEED = 2**42
_NETWORK_WEIGHT = 5
_NETWORK_WEIGHT_FEW = 12  # with five steps or fewer
_SIZE = 0.5  # RMS of the data, for the scale of the weights


@dataclass(frozen=True)
class Member:
    """A model of the family.

    Attributes:
        name: as printed.
        fit: noises to fit on.
        held: noises that decide.
        network: whether the model is expensive.
    """

    name: str
    fit: Fit
    held: Fit
    network: bool = False

    @property
    def few(self) -> Fit:
        """The first noises."""
        n = _FEW // 2 if self.network else _FEW
        return Fit(self.fit.denoise, self.fit.sde, self.fit.x1[:n], self.fit.x0[:n])


def mixtures(sde: VPSDE) -> dict[str, ScoreModel]:
    """Those with an exact score."""
    images = torch.from_numpy(load_digits().images / 8 - 1).reshape(-1, 64)
    generator = torch.Generator().manual_seed(3)
    places = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 2 - 1
    weights = torch.rand(24, generator=generator, dtype=torch.float64) + 0.2
    angle = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
    radius = torch.where(torch.arange(40) % 2 == 0, 0.4, 0.9)
    rings = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    return {
        "digits, narrow": GaussianMixture(images[512:900], std=0.12, sde=sde),
        "digits, wide": GaussianMixture(images[900:1300], std=0.25, sde=sde),
        "plane": GaussianMixture(places, std=0.05, weights=weights, sde=sde),
        "rings": GaussianMixture(rings, std=0.03, sde=sde),
    }


def spectra(sde: VPSDE) -> dict[str, ScoreModel]:
    """Gaussians with falling variances."""
    f = torch.arange(1, 257, dtype=torch.float64)
    g2 = torch.arange(20, dtype=torch.float64) ** 2
    h2 = torch.arange(16, dtype=torch.float64) ** 2
    steep = 1 / (0.5 + h2[:, None] + h2) ** 1.2
    variances = {
        "spectrum, line": (f**-1.5, 0.3),
        "spectrum, flat": ((1 / (1 + g2[:, None] + g2) ** 0.75).flatten(), 0.25),
        "spectrum, steep": (torch.stack([steep, steep / 5, steep / 50]).flatten(), 0.3),
    }
    return {name: gaussian_spectrum(v * (mean / v.mean()), sde) for name, (v, mean) in variances.items()}


def member(name: str, model: ScoreModel, n: int, held_out: int, network: bool = False) -> Member:
    """Draw noises and find where they end."""
    dtype = torch.float32 if network else torch.float64
    assert model.shape is not None
    x1 = model.sde.prior((n + held_out, *model.shape), seeds=range(_SEED, _SEED + n + held_out), dtype=dtype)
    x0, _ = converged(model, x1, steps=160 if network else 400)
    if network:
        kept = _settled(model, x1, x0)
        x1, x0, n = x1[kept], x0[kept], int(kept[:n].sum())
    call: Callable[..., Tensor] = lambda x, t, rows: torch.cat(  # noqa: E731
        [model.denoise(a, b) for a, b in zip(x.split(512), t.split(512), strict=True)]
    )
    return Member(name, Fit(call, model.sde, x1[:n], x0[:n]), Fit(call, model.sde, x1[n:], x0[n:]), network)


def _settled(model: ScoreModel, x1: Tensor, x0: Tensor) -> Tensor:
    """Which noises a good solver takes near their end: those on a watershed would decide all means, by chance."""
    grid = spaced(model.sde, "power-1.5", 10, 0.15)
    solver = ExponentialAdams(2, "data", "time", corrector=True)
    errors = rms(solve(model.sde.probability_flow(model), x1, solver=solver, grid=grid).x - x0)
    return errors < 3 * errors.median()


def family(networks: Sequence[str]) -> list[Member]:
    """All of it."""
    sde = VPSDE()
    out = [member(name, model, 192, 192) for name, model in mixtures(sde).items()]
    out += [member(name, model, 48, 48) for name, model in spectra(sde).items()]
    return [*out, *(member(Path(run).name, load(run).eval(), 48, 48, network=True) for run in networks)]


def error(fit: Fit, solver: Solver, times: Tensor) -> float:
    """Mean error of a solver on a grid."""
    return float(fit.errors(run(compile_table(solver, fit.sde, len(times) - 1, times), fit)).mean())


def base(one: Member, steps: int) -> float:
    """The error of the best pair for one model."""
    return search(one.fit.sde, steps, partial(error, one.few), partial(error, one.fit), 1)[0].error


def weights_of(members: Sequence[Member], steps: int) -> list[float]:
    """How often each model counts."""
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
        """Compare on the held-out noises."""
        ends = [run(table, one.held) for one in self.members]
        found = objective([one.held for one in self.members], ends, self.units)
        each = [float(one.held.errors(x).mean()) / b for one, x, b in zip(self.members, ends, self.bases, strict=True)]
        self.console.print(f"{self.steps} {stage}: {found:.3f} from", " ".join(f"{v:.2f}" for v in each))
        if found < self.best:
            self.best, self.table = found, table
        return True

    def starts(self) -> list[Start]:
        """The best pairs for all."""

        def joint(which: Sequence[tuple[Fit, float]]) -> Callable[[Solver, Tensor], float]:
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
    forms = [("data", "time", order) for order in (2, 3, 4)] + [("velocity", "time", 3)]
    found = {}
    for (form, variable, order), power, factor in product(forms, (1.5, 1.75, 2, 2.25, 2.5, 3), (1, 3, 8, 20, 50)):
        low = factor / steps**2
        if not 5e-4 <= low <= 0.2:
            continue
        solver = ExponentialAdams(order, form, variable, corrector=True)
        errors = [error(one.few, solver, spaced(one.fit.sde, f"power-{power:g}", steps, low)) for one in members]
        found[f"{form} {order} t^{power:g} {factor:g}/n^2"] = errors
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


def save(path: Path, tables: dict[int, dict[str, Any]]) -> None:
    """One line for each table."""
    lines = ",\n".join(json.dumps(tables[steps]) for steps in sorted(tables))
    path.write_text(f'{{"tables": [\n{lines}\n]}}\n')


@torch.no_grad()
def main() -> None:
    """Make the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.design", description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", required=True, help="the networks of the family")
    parser.add_argument("--nfe", nargs="+", type=int, default=[*range(3, 13), 14, 15])
    parser.add_argument("--settings", nargs="+", type=int, help="numbers of steps; no tables are made")
    parser.add_argument("--out", type=Path, default=Path("solvers/pf_ode.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    members = family(args.run)
    console.print("family:", ", ".join(one.name for one in members))
    if args.settings:
        for steps in args.settings:
            settings(members, steps, console)
        return
    tables = {len(entry["rows"]): entry for entry in json.loads(args.out.read_text())["tables"]}
    for steps in args.nfe:
        entry = table_entry(members[0].fit.sde, Design(members, steps, console).make())
        digits = lambda v: float(f"{v:.10g}")  # noqa: E731
        rows = [[digits(decay), [digits(w) for w in weights]] for decay, weights in entry["rows"]]
        tables[steps] = {"rho": [digits(r) for r in entry["rho"]], "rows": rows}
        save(args.out, tables)


if __name__ == "__main__":
    main()
