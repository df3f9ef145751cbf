"""Few steps, a user's own grid, and every path: finite, and with the evaluations declared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from sde_diffusion.sde import SDE, SDES
from sde_diffusion.verify.affine import affine_maps
from sde_diffusion.verify.declarations import minimum
from sde_diffusion.verify.moments import exact_moments, line
from sde_diffusion.verify.result import Check
from sde_diffusion.verify.targets import (
    T_END,
    VP,
    gaussian,
    irregular_grid,
    mixture,
    process,
    run,
    shared_path,
    start,
)
from solvers import Solver, make_grid, steps

PATHS = ("vp", "cosine", "subvp", "ve")
BUDGETS = (1, 2, 3, 7, 20, 50)
GRIDS = ("uniform", "log-snr", "karras", "irregular")
_BATCH = 4


def few_steps(solver: Solver) -> Check | None:
    """1, 2 and 3 steps on its own grid: finite, and as many evaluations as declared."""
    if solver.adaptive:
        return None
    wrong, counts = [], []
    for n in (1, 2, 3):
        times = make_grid(solver.grid, process(mixture(), solver), n)
        problem, counted = _run(solver, VP, times)
        counts.append(counted)
        wrong += problem
        if counted != solver.evaluations(n):
            wrong.append(f"{n} steps: counted {counted}, declared {solver.evaluations(n)}")
    return Check(
        "few steps",
        not wrong,
        "1, 2, 3 steps: finite, evaluations as declared",
        "; ".join(wrong) or f"finite; {', '.join(map(str, counts))} evaluations",
        {"counted": counts},
    )


def matrix(solver: Solver) -> Check | None:
    """Four paths x {1, 2, 3, 7, 20, 50} evaluations x four grids, on a narrow mixture."""
    wrong, runs = [], 0
    for name in PATHS:
        sde = SDES[name]()
        for label, budget, times in _cases(solver, sde):
            faults, counted = _run(solver, sde, times, budget if solver.adaptive else None)
            runs += 1
            if counted > budget:
                faults.append(f"{counted} evaluations")
            if not solver.adaptive and counted != solver.evaluations(len(times) - 1):
                faults.append(f"counted {counted}, declared {solver.evaluations(len(times) - 1)}")
            wrong += [f"{name}, nfe={budget}, {label}: {fault}" for fault in faults]
    return Check(
        "matrix",
        not wrong,
        "finite, evaluations as declared and within budget",
        "; ".join(wrong[:3]) + (f" ... {len(wrong)} in all" if len(wrong) > 3 else "") or f"{runs} runs",
        {"runs": runs, "wrong": len(wrong)},
    )


def _cases(solver: Solver, sde: SDE) -> Iterator[tuple[str, int, Tensor]]:
    for label in GRIDS:
        for budget in BUDGETS:
            if not solver.adaptive and budget < minimum(solver):
                continue
            n = 2 if solver.adaptive else solver.steps_for(budget)
            times = irregular_grid(n) if label == "irregular" else make_grid(label, process(mixture(sde), solver), n)
            yield label, budget, times


def _run(solver: Solver, sde: SDE, times: Tensor, nfe: int | None = None) -> tuple[list[str], int]:
    """(what went wrong, evaluations) of one run."""
    problem = process(mixture(sde, 0.1), solver)
    # Each sample of an adaptive solver queries its path at other times, so few samples suffice.
    batch = 2 if solver.adaptive else _BATCH
    noise = None if solver.adaptive else shared_path(sde, batch, tuple(times.tolist()))
    try:
        for step in steps(problem, start(batch, sde), times, solver, noise, nfe=nfe):
            out = step
    except Exception as error:  # a user's solver may raise anything; the report names the place
        return [f"{type(error).__name__}: {error}"], 0
    return [] if bool(out.x.isfinite().all()) else ["not finite"], int(out.nfe.max())


def grids(solver: Solver) -> Check | None:
    """A user's grid of very unequal steps converges, and so does one that runs from data to noise.

    The error at 160 steps is less than a third of that at 20: on the exact Gaussian flow, or of
    the exact moments for a stochastic solver.
    """
    if solver.adaptive:
        return None
    sizes = (20, 160)
    if solver.stochastic:
        found = _moment_errors(solver, sizes)
        if found is None:
            return None
        errors = {"irregular": found}
    else:
        flow, x = VP.probability_flow(gaussian()), start(16)
        y, times = gaussian().flow(x, 1.0, T_END), [irregular_grid(n, T_END) for n in sizes]
        errors = {
            "irregular": [float((run(solver, flow, x, t) - y).norm()) for t in times],
            "increasing": [float((run(solver, flow, y, t.flip(0)) - x).norm()) for t in times],
        }
    # 1e-9: a solver that is exact on Gaussian data has nothing left to reduce.
    passed = all(fine < max(coarse / 3, 1e-9) for coarse, fine in errors.values())
    return Check(
        "grids",
        passed,
        "error at 160 uneven steps below a third of that at 20",
        ", ".join(f"{name} {a:.1e} -> {b:.1e}" for name, (a, b) in errors.items()),
        {f"errors_{name}": pair for name, pair in errors.items()},
    )


def _moment_errors(solver: Solver, sizes: Sequence[int]) -> list[float] | None:
    first, last = exact_moments(1.0), exact_moments(T_END)
    maps = affine_maps(solver, VP.reverse(line()), [irregular_grid(n, T_END) for n in sizes])
    if maps is None:
        return None
    found = [m.moments(*first) for m in maps]
    return [max(abs(a - b) for a, b in zip(pair, last, strict=True)) for pair in found]
