r"""DDNM: the null space from the model, the range from the observation (Wang et al. 2023, eq. 13 and section 3.3).

    D_y = D + c_t A^+ (y - A D),       c_t = min(1, sigma / (alpha s)),

the form DDNM+ for noise s: once the noise of the observation exceeds that of the sample, it is followed in part only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sde_diffusion.guidance.observed import Observed


class DDNM(Observed):
    """A model given y, by D + c_t A^+ (y - A D) with c_t = min(1, sigma / (alpha s)). Arguments as ``Observed``.

    >>> import torch
    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    >>> model = DDNM(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([0.2])).round(decimals=3)  # c_t = 0.72
    tensor([[0.7200, 0.0000]])
    """

    pseudo_inverse: ClassVar[bool] = True

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + c_t A^+ (y - A D)."""
        denoised = self.model.denoise(x, t, **condition)
        error = self.observation(x) - self.operator(denoised)
        alpha, sigma = self.scales(x, t)
        share = (sigma / (alpha * self.noise_std)).clamp_max(1) if self.noise_std > 0 else 1.0
        return denoised + share * self.operator.pseudo_inverse(error)
