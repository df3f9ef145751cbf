r"""Moment matching: the uncertainty of the denoised sample from the network's own Jacobian (Rozet et al. 2024, eq. 19).

Tweedie's second formula, V = Cov[x_0 | x_t] = (sigma^2 / alpha) J, J = dD/dx, gives with p(x_0 | x_t) ~ N(D, V)

    D_y = D + V A' (A V A' + s^2 I)^-1 (y - A D).

It is exact for Gaussian data of any covariance. The system is solved by a few conjugate gradients, each a backward
pass; J is symmetric for an exact model and taken as symmetric for a network.

Blurs at low noise have eigenvalues of A V A' from 0 to far above s^2, where a few plain iterations leave the weakly
observed directions to the prior. They are therefore preconditioned by the system of an isotropic V,

    (r^2 A A' + s^2 I)^-1,      r^2 = tr(V) / d ~ z' V z / d,

which is closed form for most operators; z has random signs (Hutchinson 1989), one more backward pass.

A run of ``ddpm`` or ``ddim`` takes the noise of ``step_noise`` for s^2, which keeps the variance of the posterior in
few steps.

With the range of the data, the residual is that of the clamped D, the result is clamped, and V is neither: the clamped
result bounds what a wrong V near t = 1 can do.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.guidance.finite_steps import has_step_noise, step_noise
from sde_diffusion.guidance.observations import conjugate_gradients, inner, mean_eigenvalue, with_axes_of
from sde_diffusion.guidance.observed import Observed
from solvers import Solver
from solvers.errors import InputError
from solvers.noise import INDEPENDENT, standard_normal

_LEAST = 1e-3  # share of the prior's r_t^2


class MomentMatching(Observed):
    """A model given y, by moment matching, exact for Gaussian data. Arguments as ``Observed``.

    Args:
        iterations: iterations of conjugate gradients, at least 1.
        arguments: as ``Observed``.
        options: as ``Observed``.

    Raises:
        ValueError: fewer than 1 iteration.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), sde=VPSDE())
    >>> model = MomentMatching(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([1.0])).round(decimals=2)  # the posterior mean is (0.5, 0.4)
    tensor([[0.5000, 0.4000]])
    """

    gradient_within_range: ClassVar[bool] = False

    def __init__(self, *arguments: Any, iterations: int = 2, **options: Any) -> None:
        if iterations < 1:
            raise InputError(f"conjugate gradients need at least 1 iteration; got {iterations}")
        super().__init__(*arguments, **options)
        self._signs: Tensor | None = None
        self._steps: tuple[Tensor, Tensor] | None = None  # times of a run's steps, and the variances of the noise
        self.iterations = iterations

    def _probe(self, x: Tensor) -> Tensor:
        """Random signs like one sample, the same in every evaluation; made once for a shape, type and device."""
        kept = self._signs
        if kept is None or kept.shape[1:] != x.shape[1:] or (kept.dtype, kept.device) != (x.dtype, x.device):
            kept = torch.where(standard_normal([0], x.shape[1:], INDEPENDENT) > 0, 1.0, -1.0).to(x)
            self._signs = kept
        return kept

    def for_run(self, solver: Solver, times: Tensor, eta: float) -> Observed:
        """This model with the noise of a run's steps, for ``ddpm`` and ``ddim``; a warning of deterministic solvers."""
        super().for_run(solver, times, eta)
        if self.noise_std == 0 or self.shape is None or not has_step_noise(solver):
            return self
        bound = copy.copy(self)
        bound.network = bound._posterior_mean
        at = times.double().cpu().clamp_max(self._latest)
        eigenvalue = mean_eigenvalue(self.operator, self.y.new_zeros(1, *self.shape))
        bound._steps = at[:-1], eigenvalue * step_noise(self.sde, at, eta, self.noise_std**2 / eigenvalue)
        return bound

    def _noise_variance(self, t: Tensor, flat: Tensor) -> Tensor:
        """s^2, or that of the run's step which starts at t, like the share ``flat`` of directions without a prior."""
        if self._steps is None:
            return torch.full_like(flat, self.noise_std**2)
        nearest = (t.double().cpu()[:, None] - self._steps[0]).abs().min(1)
        excess = torch.where(nearest.values <= 1e-9, self._steps[1][nearest.indices] - self.noise_std**2, 0.0)
        return self.noise_std**2 + flat * with_axes_of(flat, excess.to(flat))

    @property
    def backward(self) -> int:  # type: ignore[override]
        """Backward passes in one evaluation."""
        return self.iterations + 2

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + V A' (A V A' + s^2 I)^-1 (y - A D)."""
        alpha, sigma = self.scales(x, t)
        gain, prior = sigma**2 / alpha, self.prior_spread(x, t)
        signs = self._probe(x).expand_as(x)

        def weigh(residual: Tensor, vjp: Any) -> Tensor:
            spread = gain * inner(signs, vjp(signs)) / signs[0].numel()
            # Networks can have a trace that no covariance has; the preconditioner stays positive.
            spread = torch.minimum(torch.maximum(spread, _LEAST * prior), prior)
            noise = with_axes_of(residual, self._noise_variance(t, alpha * spread / gain))
            spread = with_axes_of(residual, spread)

            def apply(v: Tensor) -> Tensor:
                return self.operator(gain * vjp(self.operator.adjoint(v))) + noise * v

            def isotropic(v: Tensor) -> Tensor:
                return self.operator.solve(v, spread, noise)

            return conjugate_gradients(apply, residual, self.iterations, 1e-6, isotropic)

        denoised, gradient = self.likelihood_gradient(x, t, weigh, condition)
        if self.clip is None:
            return denoised + gain * gradient
        return (denoised.clamp(*self.clip) + gain * gradient).clamp(*self.clip)
