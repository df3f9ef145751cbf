r"""DiffPIR: a proximal step on the denoised sample (Zhu et al. 2023, eq. 13).

    D_y = argmin_z  ||y - A z||^2 / (2 s^2) + ||z - D||^2 / (2 r^2),      r^2 = sigma^2 / (lambda alpha^2),
        = D + r^2 A' (r^2 A A' + s^2 I)^-1 (y - A D).

No gradient of the network is needed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_diffusion.guidance.observations import with_axes_of
from sde_diffusion.guidance.observed import Observed
from solvers.errors import InputError


class DiffPIR(Observed):
    """A model given y, by a proximal step from the denoised sample. Arguments as ``Observed``.

    Args:
        strength: lambda, > 0: the larger, the less the observation counts.
        arguments: as ``Observed``.
        options: as ``Observed``.

    Raises:
        ValueError: a strength that is not positive.

    >>> import torch
    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    >>> model = DiffPIR(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([0.2])).round(decimals=3)  # r^2 / (r^2 + 1)
    tensor([[0.3420, 0.0000]])
    """

    def __init__(self, *arguments: Any, strength: float = 1.0, **options: Any) -> None:
        if not strength > 0:
            raise InputError(f"the strength of the prior must be positive; got {strength}")
        super().__init__(*arguments, **options)
        self.strength = strength

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The proximal point."""
        denoised = self.model.denoise(x, t, **condition)
        error = self.observation(x) - self.operator(denoised)
        alpha, sigma = self.scales(x, t)
        # Both sides are divided by r^2, which is infinite where alpha = 0.
        b = self.strength * (self.noise_std * alpha / sigma) ** 2
        return denoised + self.operator.adjoint(self.operator.solve(error, 1.0, with_axes_of(error, b)))
