r"""Twisted diffusion sampling: particles whose weights make any guidance right (Wu et al. 2023, algorithm 1).

K particles follow the ancestral steps of the reverse SDE with the denoised sample moved by an approximate likelihood
p~(y | x_t) = N(y; A D(x_t, t), (s^2 + r_t^2 a) I), a the mean eigenvalue of A A'. From t to s each weight is
multiplied by

    w = p(x_s | x_t) p~(y | x_s) / ( q(x_s | x_t, y) p~(y | x_t) ),

p the model's own step and q the moved one, both Gaussian with one variance. The last likelihood is the true one, so
that weighted particles have the law of the posterior as K grows, whatever the guidance. Particles are resampled
(systematically) only when their effective number falls below a share of K: resampling at every step would leave the
descendants of a few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.guidance.observations import inner, mean_eigenvalue, with_axes_of
from sde_diffusion.guidance.observed import Observed
from sde_diffusion.models.score_model import ScoreModel
from solvers.errors import InputError, NonFiniteError
from solvers.grids import make_grid
from solvers.noise import INDEPENDENT, as_seeds, standard_normal
from solvers.problem import ReverseProcess


@dataclass(frozen=True)
class Particles:
    """Weighted samples of the posterior.

    Attributes:
        x: (K, ...).
        weights: (K,) float64, which sum to 1.
        ess: effective sample size before each step's resampling, in particles.
        nfe: forward passes for each particle; as many backward passes come on top.
    """

    x: Tensor
    weights: Tensor
    ess: list[float]
    nfe: int

    def resample(self, n: int, seed: int = 0) -> Tensor:
        """n samples with equal weights, (n, ...), drawn systematically."""
        generator = torch.Generator().manual_seed(seed)
        return self.x[systematic(self.weights, n, generator).to(self.x.device)]


def systematic(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices (n,) of a systematic resampling (Kitagawa 1996): index k about n weights[k] times.

    >>> systematic(torch.tensor([0.5, 0.0, 0.5]), 4, torch.Generator().manual_seed(0)).tolist()
    [0, 0, 2, 2]
    """
    points = (
        torch.arange(n, dtype=torch.float64, device="cpu")
        + torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    ) / n
    return torch.searchsorted(weights.double().cpu().cumsum(0), points).clamp_max(len(weights) - 1)


class _Twisted(Observed):
    """The prior's D, the moved D and log p~(y | x_t), from one forward and one backward pass."""

    def twist(self, x: Tensor, t: Tensor, last: bool, condition: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        t = t.clamp_max(self._latest)
        eigenvalue = mean_eigenvalue(self.operator, x)
        spread = with_axes_of(self.y, self.prior_spread(x, t))
        variance = self.noise_std**2 + (0.0 if last else 1.0) * eigenvalue * spread
        residuals: list[Tensor] = []

        def weigh(residual: Tensor, _: Any) -> Tensor:
            residuals.append(residual)
            return residual / variance

        denoised, gradient = self.likelihood_gradient(x, t, weigh, condition)
        square = inner(residuals[0], residuals[0])
        entries = (self.operator(torch.ones_like(x[:1])) != 0).sum()
        log_likelihood = -square / (2 * variance) - entries / 2 * torch.log(variance)
        return denoised, denoised + self.gain(x, t) * gradient, log_likelihood.reshape(-1).double()

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The moved D alone: the guidance without weights."""
        return self.twist(x, t, False, condition)[1]


@torch.no_grad()
def twisted_particles(
    model: ScoreModel,
    operator: Any,
    y: Tensor,
    noise: float,
    particles: int = 256,
    *,
    steps: int = 60,
    grid: str | Tensor = "quadratic",
    seed: int = 0,
    threshold: float = 0.5,
    clip: tuple[float, float] | None = None,
    **condition: Any,
) -> Particles:
    """Weighted samples of p(x_0 | y), consistent in the number of particles.

    Args:
        model: the prior, with a shape; all particles go through it together.
        operator: A, see ``Observed``.
        y: one observation (1, *observed).
        noise: its standard deviation, > 0: without noise no particle has a weight.
        particles: K, at least 2.
        steps: ancestral steps; NFE for each particle.
        grid: a name in ``GRIDS`` or times from 1 to 0.
        seed: seed of the run; the noise of particle k depends on (seed, k, step) alone.
        threshold: the share of K below which the effective number leads to resampling.
        clip: see ``Observed``.
        condition: passed on to the network, one entry for each particle.

    Raises:
        ValueError: see the message.
        FloatingPointError: every weight vanished.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.zeros(1, 2).double(), std=1.0, sde=VPSDE())
    >>> y = torch.tensor([[1.0, 0.0]]).double()
    >>> found = twisted_particles(prior, Mask(torch.tensor([True, False])), y, 1.0, particles=500, steps=100)
    >>> bool(((found.weights[:, None] * found.x).sum(0) - torch.tensor([0.5, 0.0])).abs().max() < 0.1)
    True
    """
    if particles < 2 or steps < 2:
        raise InputError(f"expected at least 2 particles and 2 steps; got {particles} and {steps}")
    if not noise > 0:
        raise InputError(f"particles are weighted by the likelihood, which needs noise > 0; got {noise}")
    if not 0 < threshold <= 1:
        raise InputError(f"the threshold is a share of the particles, in (0, 1]; got {threshold}")
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample; make it with ScoreModel(..., shape=(...))")
    twisted = _Twisted(model, operator, y, noise, clip=clip)
    process = ReverseProcess(model.denoise, model.sde, 1.0)
    times = make_grid(grid, process, steps)
    seeds = as_seeds([seed * 2**32 + k for k in range(particles)], particles)
    parameter = next(model.parameters(), None)
    like = y if parameter is None else parameter
    x = model.sde.prior((particles, *model.shape), seeds=seeds, dtype=like.dtype, device=like.device)
    generator = torch.Generator().manual_seed(seed)

    def at(t: Tensor) -> Tensor:
        return torch.full((particles,), float(t), dtype=torch.float64, device=x.device)

    plain, moved, before = twisted.twist(x, at(times[0]), False, condition)
    log_weights, sizes = before.clone(), []
    for k in range(len(times) - 2):
        t, s = times[k], times[k + 1]
        weights = _normalised(log_weights)
        sizes.append(float(1 / weights.square().sum()))
        if sizes[-1] < threshold * particles:
            kept = systematic(weights, particles, generator).to(x.device)
            x, plain, moved, before = x[kept], plain[kept], moved[kept], before[kept]
            log_weights = torch.zeros_like(log_weights)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = model.sde.marginal(t), model.sde.marginal(s)
        ratio = float(alpha_t * sigma_s / (alpha_s * sigma_t))
        fresh = (1 - ratio) * (1 + ratio)
        kept_noise = float(sigma_s) * math.sqrt(1 - fresh) / float(sigma_t)
        to_data, spread = float(alpha_s) - kept_noise * float(alpha_t), float(sigma_s) * math.sqrt(fresh)
        z = standard_normal(seeds, model.shape, INDEPENDENT, k).to(x)
        shift = to_data * (moved - plain)
        x = to_data * plain + kept_noise * x + shift + spread * z
        # log p - log q of one step: the two means differ by the shift.
        step = (-inner(shift, shift) / (2 * spread**2) - inner(shift, z) / spread).reshape(-1).double()
        plain, moved, after = twisted.twist(x, at(s), k == len(times) - 3, condition)
        log_weights = log_weights + step + after - before
        before = after
    weights = _normalised(log_weights)
    sizes.append(float(1 / weights.square().sum()))
    return Particles(model.units.to_data(plain), weights.cpu(), sizes, (len(times) - 1) * model.cost)


def _normalised(log_weights: Tensor) -> Tensor:
    if not bool(log_weights.isfinite().any()):
        raise NonFiniteError("no particle has a finite weight; use more steps, more noise, or clip=(low, high)")
    return torch.where(log_weights.isnan(), -math.inf, log_weights).softmax(0)
