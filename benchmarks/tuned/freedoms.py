r"""What the freedoms of a tuned table are worth: asking times apart from the grid, and weights with a free sum.

    python -m benchmarks.tuned.freedoms [--nfe 5 8 10] [--samples 64] [--out DIR]

A row x_{i+1} = a_i x_i + sum_j b_ij D_j takes the state from one noise level to the next; the time t_i enters through
D_i = E[x_0 | x_i] at t_i alone. With free a and b, least squares on t_i therefore moves the time at which the network
is asked, apart from the level of the state. Rows of solvers keep constants: a_i alpha_i + sum_j b_ij = alpha_{i+1}.

From the same start, tables are fitted with these freedoms and without:

    all            a, b and t are free, as ``tune`` fits them
    grid's times   t stays
    fixed sums     a and b keep constants
    neither        both

An error is the mean RMS distance of held-out samples to the reference solution.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ranges import problems, ranges
from benchmarks.report import geometric_mean
from sde_diffusion import ScoreModel
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.tuning.fit import TableFit, TableParameters, descend, run, sensitivities
from sde_diffusion.tuning.grid_search import search
from solvers.fitted.compile import compile_table
from solvers.fitted.table import Table

CELLS = (("rings, 2", "14.6 (Stable Diffusion)"), ("cloud, 24", "152 (VP)"), ("Gaussian, 100", "straight"))
FREEDOMS = ("all", "grid's times", "fixed sums", "neither")
ITERATIONS = 12


def directions(parameters: TableParameters, fit: TableFit, freedom: str) -> Tensor:
    """The changes q that a freedom allows, as the columns of a matrix (|q|, free)."""
    alpha = fit.sde.marginal(torch.tensor(parameters.base.times, dtype=torch.float64))[0].tolist()
    columns, at = [], 0
    every = torch.eye(parameters.total, dtype=torch.float64)
    for i, scales in enumerate(parameters.scales):
        # The newest weight balances what another number changes: a_i alpha_i + sum_j b_ij stays.
        for k, scale in enumerate(scales):
            column = every[at + k].clone()
            if freedom in ("fixed sums", "neither"):
                if k == 1:
                    continue
                column[at + 1] -= scale * (alpha[i] if k == 0 else 1.0) / scales[1]
            columns.append(column)
        at += len(scales)
    if freedom in ("all", "fixed sums"):
        columns += list(every[parameters.weights :])
    return torch.stack(columns, 1)


def fitted(start: Table, fit: TableFit, held: TableFit, freedom: str) -> float:
    """The held-out error of the best table on the way of the least squares."""
    size = float(fit.x0.double().square().mean().sqrt())
    parameters = TableParameters.around(start, fit, size)
    allowed = directions(parameters, fit, freedom)
    best = float(held.errors(run(start, held)).mean())

    def table(q: Tensor) -> Table | None:
        return parameters.table(allowed @ q, fit)

    def endpoints(q: Tensor) -> list[Tensor] | None:
        made = table(q)
        return None if made is None else [run(made, fit)]

    def derivatives(q: Tensor) -> list[tuple[Tensor, Tensor]]:
        x, jacobian = sensitivities(parameters, allowed @ q, fit)
        return [(x, torch.einsum("kf,k...->f...", allowed, jacobian))]

    def accepted(q: Tensor) -> bool:
        nonlocal best
        made = table(q)
        assert made is not None
        best = min(best, float(held.errors(run(made, held)).mean()))
        return True

    q = torch.zeros(allowed.shape[1], dtype=torch.float64)
    descend(q, endpoints, derivatives, [fit], [1.0], ITERATIONS, accepted)
    return best


@torch.no_grad()
def measure(model: ScoreModel, nfe: int, samples: int) -> dict[str, float]:
    """The error of the start and of each freedom."""
    assert model.shape is not None
    x1 = model.sde.prior((2 * samples, *model.shape), seeds=range(2 * samples), dtype=torch.float64)
    x0, _ = converged(model, x1, steps=200)

    def denoise(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return model.denoise(x, t)

    fit, held = (TableFit(denoise, model.sde, x1[k::2], x0[k::2]) for k in (0, 1))

    def error(some: TableFit, solver: object, times: Tensor) -> float:
        return float(some.errors(run(compile_table(solver, model.sde, nfe, times), some)).mean())  # type: ignore[arg-type]

    best = search(model.sde, nfe, partial(error, fit), partial(error, fit), 1)[0]
    start = compile_table(best.solver, model.sde, nfe, best.times)
    found = {"start": float(held.errors(run(start, held)).mean())}
    return found | {freedom: fitted(start, fit, held, freedom) for freedom in FREEDOMS}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuned.freedoms", description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=[5, 8, 10])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned-freedoms"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = {}
    for problem, label in CELLS:
        for nfe in args.nfe:
            cells[f"{problem}, from {label}, {nfe} NFE"] = made = measure(
                problems()[problem](ranges()[label]), nfe, args.samples
            )
            print(problem, label, nfe, {k: round(v, 6) for k, v in made.items()}, flush=True)
    means = {f: geometric_mean([c[f] / c["neither"] for c in cells.values()]) for f in FREEDOMS}
    print({name: round(v, 3) for name, v in means.items()})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tuned_freedoms.json").write_text(json.dumps({"cells": cells, "over neither": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
