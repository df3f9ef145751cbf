r"""Exponential Adams methods: one engine for DDIM, DPM-Solver++ multistep, DEIS, UniPC and SA-Solver.

Variation of constants removes the linear part of the reverse process exactly and leaves one integral over
a step from t to s of a slowly varying quantity m, which is what a network predicts. With the noise level
tau (eta of the process), lambda = log(alpha/sigma), rho = sigma/alpha, h = lambda_s - lambda_t,
H = (1 + tau^2) h and u the fraction of the step in lambda:

    data      x_s = sigma_s/sigma_t e^{-tau^2 h} x + alpha_s Int_0^1 H e^{-H(1-u)} x_0(u) du
                    + sigma_s sqrt(1 - e^{-2 tau^2 h}) xi
    noise     x_s = alpha_s/alpha_t x - (1 + tau^2) alpha_s Int_0^1 h rho(u) eps(u) du
                    + tau alpha_s sqrt(rho_t^2 - rho_s^2) xi
    velocity  x_s = n_s/n_t q_t^{tau^2} x + (1 + tau^2) n_s Int q^{tau^2} F d theta + n_s sqrt(1 - q_t^{2 tau^2}) xi,
                    F = (n x_0 - d^2 alpha x / n) / (sigma d),   n = sqrt(sigma^2 + d^2 alpha^2),
                    theta = atan(rho / d),   q = cos(theta) / cos(theta_s)

(Lu et al. 2022b, eq. 9; Xue et al. 2023, prop. 4.1; Zhang & Chen 2023, eq. 10; d = sigma_data, and for d = 1
on a variance-preserving path -F is the velocity alpha eps - sigma x_0. The velocity form's noise is derived like
the others': Gaussian data of standard deviation d has F = 0 and is sampled exactly, with or without noise.)

m is replaced by its interpolation polynomial of the last p values in a variable psi (lambda, rho, the angle
theta, or the time of the clock in ``solvers.noise_clock``), and the weights Int kernel L_j du are computed by
Gauss-Legendre quadrature in float64, which has no cancellation at any step size. The time of the path itself occurs
nowhere. Steps from pure noise, where lambda is -infinity, are regular in the data and the velocity form,

    x_s = sigma_s/sigma_t x + sigma_s Int x_0 d(alpha/sigma),

and polynomials in lambda or rho that reach back to pure noise are in the angle instead. The corrector (Zhao et al.
2023) repeats the step with the value at its end, which the next step needs anyway, and with the same xi: one more
order at no more evaluations.

Published formulas differ from the exact weights in two places, which ``weights`` reproduces. With two nodes the
integral of the slope, Int H e^{-H(1-u)} u du, is replaced by B/2 with B = H ("bh1") or B = 1 - e^{-H} ("bh2":
DPM-Solver++(2M) and UniPC). With three, DPM-Solver++(3M) gives the second difference half of its
weight ("dpm++3m", which also takes bh2), and is of order 2 for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError, choose
from solvers.exact_step import ancestral_step
from solvers.exponential.forms import FORMS, VARIABLES, WEIGHTS, U, W, form_of, variable_of
from solvers.exponential.quadrature import lagrange
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import LocalErrorEstimate, Solver, rms_of_sum


class Update(NamedTuple):
    """x_s = decay x + sum_j weights[j] m_j + noise xi, newest m first."""

    decay: float
    weights: tuple[float, ...]
    noise: float


class PlannedStep(NamedTuple):
    """One step of a plan.

    Attributes:
        t: its start.
        s: its end.
        order: number of values the predictor interpolates; 0 for the transition out of pure noise.
        value: (a, b) of the interpolated m = a x_0 + b x at t.
        predictor: weights of m at t and before.
        corrector: weights of m at s, t and before; None without correction.
    """

    t: float
    s: float
    order: int
    value: tuple[float, float]
    predictor: Update
    corrector: Update | None

    def interpolated(self, x0: Tensor, x: Tensor) -> Tensor:
        """m at t."""
        a, b = self.value
        return x0 if (a, b) == (1, 0) else x0.mul(a).add_(x, alpha=b)


class MultistepState(NamedTuple):
    """History of a run: values newest first, and what the corrector redoes."""

    plan: tuple[PlannedStep, ...]
    number: int
    values: tuple[Tensor, ...]
    base: Tensor | None
    xi: Tensor | None

    def planned(self, t: Tensor, s: Tensor) -> PlannedStep:
        """The step that comes next.

        Raises:
            ValueError: it was planned for other times.
        """
        step = self.plan[self.number]
        if step.t != float(t) or step.s != float(s):
            raise InputError(
                f"step {self.number} was planned from t = {step.t:.6g} to {step.s:.6g}, but asked from "
                f"{float(t):.6g} to {float(s):.6g}: a multistep method needs the grid it was initialised with"
            )
        return step

    def after(
        self, values: tuple[Tensor, ...] = (), base: Tensor | None = None, xi: Tensor | None = None
    ) -> MultistepState:
        """One step further."""
        return MultistepState(self.plan, self.number + 1, values, base, xi)


@dataclass(frozen=True)
class ExponentialAdams(Solver):
    """Exponential Adams-Bashforth, with or without the Adams-Moulton corrector in PEC mode.

    Args:
        predictor_order: number of values the predictor interpolates.
        form: the interpolated prediction: "data", "noise" or "velocity".
        variable: in what it is a polynomial: "lambda", "rho", "angle" or "time", that of ``solvers.noise_clock``.
        corrector: whether each state is corrected once the value at its end is known.
        sigma_data: the d of the velocity form and of the angle.
        lower_order_final: whether the order falls to 1 towards the end of the grid. It steadies the last
            steps of few-step runs and costs the convergence order: the method is then of order 2 at most.
        sde: whether it is offered for processes with noise.
        noisy: (from, to): only steps that start within these times have noise.
        quiet_below: c: of N steps, those that start below rho = c sigma_data / N have no noise (S_min of Karras et
            al. 2022). The last steps are large against their noise level, and noise added there stays in the sample.
            As N grows the process is the one with noise everywhere.
        weights: "exact", or as published: "bh1", "bh2", "dpm++3m".
        grid: its default grid.
        source: publication of this setting.

    Raises:
        ValueError: an unknown form, variable or kind of weights, an order outside 1 to 6, or published
            weights outside the variable lambda.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> [step.order for step in ExponentialAdams(3).plan(straight, 0.0, (1.0, 0.7, 0.4, 0.2, 0.1, 0.0))]
    [1, 2, 3, 3]
    """

    predictor_order: int = 2
    form: str = "data"
    variable: str = "lambda"
    corrector: bool = False
    sigma_data: float = 1.0
    lower_order_final: bool = False
    sde: bool = False
    noisy: tuple[float, float] = (0.0, 1.0)
    quiet_below: float = 0.0
    weights: str = "exact"
    grid: str = "power"
    source: str = "Hochbruck & Ostermann 2010, eq. 5.14"

    needs = (ReverseProcess,)

    def __post_init__(self) -> None:
        choose(self.form, FORMS, "form")
        choose(self.variable, VARIABLES, "polynomial variable")
        choose(self.weights, WEIGHTS, "kind of weights")
        if self.weights != "exact" and (self.variable != "lambda" or self.form == "velocity"):
            raise InputError(f"weights='{self.weights}' belong to polynomials in lambda of the data or noise form")
        if not 1 <= self.predictor_order <= 6:
            raise InputError(f"predictor_order must be 1 to 6; got {self.predictor_order}")
        if not self.sigma_data > 0:
            raise InputError(f"sigma_data must be positive; got {self.sigma_data}")
        if not 0 <= self.quiet_below < math.inf:
            raise InputError(f"quiet_below must be 0 or a positive number; got {self.quiet_below}")

    @property
    def uses_corrector(self) -> bool:
        """Whether it has the corrector."""
        return self.corrector

    @property
    def order(self) -> int:
        """The predictor's order, one more with the corrector; weak order at most 2 with noise."""
        if self.sde:
            return 1 if self.predictor_order == 1 and not self.corrector else 2
        full = self.predictor_order + self.corrector
        return min(full, 2) if self.lower_order_final or self.weights == "dpm++3m" else full

    @property
    def partial_order(self) -> int:
        """At most 2, or 3 with the corrector: the first step has one value and a local error of h^2, or h^3."""
        return min(self.order, 2 + self.corrector)

    @property
    def stochastic(self) -> bool:
        """Whether it integrates processes with noise."""
        return self.sde

    @property
    def strong_order(self) -> float | None:
        """1 on one Brownian path, since the noise is additive; none declared where it is switched on and off."""
        return 1.0 if self.sde and self.noisy == (0.0, 1.0) else None

    def plan(self, path: Path, eta: float, times: tuple[float, ...]) -> tuple[PlannedStep, ...]:
        """The steps of a grid with their orders and weights; a last step to t = 0 is not part of it."""
        return _plan(self, path, eta, times)

    def init(self, problem: ReverseProcess, times: Tensor) -> MultistepState:
        """Plan the whole grid; plans are cached."""
        return MultistepState(self.plan(problem.path, problem.eta, tuple(times.tolist())), 0, (), None, None)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: MultistepState, noise: Noise
    ) -> tuple[Tensor, Tensor, MultistepState]:
        """Evaluate at t, correct x there if planned, and predict x at s."""
        step = state.planned(t, s)
        x0 = problem.denoise(x, t)
        xi = noise.increment(x, t, s) if step.predictor.noise else None
        if step.order == 0:
            return ancestral_step(problem, x, x0, t, s, xi, eta=step.predictor.noise), s, state.after()
        value = step.interpolated(x0, x)
        if state.number > 0 and (redo := state.plan[state.number - 1].corrector) and state.base is not None:
            x = combine(redo, state.base, (value, *state.values), state.xi)
        values = (value, *state.values[: self.predictor_order - 1])
        return combine(step.predictor, x, values, xi), s, state.after(values, x, xi)

    def estimate(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, before: MultistepState, after: MultistepState
    ) -> LocalErrorEstimate | None:
        """RMS of corrected minus predicted x for the step before, or of orders p and p - 1."""
        step, last = before.plan[before.number], before.plan[before.number - 1]
        if self.corrector:
            if before.base is None or last.corrector is None or after.base is None:
                return None
            t, s = (torch.tensor(c, dtype=torch.float64, device="cpu") for c in (last.t, last.s))
            return LocalErrorEstimate(t, s, rms_of_sum((1.0, -1.0), (after.base, x)))
        if step.order < 2:
            return None
        lower = replace(self, predictor_order=step.order - 1, lower_order_final=False)
        times = (*(planned.t for planned in before.plan), before.plan[-1].s)
        weights = lower.plan(problem.path, problem.eta, times)[before.number].predictor.weights
        apart = [a - b for a, b in zip(step.predictor.weights, (*weights, 0.0), strict=True)]
        return LocalErrorEstimate(t, s, rms_of_sum(apart, after.values))


def combine(update: Update, x: Tensor, values: tuple[Tensor, ...], xi: Tensor | None = None) -> Tensor:
    """x_s of an update, with the values newest first."""
    out = x * update.decay
    for value, weight in zip(values, update.weights, strict=False):
        out.add_(value, alpha=weight)
    return out if xi is None else out.add_(xi, alpha=update.noise)


@lru_cache(maxsize=128)
def _plan(solver: ExponentialAdams, path: Path, eta: float, times: tuple[float, ...]) -> tuple[PlannedStep, ...]:
    t = torch.tensor(times, dtype=torch.float64, device="cpu")
    alpha, sigma = (c.numpy() for c in path(t)[:2])
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    last = len(times) - 1 - bool(sigma[-1] == 0)

    inverse = alpha / np.where(sigma > 0, sigma, np.nan)
    form = form_of(solver.form, solver.sigma_data)
    regular = form.regular and eta == 0
    h = np.diff(lam[: last + 1])
    # alpha / sigma at the quadrature points of all steps; those from pure noise have equal steps of it.
    pure = ~np.isfinite(h)
    begin, width = np.where(pure, 0.0, lam[:last]), np.where(pure, 0.0, h)
    at = np.where(pure[:, None], inverse[1 : last + 1, None] * U, np.exp(begin[:, None] + width[:, None] * U))

    quiet = solver.quiet_below * solver.sigma_data / (len(times) - 1)

    def noise_level(i: int) -> float:
        """The tau of a step."""
        return eta if solver.noisy[0] <= times[i] <= solver.noisy[1] and sigma[i] >= quiet * alpha[i] else 0.0

    def update(i: int, nodes: list[int]) -> Update:
        """From time i to i + 1, interpolating at the nodes."""
        psi = variable_of(solver.variable, inverse[nodes])
        basis = lagrange(psi(inverse[nodes], solver.sigma_data), psi(at[i], solver.sigma_data))
        tau = noise_level(i)
        ends = slice(i, i + 2)
        if pure[i]:
            decay, kernel, noise = form.from_pure_noise(alpha[ends], sigma[ends], at[i])
        else:
            decay, kernel, noise = form.integral(tau, alpha[ends], sigma[ends], h[i], 1 / at[i])
        weights = (basis * kernel) @ W
        if np.isfinite(lam[nodes]).all():
            weights = WEIGHTS[solver.weights](weights, kernel, (lam[nodes] - lam[i]) / h[i])
        return Update(float(decay), tuple(weights.tolist()), float(noise))

    steps = []
    for i in range(last):
        # Where steps from pure noise are not regular, the history starts after it.
        known = [k for k in range(i, -1, -1) if regular or np.isfinite(lam[k])]
        if not known or not np.isfinite(lam[i + 1]):
            # The transition computes its own amount of noise; here it only says that there is some.
            steps.append(PlannedStep(times[i], times[i + 1], 0, (1.0, 0.0), Update(0.0, (), noise_level(i)), None))
            continue
        p = min(solver.predictor_order, len(known))
        if solver.lower_order_final:
            p = min(p, len(times) - 1 - i)
        predictor = update(i, known[:p])
        corrector = update(i, [i + 1, *known[:p]]) if solver.corrector else None
        value = form.value(float(alpha[i]), float(sigma[i]))
        steps.append(PlannedStep(times[i], times[i + 1], p, value, predictor, corrector))
    return tuple(steps)
