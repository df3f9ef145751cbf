"""Settings for the default solver: exponential Adams over forms, variables, orders and grids.

    python -m benchmarks.design.candidates [--problems ...] [--run RUN] [--nfe ...] [--out DIR]

The initial noise differs from that of ``benchmarks.solvers``, so that the choice and the report use
different samples. A grid is a grid family and the last rho before 0, a factor times the rule
4 / n^2. ``candidates.jsonl`` gets one line for each problem, setting and NFE. The command prints the
best settings for each problem, and the best over all problems by the geometric mean of the ratio to
the best peer in the report of ``benchmarks.solvers`` in the same folder, or without a report to the
best candidate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import problems as problem_table
from benchmarks.problems import Problem
from benchmarks.report import geometric_mean
from benchmarks.solvers import NFE, with_references
from sde_diffusion import SDE
from sde_diffusion.sampling.reference_solution import rms
from sde_diffusion.tuning.grid_families import spaced
from solvers import solve
from solvers.errors import choose
from solvers.exponential.adams import ExponentialAdams
from solvers.grids import rho_min

_SEEDS = 2**41
FACTORS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
GRIDS = (
    *("power-1.25", "power-1.5", "power-2", "angle", "angle-0.5"),
    *("log-snr", "karras", "flow", "flow-0.5", "sine"),
)
FORMS = tuple(product(("data", "noise", "velocity"), ("lambda", "rho", "angle", "time")))


class Setting(NamedTuple):
    """One candidate; lower: whether the order falls to 1 towards the end."""

    form: str
    variable: str
    order: int
    corrector: bool
    grid: str
    factor: float
    lower: bool = False

    def solver(self) -> ExponentialAdams:
        """The solver, without its grid."""
        return ExponentialAdams(self.order, self.form, self.variable, self.corrector, lower_order_final=self.lower)

    def times(self, sde: SDE, n: int) -> Tensor:
        """The grid of n steps."""
        return spaced(sde, self.grid, n, min(self.factor * rho_min(n), 0.5))

    def __str__(self) -> str:
        plus = ("+C" if self.corrector else "") + ("-L" if self.lower else "")
        return f"{self.form}/{self.variable} {self.order}{plus} {self.grid} x{self.factor:g}"


def settings() -> Iterator[Setting]:
    """All candidates."""
    both = (False, True)
    for (form, variable), order, corrector, grid, factor, lower in product(FORMS, (2, 3), both, GRIDS, FACTORS, both):
        yield Setting(form, variable, order, corrector, grid, factor, lower)


@torch.no_grad()
def error_of(problem: Problem, setting: Setting, n: int, x1: Tensor, target: Tensor) -> float:
    """Mean error with n evaluations; infinite if a sample is not finite."""
    sde = problem.model.sde
    ode = sde.probability_flow(problem.model)
    x = solve(ode, x1, solver=setting.solver(), grid=setting.times(sde, n)).x
    error = float(rms(x - target).mean())
    return error if math.isfinite(error) else math.inf


Errors = dict[tuple[str, int], dict[str, float]]


def best_peers(path: Path) -> dict[tuple[str, int], float]:
    """The error of the best peer for each problem and NFE, from a report."""
    if not path.exists():
        return {}
    entries = json.loads(path.read_text())["entries"]
    return {(e["problem"], e["nfe"]): e["best_peer"]["mean"] for e in entries if e["best_peer"]}


def show(errors: Errors, peers: dict[tuple[str, int], float], console: Console, rows: int = 8) -> None:
    """Print the best settings for each problem and NFE, and over all problems."""
    ratio: dict[str, dict[tuple[str, int], float]] = {}
    table = Table("problem", "NFE", "best setting", "error", "best peer", "ratio", "second")
    for key in sorted(errors):
        ranked = sorted(errors[key].items(), key=lambda item: item[1])
        base = peers.get(key, ranked[0][1])
        for name, error in ranked:
            ratio.setdefault(name, {})[key] = error / base
        (first, error), (second, _) = ranked[0], ranked[1]
        table.add_row(key[0], str(key[1]), first, f"{error:.3g}", f"{base:.3g}", f"{error / base:.2f}", second)
    console.print(table)
    budgets = sorted({nfe for _, nfe in errors})
    names = list(dict.fromkeys(problem for problem, _ in errors))
    for label, chosen in [*((str(n), [n]) for n in budgets), ("all", budgets)]:
        keys = [(p, n) for n in chosen for p in names if (p, n) in errors]
        scores = {
            name: geometric_mean(values[k] for k in keys)
            for name, values in ratio.items()
            if all(math.isfinite(values.get(k, math.inf)) for k in keys)
        }
        table = Table("setting", "geometric mean", *names, title=f"NFE {label}")
        for name in sorted(scores, key=scores.__getitem__)[:rows]:
            each = [geometric_mean(ratio[name][k] for k in keys if k[0] == p) for p in names]
            table.add_row(name, f"{scores[name]:.3f}", *(f"{v:.2f}" for v in each))
        console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Measure the missing settings and print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.design.candidates", description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(problem_table.EXACT))
    parser.add_argument("--run", nargs="*", default=[])
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--forms", nargs="*", help="such as data/lambda; all by default")
    parser.add_argument("--grids", nargs="*", default=list(GRIDS))
    parser.add_argument("--lower", nargs="*", type=int, default=[0, 1], help="orders that fall to 1 towards the end")
    parser.add_argument("--factors", nargs="*", type=float, default=list(FACTORS))
    parser.add_argument("--reference-steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-solvers"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console(width=170)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "candidates.jsonl"
    errors: Errors = {}
    done: dict[str, float] = {}
    if path.exists():
        for line in map(json.loads, path.read_text().splitlines()):
            done[line["key"]] = line["error"]
    tasks = [choose(name, problem_table.EXACT, "problem")() for name in args.problems]
    tasks += [problem_table.run(run, args.reference_steps) for run in args.run]
    ready: list[tuple[Problem, Any]] = []
    for problem in tasks:
        n = min(args.samples, problem.samples)
        ready.append((problem, with_references(problem, _SEEDS, n, 1, "candidates", args.out)[0]))
    wanted = [
        s
        for s in settings()
        if s.grid in args.grids
        and s.factor in args.factors
        and s.lower in args.lower
        and (not args.forms or f"{s.form}/{s.variable}" in args.forms)
    ]
    with path.open("a") as file:
        # Problems are the inner loop, so that the cached plan of a setting serves all of them.
        for setting, nfe in track(list(product(wanted, args.nfe)), "candidates", console=console):
            for problem, starts in ready:
                key = f"{problem.name}|{problem.fingerprint}|{setting}|{nfe}|{len(starts.x1)}"
                if key not in done:
                    done[key] = error_of(problem, setting, nfe, starts.x1, starts.endpoints)
                    file.write(json.dumps({"key": key, "error": done[key]}) + "\n")
                errors.setdefault((problem.name, nfe), {})[str(setting)] = done[key]
    show(errors, best_peers(args.out / "report.json"), console)


if __name__ == "__main__":
    main()
