r"""Predictor-corrector sampling: any predictor, and Langevin steps that keep the marginal there.

    x <- x + delta score(x, s) + sqrt(2 delta) xi,       score = (alpha D - x) / sigma^2

The step size decides whether the corrector helps or harms:

    "step"      delta = 2 (snr sigma)^2 min(h, 1), h = lambda(s) - lambda(t): a Langevin diffusion that
                runs along with lambda, whose bias falls with the steps
    "sigma"     delta = 2 (snr sigma)^2: no norms, so no sample sees another and low dimensions
                are safe
    "norm"      delta = 2 a (snr |xi| / |score|)^2 per sample, a = alpha(t)^2 / alpha(s)^2, the
                rule of Song et al. 2021, algorithms 4 and 5, with the norms of the sample instead
                of the batch mean

The corrections come after the prediction, at s, or with ``correct_first`` before it, at t, as in
the published code. Langevin steps have a bias of order delta over the variance along a direction. With
"sigma" and "norm" it does not depend on the number of steps: then snr, and not the number of steps,
determines the bias of the stationary distribution, and there is no order of convergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.diffusion.ancestral import DDPM
from solvers.errors import InputError, choose
from solvers.noise import Noise
from solvers.problem import ReverseProcess
from solvers.solver import Solver


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A predictor with Langevin corrections.

    Args:
        predictor: a fixed-step solver that integrates the process.
        corrections: Langevin steps with each prediction; each costs one evaluation.
        snr: signal-to-noise ratio of a Langevin step.
        rule: step-size rule, "step", "sigma" or "norm"; the declared order holds for "step".
        correct_first: whether to correct at t before the prediction, and not at s after it.

    Raises:
        ValueError: corrections < 0, snr <= 0, an unknown rule, or a predictor that cannot be
        corrected.

    >>> PredictorCorrector(corrections=2).evaluations(steps=10)
    28
    """

    predictor: Solver = field(default_factory=DDPM)
    corrections: int = 1
    snr: float = 0.1
    rule: str = "step"
    correct_first: bool = False

    order = 1
    stochastic = True
    needs = (ReverseProcess,)
    source = "Song et al. 2021, algorithms 2-5"

    def __post_init__(self) -> None:
        if self.corrections < 0 or not self.snr > 0:
            raise InputError(
                f"expected corrections >= 0 and snr > 0; got corrections={self.corrections}, snr={self.snr}"
            )
        choose(self.rule, {"step": 1, "sigma": 1, "norm": 1}, "step-size rule")
        if self.predictor.adaptive:
            raise InputError(
                "the predictor must take one step for each grid interval; "
                f"{type(self.predictor).__name__} chooses its own"
            )
        if self.predictor.uses_corrector:
            raise InputError(
                "this predictor redoes its last step when the value at its end is known, which "
                "would undo the Langevin steps there; use one that does not, such as SOLVERS['ddpm'] or "
                "ExponentialAdams(2, corrector=False)"
            )

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """Predictor evaluations plus one for each correction; the step to sigma = 0 has none."""
        corrected = steps - 1 if finish else steps
        return self.predictor.evaluations(steps, finish) + corrected * self.corrections

    def init(self, problem: ReverseProcess, times: Tensor) -> Any:
        """The predictor's state."""
        if problem.stochastic and not self.predictor.stochastic:
            raise InputError(
                f"{type(self.predictor).__name__} draws no noise, but the process has some "
                f"(eta={problem.eta}); predict the probability-flow ODE (eta = 0), "
                "or use a stochastic predictor"
            )
        if times[-1] > times[0]:
            raise InputError("Langevin steps are taken on the way to the data, but the grid increases")
        return self.predictor.init(problem, times)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """Predict x at s and correct it there, or correct x at t and predict from it."""
        if self.correct_first:
            x = self._correct(problem, x, t, s, t, noise)
            return self.predictor.step(problem, x, t, s, state, noise)
        x, s, state = self.predictor.step(problem, x, t, s, state, noise)
        return self._correct(problem, x, t, s, s, noise), s, state

    def _correct(self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, at: Tensor, noise: Noise) -> Tensor:
        """Langevin steps at one end of the interval from t to s."""
        alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
        alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
        alpha, sigma = (alpha_t, sigma_t) if at is t else (alpha_s, sigma_s)
        shrink = alpha_t / alpha_s
        if self.rule != "step" or shrink == 0:
            snr = self.snr
        else:
            snr = self.snr * min(math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t), 1.0) ** 0.5
        for k in range(self.corrections):
            xi = noise.independent(x, at, k)
            pull = problem.denoise(x, at).mul(alpha).sub(x)  # sigma^2 score
            if self.rule != "norm":
                x = x.add(pull, alpha=2 * snr**2).add_(xi, alpha=2 * snr * sigma)
            else:
                root = (_norm(xi) / _norm(pull)).mul(self.snr * sigma * shrink)
                x = x + 2 * root**2 * pull + 2 * root * sigma * xi
        return x


def _norm(x: Tensor) -> Tensor:
    """The norm of each sample, (B, 1, ..., 1)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).reshape(-1, *(1,) * (x.ndim - 1))
