r"""Exact targets, their exact flows, and the grids that orders are fitted on.

    gaussian   N(mu, C) in 2-D: the flow is known in closed form
    mixture    three Gaussians in 2-D: DOP853 at a tolerance of 1e-13; its error is stated as
               the difference from a run at 1e-11

Smooth grids are equal steps of v in sqrt(t) = 1 - (1 - sqrt(t_end)) (1 - cos(pi v / 2)): every
step shrinks with 1/N, and the first ones with 1/N^2. A multistep method starts with steps of low
order; on such a grid the first step of order 1 adds an error of order 4 to the result, the second
one of order 6. So the order of the method shows, and not that of its start. Even grids are equal
steps in sqrt(t), for stochastic solvers, whose weak order is at most 2 or so: the first step does
not limit it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import SDE, VPSDE
from solvers import ReverseProcess, Solver, steps
from solvers.brownian_path import BrownianPath, depth_for
from solvers.noise import Noise

VP = VPSDE()
T_END, T_MIDDLE = 0.1, 0.4
DTYPE = torch.float64


@lru_cache
def gaussian(sde: SDE = VP) -> Gaussian:
    """Correlated Gaussian data in 2-D."""
    return Gaussian(torch.tensor([0.5, -0.3]), torch.tensor([[0.6, 0.3], [0.3, 0.4]]), sde=sde)


@lru_cache
def mixture(sde: SDE = VP, std: float = 0.5) -> GaussianMixture:
    """Three Gaussians in 2-D, wide by default, so that orders show early."""
    means = torch.tensor([[-0.8, -0.32], [0.72, -0.48], [0.16, 0.8]], dtype=DTYPE)
    return GaussianMixture(means, std, torch.tensor([0.5, 0.3, 0.2]), sde=sde)


def process(model: Any, solver: Solver) -> ReverseProcess:
    """The process that a solver is for: the reverse-time SDE if it is stochastic, else the flow."""
    return model.sde.reverse(model, eta=float(solver.stochastic))


@lru_cache
def start(batch: int, sde: SDE = VP, dtype: torch.dtype = DTYPE) -> Tensor:
    """Initial noise in 2-D, (batch, 2), with a seed for each sample."""
    return sde.prior((batch, 2), seeds=range(batch), dtype=dtype)


def smooth_grid(n: int, end: float = T_END) -> Tensor:
    """A grid of n steps from t = 1 to ``end``, short ones first.

    >>> [round(t, 3) for t in smooth_grid(2).tolist()]
    [1.0, 0.64, 0.1]
    """
    v = 1 - torch.cos(torch.linspace(0, math.pi / 2, n + 1, dtype=DTYPE))
    return _pinned((1 - (1 - math.sqrt(end)) * v) ** 2, end)


def even_grid(n: int, end: float = T_END) -> Tensor:
    """A grid of n steps from t = 1 to ``end``, equal ones in sqrt(t).

    >>> even_grid(2, end=0.0).tolist()
    [1.0, 0.25, 0.0]
    """
    return _pinned(torch.linspace(1, math.sqrt(end), n + 1, dtype=DTYPE) ** 2, end)


def irregular_grid(n: int, end: float = 0.0) -> Tensor:
    """A grid of n steps from t = 1 to ``end`` of very unequal length, as a user may give them.

    >>> [round(t, 3) for t in irregular_grid(3).tolist()]
    [1.0, 0.459, 0.301, 0.0]
    """
    pattern = torch.tensor([1.0, 0.4, 1.7, 0.8, 1.3], dtype=DTYPE)
    lengths = pattern.repeat(n // 5 + 1)[:n]
    v = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]) / lengths.sum()
    return _pinned((1 - (1 - math.sqrt(end)) * v) ** 2, end)


def _pinned(t: Tensor, end: float) -> Tensor:
    t[0], t[-1] = 1.0, end
    return t


@lru_cache
def mixture_flow(batch: int, first: float = 1.0) -> tuple[Tensor, float]:
    """The exact flow of the mixture from the first time to T_END, and the error of that reference."""
    tight, loose = (_dop853(batch, rtol, first) for rtol in (1e-13, 1e-11))
    return tight, float((tight - loose).norm())


def flows(batch: int, first: float = 1.0) -> dict[str, tuple[Any, Tensor, float]]:
    """Name: (model, x at T_END of its exact flow from the first time, the error of that) for each target."""
    exact = gaussian().flow(start(batch), first, T_END)
    return {"gaussian": (gaussian(), exact, 0.0), "mixture": (mixture(), *mixture_flow(batch, first))}


def _dop853(batch: int, rtol: float, first: float) -> Tensor:
    from scipy.integrate import solve_ivp

    flow, x = VP.probability_flow(mixture()), start(batch)

    def slope(t: float, y: Any) -> Any:
        at = torch.tensor(t, dtype=DTYPE)
        return flow.drift(torch.from_numpy(y).reshape(x.shape), at).flatten().numpy()

    out = solve_ivp(slope, (first, T_END), x.flatten().numpy(), "DOP853", rtol=rtol, atol=1e-14)
    return torch.from_numpy(out.y[:, -1]).reshape(x.shape)


def run(solver: Solver, problem: Any, x: Tensor, times: Tensor, noise: Noise | None = None) -> Tensor:
    """Run a solver along a grid and return x at its end."""
    for step in steps(problem, x, times, solver, noise):
        out = step.x
    return out


class SharedPath:
    """Brownian paths that remember their answers, so that many solvers on one grid pay once."""

    def __init__(self, path: BrownianPath) -> None:
        self.path = path
        self.known: dict[tuple[float, ...], Tensor] = {}

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """See ``BrownianPath.increment``."""
        key = (float(t), float(s))
        if key not in self.known:
            self.known[key] = self.path.increment(x.double(), t, s)
        return self.known[key].to(x)

    def independent(self, x: Tensor, t: Tensor, k: int = 0) -> Tensor:
        """See ``BrownianPath.independent``."""
        key = (float(t), k, math.nan)
        if key not in self.known:
            self.known[key] = self.path.independent(x.double(), t, k)
        return self.known[key].to(x)

    def rows(self, index: Tensor) -> Noise:
        """The paths of a part of the batch."""
        return self.path.rows(index)


@lru_cache(maxsize=512)
def shared_path(sde: SDE, batch: int, times: tuple[float, ...] | None = None, first: int = 0) -> SharedPath:
    """Brownian paths for these times, or of depth 26 for any; seeds from ``first`` on."""
    clock = sde.reverse(mixture(sde)).clock
    depth = 26 if times is None else depth_for(clock, torch.tensor(times, dtype=DTYPE))
    return SharedPath(BrownianPath(torch.arange(first, first + batch), clock, depth))
