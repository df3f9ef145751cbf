r"""Stochastic solvers on one Brownian path: strong order, and refinement.

The strong order needs no reference: with x_N the result of N steps on a given path, the root mean
square of x_N - x_2N shrinks with the same power of N as the distance to the limit. It is exact on
Gaussian data, where x_N is affine in the normals; on the mixture it is an average over samples on
``BrownianPath``s, and the standard error of its slope comes from leaving out one sample at a time
(jackknife).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.verify.moments import FINER, exact_moments, line_maps
from sde_diffusion.verify.result import Check
from sde_diffusion.verify.slopes import TOLERANCE, fit
from sde_diffusion.verify.targets import VP, even_grid, mixture, run, shared_path, start
from solvers import Solver, make_grid

_SAMPLED = (20, 40, 80, 160)
_BATCH = 64
_BUDGETS = (10, 20, 40)
_FINE = 320


def strong(solver: Solver) -> Check | None:
    """The declared strong order against the slope of the distance between N and 2 N steps.

    Exact on Gaussian data: within 0.15. Sampled on the mixture: not lower by more than 0.15 and
    two standard errors.
    """
    if solver.strong_order is None or solver.adaptive:
        return None
    sampled, error, distances = _on_the_mixture(solver)
    passed = sampled >= solver.strong_order - TOLERANCE - 2 * error
    measured = f"mixture {sampled:.2f} (s.e. {error:.2f})"
    figures = {
        "declared": solver.strong_order,
        "fitted": sampled,
        "mixture": sampled,
        "standard_error": error,
    }
    maps = line_maps(solver)
    if maps is not None:
        first = exact_moments(1.0)
        exact = [b.distance(a, *first) for a, b in pairwise(maps)]
        fitted = fit(FINER[:-1], exact, floor=1e-9)
        passed &= abs(fitted.slope - solver.strong_order) <= TOLERANCE
        measured = f"gaussian {fitted.slope:.2f}, {measured}"
        figures |= {"fitted": fitted.slope, "gaussian": fitted.slope}
    return Check(
        "strong",
        passed,
        f"strong order {solver.strong_order:g} +- {TOLERANCE}",
        measured,
        {**figures, "steps": _SAMPLED[:-1], "distances": distances},
    )


def _on_the_mixture(solver: Solver) -> tuple[float, float, list[float]]:
    """Slope, its standard error, and the distances."""
    problem, x, path = VP.reverse(mixture()), start(_BATCH), shared_path(VP, _BATCH)
    ends = [run(solver, problem, x, even_grid(n), path) for n in _SAMPLED]
    # (grids, samples): squared distances between one grid and the next.
    square = torch.stack([(b - a).square().sum(1) for a, b in pairwise(ends)])
    left_out = [_slope(torch.cat([square[:, :k], square[:, k + 1 :]], 1)) for k in range(_BATCH)]
    error = float(np.std(left_out)) * math.sqrt(_BATCH - 1)
    return _slope(square), error, square.mean(1).sqrt().tolist()


def _slope(square: Tensor) -> float:
    # Below 1e-6 the float32 rounding of the noise shows.
    return fit(_SAMPLED[:-1], square.mean(1).sqrt().tolist(), floor=1e-6).slope


def refinement(solver: Solver) -> Check | None:
    """With one seed, 10, 20 and 40 evaluations approach a fine run; other seeds stay away from it.

    The figure is the root mean square distance to the fine run, relative to that of runs with
    other seeds. Budgets at which a solver draws no noise at all (``restart`` below 17) follow no path
    and are doubled until it does.
    """
    if not solver.stochastic or solver.adaptive or not solver.follows_path:
        return None
    problem, x = VP.reverse(mixture()), start(_BATCH)

    def end(evaluations: int, first: int) -> Tensor:
        times = make_grid(solver.grid, problem, solver.steps_for(evaluations))
        return run(solver, problem, x, times, shared_path(VP, _BATCH, first=first))

    fine = end(_FINE, 0)
    ratios: list[float] = []
    budgets: list[int] = []
    n = _BUDGETS[0]
    while len(ratios) < len(_BUDGETS) and n < _FINE:
        same, other = end(n, 0), end(n, _BATCH)
        if not torch.equal(same, other):
            budgets.append(n)
            ratios.append(float((same - fine).norm() / (other - fine).norm()))
        n *= 2
    return Check(
        "refinement",
        len(ratios) == len(_BUDGETS) and max(ratios) < 0.9 and ratios[-1] < ratios[0],
        "same seed / other seed, distance to a fine run: below 0.9 and falling",
        " ".join(f"{n}: {ratio:.2f}" for n, ratio in zip(budgets, ratios, strict=True)),
        {"evaluations": budgets, "ratios": ratios, "fine": _FINE},
    )
