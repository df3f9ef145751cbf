"""The fitted order on exact flows, and on plain equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.verify.adaptive import tolerance_of
from sde_diffusion.verify.affine import affine_maps
from sde_diffusion.verify.result import Check
from sde_diffusion.verify.slopes import SlopeFit, fit, order_check
from sde_diffusion.verify.targets import DTYPE, T_END, T_MIDDLE, VP, flows, run, smooth_grid, start
from solvers import Equation, Solver

STEPS = (20, 40, 80, 160, 320)
_FEW = STEPS[:4]
_BATCH = 16
_DEPENDS = 3  # the lowest order that a first step of order 1 can limit
_ROUNDING = 1e-12


def order(solver: Solver) -> Check | None:
    """The declared order against the slope of the error at t = 0.1, on both exact flows."""
    if solver.stochastic or solver.adaptive:
        return None
    return order_check("order", "order", solver.order, _slopes(solver, flows(_BATCH), smooth_grid), STEPS)


def partial_run(solver: Solver) -> Check | None:
    """The order that a solver declares for runs that begin in the middle, from t = 0.4 to 0.1 in equal steps.

    A first step of order 1 leaves a global error of order 2, so that only orders of 3 and more depend on it.
    """
    if solver.stochastic or solver.adaptive or solver.order < _DEPENDS:
        return None
    grid = lambda n: torch.linspace(T_MIDDLE, T_END, n + 1, dtype=DTYPE)  # noqa: E731
    fits = _slopes(solver, flows(_BATCH, T_MIDDLE), grid)
    return order_check("partial run", "order", solver.partial_order, fits, STEPS)


def _slopes(
    solver: Solver, targets: dict[str, tuple[Any, Tensor, float]], grid: Callable[[int], Tensor]
) -> dict[str, SlopeFit]:
    """The slopes of the error at t = 0.1 on exact flows."""
    x, fits = start(_BATCH), {}
    for name, (model, exact, uncertain) in targets.items():
        flow = VP.probability_flow(model)
        ends = [run(solver, flow, x, grid(n)) for n in STEPS]
        errors = [float((end - exact).norm()) for end in ends]
        fits[name] = fit(STEPS, errors, floor=100 * max(uncertain, _ROUNDING))
    return fits


def equation(solver: Solver) -> Check | None:
    """The order on plain equations, for solvers that take them.

    x' = x (1 - x) for a deterministic solver; dx = -x dt + dw / 2, whose moments are known, for a
    stochastic one. Adaptive solvers must reach the solution within ten times their tolerance.
    """
    if Equation not in solver.needs or (solver.adaptive and solver.stochastic):
        return None
    if solver.stochastic:
        return _ornstein_uhlenbeck(solver)
    x = torch.tensor([[0.1], [0.7]], dtype=DTYPE)
    logistic = Equation(lambda x, t: x * (1 - x))
    exact = x * math.e / (1 - x + x * math.e)
    if solver.adaptive:
        error = float((run(solver, logistic, x, _unit(1)) - exact).abs().max())
        allowed = 10 * tolerance_of(solver)
        return Check(
            "equation",
            error <= allowed,
            f"x' = x (1 - x) to {allowed:.0e}",
            f"error {error:.1e}",
            {"error": error},
        )
    errors = [float((run(solver, logistic, x, _unit(n)) - exact).norm()) for n in _FEW]
    fits = {"logistic": fit(_FEW, errors, _ROUNDING)}
    return order_check("equation", "order", solver.order, fits, _FEW)


def _ornstein_uhlenbeck(solver: Solver) -> Check | None:
    noisy = Equation(lambda x, t: -x, lambda x, t: torch.full_like(x, 0.5))
    maps = affine_maps(solver, noisy, [_unit(n) for n in _FEW])
    if maps is None:
        return None
    found = [m.moments(mean=0.7, variance=0.0) for m in maps]
    mean, variance = 0.7 / math.e, -math.expm1(-2) / 8
    fits = {
        "mean": fit(_FEW, [abs(m - mean) for m, _ in found], _ROUNDING),
        "variance": fit(_FEW, [abs(v - variance) for _, v in found], _ROUNDING),
    }
    return order_check("equation", "weak order", solver.order, fits, _FEW)


def _unit(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=DTYPE)
