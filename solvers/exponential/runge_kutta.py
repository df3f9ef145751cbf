r"""Single-step exponential Runge-Kutta: DPM-Solver-2/3 (noise) and DPM-Solver++ 2S/3S (data).

A step of order p from lambda_0 over h makes p evaluations at lambda_0 + c_k h, 0 = c_0 < c_1 < ...
< 1, and then starts afresh: no history. In the exact solution (notation of ``solvers.exponential.adams``)

    data      x(c) = sigma_c/sigma_0 x + alpha_c Int_0^c h e^{-h(c-u)} x_0(u) du
    noise     x(c) = alpha_c/alpha_0 x - alpha_c Int_0^c h rho(u) eps(u) du

the model is replaced by its interpolation polynomial in lambda through the values known so far. For
order 3 the weight of m_1 - m_0 in the second inner value is multiplied by

    kappa = (c_2 - c_1) / (c_2 - 3/2 c_1 c_2),          1 at c_2 = 2/3,

so that the errors of the inner values cancel for any c_1 and c_2. At c_1 = 1/2, and at 1/3 and 2/3,
this is Lu et al. 2022a, algorithms 1 and 2, and 2022b, algorithm 1, up to terms of the size of the
error; with ``published`` it is those.

**The inner nodes are times of the grid**: a step of order p covers p of its intervals. So every
interval is one evaluation, a run of n steps is n evaluations and any NFE is met exactly. What
does not divide is a step of lower order: one of order 1 among those of order 2, one or two of order
2 among those of order 3. They come first, where the flow is nearly linear. x at an inner node is an
approximation of lower order.

At alpha = 0 lambda is infinite. A step that starts or ends there is taken in q = alpha / sigma,
d(x / sigma) = x_0 dq, with polynomials in q.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError, choose
from solvers.exponential.quadrature import POINTS, WEIGHTS, Array, lagrange
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver

FORMS = ("data", "noise")

# Where the nodes are so uneven that the weights of a stage extrapolate this far, the step is split.
_MAX_GAIN = 4.0


class Stage(NamedTuple):
    """One grid interval: x_s = decay x + sum_k weights[k] m_k, x and m_0 at the start of the step.

    Attributes:
        t: time of the evaluation.
        s: the next time of the grid.
        k: index of the evaluation in its step, from 0.
        order: order of its step.
        form: of its step: the solver's, or "ratio" for polynomials of x_0 in alpha / sigma.
        decay: factor of x at the start of the step.
        weights: weights of the values of the step, oldest first.
    """

    t: float
    s: float
    k: int
    order: int
    form: str
    decay: float
    weights: tuple[float, ...]


class SingleStepState(NamedTuple):
    """The plan, how far it is done, and x at the start of the step under way with its values."""

    plan: tuple[Stage, ...]
    done: int
    base: Any
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class SingleStep(Solver):
    """Exponential Runge-Kutta of order 2 or 3 whose inner nodes are times of the grid.

    The order holds on grids whose neighbouring intervals are alike in lambda. Next to alpha = 0
    they never are, and order 3 falls to 2 on a grid that starts there.

    Args:
        max_order: largest order of its steps, 1 to 3.
        form: the interpolated prediction: "data" or "noise".
        published: the papers' weights at the end of a step: with order 2 those of a constant, moved
            to match the linear term; with order 3 through c_0 and c_2 only, which needs c_2 near
            2/3.

    Raises:
        ValueError: an unknown form, or an order outside 1 to 3.

    >>> import torch
    >>> path = lambda t: (1 - t, t)
    >>> times = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0)
    >>> [stage.order for stage in SingleStep(3).plan(path, times)]
    [2, 2, 2, 2, 3, 3, 3]
    """

    max_order: int = 2
    form: str = "data"
    published: bool = False

    needs = (ReverseProcess,)

    def __post_init__(self) -> None:
        choose(self.form, {form: form for form in FORMS}, "form")
        if self.max_order not in (1, 2, 3):
            raise InputError(f"max_order must be 1, 2 or 3; got {self.max_order}")

    @property
    def order(self) -> int:
        """The order of its steps."""
        return self.max_order

    @property
    def source(self) -> str:
        """The paper of the form."""
        if self.form == "data":
            return "Lu et al. 2022b, algorithm 1"
        return f"Lu et al. 2022a, algorithm {max(self.max_order - 1, 1)}"

    def plan(self, path: Path, times: tuple[float, ...]) -> tuple[Stage, ...]:
        """The stages of a grid, one for each interval; a last one to t = 0 is not part of it."""
        return _plan(self, path, times)

    def init(self, problem: ReverseProcess, times: Tensor) -> SingleStepState:
        """Plan the whole grid; plans are cached."""
        return SingleStepState(self.plan(problem.path, tuple(times.tolist())), 0, None, ())

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: SingleStepState, noise: Noise
    ) -> tuple[Tensor, Tensor, SingleStepState]:
        """One evaluation: to the next inner node of a step, or to its end."""
        stage = state.plan[state.done]
        if stage.t != float(t) or stage.s != float(s):
            raise InputError(
                f"step {state.done} was planned from t = {stage.t:.6g} to {stage.s:.6g}, but asked "
                f"from {float(t):.6g} to {float(s):.6g}: a run keeps to the grid it began with"
            )
        value = problem.denoise(x, t)
        if stage.form == "noise":
            alpha, sigma = (float(c) for c in problem.path(t)[:2])
            value = x.mul(1 / sigma).sub(value, alpha=alpha / sigma)
        base, values = (x, (value,)) if stage.k == 0 else (state.base, (*state.values, value))
        out = base * stage.decay
        for m, weight in zip(values, stage.weights, strict=True):
            out.add_(m, alpha=weight)
        return out, s, SingleStepState(state.plan, state.done + 1, base, values)


def _next_order(max_order: int, left: int) -> int:
    """The order of the next step with so many intervals left: what does not divide comes first."""
    if left % max_order == 0:
        return max_order
    return 2 if max_order == 3 and left > 1 else 1


@lru_cache(maxsize=128)
def _plan(solver: SingleStep, path: Path, times: tuple[float, ...]) -> tuple[Stage, ...]:
    t = torch.tensor(times, dtype=torch.float64, device="cpu")
    alpha, sigma = (c.numpy() for c in path(t)[:2])
    left = len(times) - 1 - bool(sigma[-1] == 0)
    stages: list[Stage] = []
    i = 0
    while left:
        order = _next_order(solver.max_order, left)
        while True:
            # Of order 1 all forms are DDIM, and this one is finite everywhere.
            form = solver.form if order > 1 and alpha[i] * alpha[i + order] > 0 else "ratio"
            nodes = slice(i, i + order + 1)
            if new := _stages(form, solver.published, alpha[nodes], sigma[nodes]):
                break
            # Split it so that what is left does not end in a step of order 1.
            order = 1 if order == left else order - 1
        for k, (decay, weights) in enumerate(new):
            stages.append(Stage(times[i + k], times[i + k + 1], k, order, form, decay, weights))
        i, left = i + order, left - order
    return tuple(stages)


def _stages(form: str, published: bool, alpha: Array, sigma: Array) -> list[tuple[float, tuple[float, ...]]]:
    """(decay, weights) of each stage of a step; empty if its nodes are too uneven."""
    order = len(alpha) - 1
    variable = alpha / sigma if form == "ratio" else np.log(alpha) - np.log(sigma)
    h = variable[order] - variable[0]
    c = (variable - variable[0]) / h
    stages = []
    for k in range(1, order + 1):
        u = POINTS * c[k]
        at = variable[0] + u * h
        if form == "noise":
            decay, kernel = alpha[k] / alpha[0], -alpha[k] * np.exp(-at)
        elif form == "data":
            decay, kernel = sigma[k] / sigma[0], alpha[k] * np.exp(at - variable[k])
        else:
            decay, kernel = sigma[k] / sigma[0], np.full_like(at, sigma[k])
        kernel = kernel * (c[k] * h) * WEIGHTS
        weights, total = lagrange(c[:k], u) @ kernel, kernel.sum()
        if order == 3 and k == 2:
            kappa = (c[2] - c[1]) / (c[2] - 1.5 * c[1] * c[2])
            weights = np.array([total - kappa * weights[1], kappa * weights[1]])
        elif published and order == k == 2:
            weights = total * np.array([1 - 0.5 / c[1], 0.5 / c[1]])
        elif published and order == k == 3:
            weights = np.insert(lagrange(c[[0, 2]], u) @ kernel, 1, 0.0)
        share = weights / total
        # The value nearest to the end of the step must pull towards it.
        if order > 1 and not (np.abs(share).sum() <= _MAX_GAIN and share[-1] > 0):
            return []
        stages.append((float(decay), tuple(weights.tolist())))
    return stages
