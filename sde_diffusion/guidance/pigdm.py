r"""PiGDM: the denoised sample with an isotropic uncertainty (Song et al. 2023, eq. 7 to 9).

    p(x_0 | x_t) ~ N(D, r_t^2 I)   gives   D_y = D + (sigma^2 / alpha) J' A' (r_t^2 A A' + s^2 I)^-1 (y - A D),

J = dD/dx. It is exact for Gaussian data of covariance d^2 I, with r_t^2 of ``Observed.prior_spread``, and for no other.
The paper's algorithm replaces the gain sigma^2 / alpha by one that stays bounded; so does this class where the range
of the data is given (``Observed.gain``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sde_diffusion.guidance.observed import Observed


class PiGDM(Observed):
    """Pseudo-inverse guidance. Arguments as ``Observed``."""

    backward: ClassVar[int] = 1

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + gain J' A' (r_t^2 A A' + s^2 I)^-1 (y - A D)."""
        spread = self.prior_spread(x, t)
        denoised, gradient = self.likelihood_gradient(
            x, t, lambda residual, _: self.operator.solve(residual, spread, self.noise_std**2), condition
        )
        return denoised + self.gain(x, t) * gradient
