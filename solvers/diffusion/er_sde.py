r"""ER-SDE solvers: exponential Adams in rho for a noise level that falls with rho.

Any phi(rho) > 0 with phi / rho increasing defines a reverse SDE with the marginals of the path, of
noise level tau^2 = d log phi / d log rho - 1 (Cui et al. 2023, eq. 7). With z = x / alpha and r =
phi(rho_s) / phi(rho_t),

    z_s = r z_t + Int (1 + tau^2) phi(rho_s)/phi(rho) D d lambda + sqrt(rho_s^2 - r^2 rho_t^2) xi.

D is replaced by its interpolation polynomial in rho through the last p values, and the integral is
a Gauss-Legendre sum (the paper's is a left Riemann sum of 100 terms). Here

    phi(rho) = rho (exp(rho^0.3) + 10)^(eta^2),

the paper's choice at eta = 1: nearly the SDE of Anderson at large noise, nearly the flow at small
noise. At eta = 0 it is the flow itself and the method is an Adams method of order p.

The paper's forms of order 2 and 3 are Taylor polynomials with difference quotients D' and D''; for
p = 2 that is the polynomial above. For p = 3 it leaves D' a first-order quotient, which costs the
third order at eta = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exponential.quadrature import POINTS, WEIGHTS, Array, lagrange
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import LocalErrorEstimate, Solver, rms_of_sum

_SHIFT, _POWER = math.log(10.0), 0.3


class ERSDEUpdate(NamedTuple):
    """x_s = decay x + sum_j weights[j] D_j + noise xi, newest D first."""

    t: float
    s: float
    decay: float
    weights: tuple[float, ...]
    noise: float


class ERSDEState(NamedTuple):
    """The plan, how far it is done, and the last values of D, newest first."""

    plan: tuple[ERSDEUpdate, ...]
    done: int
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class ERSDE(Solver):
    """The extended reverse-time SDE, by Adams steps in data form.

    Args:
        values: number of values of D that a step interpolates, 1 to 3.

    Raises:
        ValueError: values outside 1 to 3.

    >>> ERSDE(3).evaluations(steps=20)
    20
    """

    values: int = 2

    stochastic = True
    strong_order = 1.0
    needs = (ReverseProcess,)
    source = "Cui et al. 2023, algorithms 1-3"

    def __post_init__(self) -> None:
        if self.values not in (1, 2, 3):
            raise InputError(f"ER-SDE solvers interpolate 1 to 3 values; got values={self.values}")

    @property
    def order(self) -> int:
        """Order without noise, and the weak order measured down to errors of 1e-7.

        With 3 values the noise leaves a term of order 2, whose factor tau^2 is small where D varies most.
        """
        return self.values

    def init(self, problem: ReverseProcess, times: Tensor) -> ERSDEState:
        """Plan the whole grid; plans are cached."""
        if problem.stochastic and times[-1] > times[0]:
            raise InputError("a reverse SDE runs towards the data, but the grid increases; use eta = 0")
        return ERSDEState(_plan(self.values, problem.path, problem.eta, tuple(times.tolist())), 0, ())

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: ERSDEState, noise: Noise
    ) -> tuple[Tensor, Tensor, ERSDEState]:
        """One evaluation and one normal number."""
        update = state.plan[state.done]
        if update.t != float(t) or update.s != float(s):
            raise InputError(
                f"step {state.done} was planned from t = {update.t:.6g} to {update.s:.6g}, but "
                f"asked from {float(t):.6g} to {float(s):.6g}: a run keeps to its first grid"
            )
        values = (problem.denoise(x, t), *state.values)[: self.values]
        out = x * update.decay
        for value, weight in zip(values, update.weights, strict=False):
            out.add_(value, alpha=weight)
        if update.noise > 0:
            out.add_(noise.increment(x, t, s), alpha=update.noise)
        return out, s, ERSDEState(state.plan, state.done + 1, values)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: ERSDEState, after: ERSDEState
    ) -> LocalErrorEstimate | None:
        """RMS of the difference to the step with one value of D less."""
        weights = before.plan[before.done].weights
        if len(weights) < 2:
            return None
        times = (*(update.t for update in before.plan), before.plan[-1].s)
        lower = _plan(len(weights) - 1, problem.path, problem.eta, times)[before.done].weights
        apart = [a - b for a, b in zip(weights, (*lower, 0.0), strict=True)]
        return LocalErrorEstimate(t, s, rms_of_sum(apart, after.values))


@lru_cache(maxsize=128)
def _plan(values: int, path: Path, eta: float, times: tuple[float, ...]) -> tuple[ERSDEUpdate, ...]:
    t = torch.tensor(times, dtype=torch.float64, device="cpu")
    alpha, sigma = (c.numpy() for c in path(t)[:2])
    with np.errstate(divide="ignore"):
        rho = sigma / alpha
    plan = []
    for i in range(len(times) - 1 - bool(sigma[-1] == 0)):
        # Remaining factor of eps: sigma_s (phi/rho at s) / (phi/rho at t), which is r in terms of x.
        kept = float(sigma[i + 1] * np.exp(_log_excess(rho[i + 1], eta) - _log_excess(rho[i], eta)))
        spread = math.sqrt(max((sigma[i + 1] - kept) * (sigma[i + 1] + kept), 0.0))
        decay = kept / float(sigma[i])
        known = [k for k in range(i, max(i - values, -1), -1) if np.isfinite(rho[k])]
        if known and np.isfinite(rho[i + 1]):
            weights = alpha[i + 1] * _weights(rho, i, known, eta)
        else:
            weights = np.array([alpha[i + 1] - decay * alpha[i]])
        plan.append(ERSDEUpdate(times[i], times[i + 1], decay, tuple(weights.tolist()), spread))
    return tuple(plan)


def _log_excess(rho: Array, eta: float) -> Array:
    """log(phi / rho)."""
    return eta**2 * np.logaddexp(rho**_POWER, _SHIFT) if eta else np.zeros_like(rho)


def _weights(rho: Array, i: int, known: list[int], eta: float) -> Array:
    """Int (1 + tau^2) phi(rho_s)/phi(rho) L_j(rho) d lambda over step i."""
    h = np.log(rho[i] / rho[i + 1])
    at = rho[i] * np.exp(-h * POINTS)
    # d log phi / d log rho, with the logistic function of rho^0.3 - log 10.
    slope = 1 + eta**2 * _POWER * at**_POWER / (1 + np.exp(_SHIFT - at**_POWER))
    ratio = np.exp(_log_excess(rho[i + 1], eta) - _log_excess(at, eta)) * rho[i + 1] / at
    return lagrange(rho[known], at) @ (h * slope * ratio * WEIGHTS)
