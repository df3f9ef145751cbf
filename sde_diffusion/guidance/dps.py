r"""DPS: the likelihood at the denoised sample (Chung et al. 2023, eq. 16 and algorithm 1).

    grad_x log p(y | x_t) ~ grad_x log N(y; A D(x, t), s_t^2 I),      s_t^2 = s^2 + ||y - A D||^2 / m,

with m observed entries. The paper's step size, zeta / ||y - A D||, is such a variance that follows the residual; the
noise s bounds it from below, so that the form does not depend on the solver's steps.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sde_diffusion.guidance.observations import inner
from sde_diffusion.guidance.observed import Observed


class DPS(Observed):
    """A model given y, by diffusion posterior sampling. Arguments as ``Observed``.

    Args:
        scale: zeta, a factor of the gradient.
        arguments: as ``Observed``.
        options: as ``Observed``.

    >>> import torch
    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    >>> model = DPS(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([1.0])).round(decimals=3)  # the posterior mean is (0.5, 0)
    tensor([[0.6670, 0.0000]])
    """

    backward: ClassVar[int] = 1

    def __init__(self, *arguments: Any, scale: float = 1.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.scale = scale

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + zeta (gain) J' A' (y - A D) / s_t^2, with the gain of ``PiGDM``."""

        def weigh(residual: Tensor, vjp: Any) -> Tensor:
            mean_square = inner(residual, residual) / residual[0].numel()
            return residual / (self.noise_std**2 + mean_square).clamp_min(1e-12)

        denoised, gradient = self.likelihood_gradient(x, t, weigh, condition)
        return denoised + self.scale * self.gain(x, t) * gradient
