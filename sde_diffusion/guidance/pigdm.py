r"""PiGDM: the denoised sample with an isotropic uncertainty (Song et al. 2023, eq. 7 to 9).

    p(x_0 | x_t) ~ N(D, r_t^2 I)   gives   D_y = D + (sigma^2 / alpha) J' A' (r_t^2 A A' + s^2 I)^-1 (y - A D),

J = dD/dx. It is exact for Gaussian data of covariance d^2 I, with r_t^2 of ``Observed.prior_spread``, and for no other.
The paper's algorithm replaces the gain sigma^2 / alpha by one that stays bounded; so does this class where the range
of the data is given (``Observed.gain``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sde_diffusion.guidance.observations import with_axes_of
from sde_diffusion.guidance.observed import Observed


class PiGDM(Observed):
    """A model given y, by pseudo-inverse guidance, exact for covariances d^2 I. Arguments as ``Observed``.

    >>> import torch
    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    >>> model = PiGDM(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([1.0])).round(decimals=3)  # the posterior mean is (0.5, 0)
    tensor([[0.5000, 0.0000]])
    """

    backward: ClassVar[int] = 1

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + gain J' A' (r_t^2 A A' + s^2 I)^-1 (y - A D)."""
        spread = self.prior_spread(x, t)

        def weigh(residual: Tensor, _: Any) -> Tensor:
            return self.operator.solve(residual, with_axes_of(residual, spread), self.noise_std**2)

        denoised, gradient = self.likelihood_gradient(x, t, weigh, condition)
        return denoised + self.gain(x, t) * gradient
