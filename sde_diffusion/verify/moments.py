"""Stochastic solvers: the weak order, from exact means and variances on Gaussian data.

A solver that is not affine there (step sizes from norms, error control) is measured by Monte
Carlo with the standard errors stated.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.verify.adaptive import tolerance_of, with_tolerance
from sde_diffusion.verify.affine import AffineMap, affine_maps
from sde_diffusion.verify.result import Check
from sde_diffusion.verify.slopes import fit, order_check
from sde_diffusion.verify.targets import DTYPE, T_END, VP, even_grid
from solvers import ReverseProcess, Solver, solve

MEAN, VARIANCE = 0.7, 2.0
STEPS = (20, 40, 80, 160, 320)
FINER = (*STEPS, 640)
_SAMPLES = 4096


def line() -> Gaussian:
    """Gaussian data on the line."""
    return Gaussian(torch.tensor([MEAN]), torch.tensor([VARIANCE]), sde=VP)


def exact_moments(t: float) -> tuple[float, float]:
    """Mean and variance of x_t for that data.

    >>> [round(m, 6) for m in exact_moments(0.0)]
    [0.7, 2.0]
    """
    mean, covariance = line().moments(torch.tensor(t, dtype=DTYPE))
    return float(mean), float(covariance)


def line_maps(solver: Solver) -> list[AffineMap] | None:
    """Affine maps of a solver on that data, 20 to 640 even steps; None if it is not affine."""
    try:
        return _line_maps(solver)
    except TypeError:  # settings that have no hash: nothing to remember them by
        return _line_maps.__wrapped__(solver)


@lru_cache(maxsize=2)
def _line_maps(solver: Solver) -> list[AffineMap] | None:
    return affine_maps(solver, VP.reverse(line()), [even_grid(n) for n in FINER])


def weak(solver: Solver) -> Check | None:
    """The declared weak order against the errors of mean and variance at t = 0.1."""
    if not solver.stochastic:
        return None
    maps = None if solver.adaptive else line_maps(solver)
    if maps is None:
        return _monte_carlo(solver, VP.reverse(line()))
    first, (mean, variance) = exact_moments(1.0), exact_moments(T_END)
    found = [m.moments(*first) for m in maps[: len(STEPS)]]
    fits = {
        "mean": fit(STEPS, [abs(m - mean) for m, _ in found], floor=1e-11),
        "variance": fit(STEPS, [abs(v - variance) for _, v in found], floor=1e-11),
    }
    return order_check("weak", "weak order", solver.order, fits, STEPS)


def _monte_carlo(solver: Solver, problem: ReverseProcess) -> Check:
    """Mean and variance of samples of x at t = 0.1, in standard errors."""
    # x_1 of the data itself and not of the prior: all that is left is the solver's error.
    mean, variance = exact_moments(1.0)
    normal = VP.prior((_SAMPLES, 1), seeds=range(_SAMPLES), dtype=DTYPE) / VP.prior_std()
    x = mean + math.sqrt(variance) * normal
    # Its bias is proportional to the tolerance: a quarter of it shows any other bias.
    solver = with_tolerance(solver, tolerance_of(solver) / 4)
    times = torch.tensor([1.0, T_END], dtype=DTYPE) if solver.adaptive else even_grid(STEPS[-1])
    out = solve(problem, x, solver=solver, grid=times, seeds=range(_SAMPLES)).x.flatten()
    mean, variance = exact_moments(T_END)
    off_mean = (float(out.mean()) - mean) / math.sqrt(variance / _SAMPLES)
    off_variance = (float(out.var()) - variance) / (variance * math.sqrt(2 / _SAMPLES))
    return Check(
        "weak",
        max(abs(off_mean), abs(off_variance)) <= 3,
        f"mean and variance within 3 standard errors ({_SAMPLES} samples)",
        f"mean {off_mean:+.1f} s.e., variance {off_variance:+.1f} s.e.",
        {
            "mean": float(out.mean()),
            "mean_exact": mean,
            "variance": float(out.var()),
            "variance_exact": variance,
            "mean_in_standard_errors": off_mean,
            "variance_in_standard_errors": off_variance,
        },
    )
