r"""Moment matching: the uncertainty of the denoised sample from the network's own Jacobian (Rozet et al. 2024, eq. 19).

Tweedie's second formula, V = Cov[x_0 | x_t] = (sigma^2 / alpha) J, J = dD/dx, gives with p(x_0 | x_t) ~ N(D, V)

    D_y = D + V A' (A V A' + s^2 I)^-1 (y - A D).

It is exact for Gaussian data of any covariance. The system is solved by a few conjugate gradients, each a backward
pass; J is symmetric for an exact model and taken as symmetric for a network.

Blurs at low noise have eigenvalues of A V A' from 0 to far above s^2, where a few plain iterations leave the weakly
observed directions to the prior. They are therefore preconditioned by the system of an isotropic V,

    (r^2 A A' + s^2 I)^-1,      r^2 = tr(V) / d ~ z' V z / d,

which is closed form for most operators; z has random signs (Hutchinson 1989), one more backward pass.

With the range of the data, the residual is that of the clamped D, the result is clamped, and V is neither: the clamped
result bounds what a wrong V near t = 1 can do.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.guidance.observations import conjugate_gradients, inner
from sde_diffusion.guidance.observed import Observed
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
        self.iterations = iterations

    def _probe(self, x: Tensor) -> Tensor:
        """Random signs like one sample, the same in every evaluation; made once for a shape, type and device."""
        kept = self._signs
        if kept is None or kept.shape[1:] != x.shape[1:] or (kept.dtype, kept.device) != (x.dtype, x.device):
            kept = torch.where(standard_normal([0], x.shape[1:], INDEPENDENT) > 0, 1.0, -1.0).to(x)
            self._signs = kept
        return kept

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

            def apply(v: Tensor) -> Tensor:
                return self.operator(gain * vjp(self.operator.adjoint(v))) + self.noise_std**2 * v

            def isotropic(v: Tensor) -> Tensor:
                return self.operator.solve(v, spread, self.noise_std**2)

            return conjugate_gradients(apply, residual, self.iterations, 1e-6, isotropic)

        denoised, gradient = self.likelihood_gradient(x, t, weigh, condition)
        if self.clip is None:
            return denoised + gain * gradient
        return (denoised.clamp(*self.clip) + gain * gradient).clamp(*self.clip)
