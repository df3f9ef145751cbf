r"""Replacement on the denoised sample: its observed part becomes the observation (Song et al. 2021, appendix I.2).

    D_y = D + A^+ (y - A D),

the projection of D onto A x = y. It ignores the noise of the observation and what y says of the hidden part, so its
law is biased even for Gaussian data; it needs no gradient.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sde_diffusion.guidance.observed import Observed


class Replacement(Observed):
    """A model given y, by projection of the denoised sample: D + A^+ (y - A D). Arguments as ``Observed``.

    >>> import torch
    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    >>> model = Replacement(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([1.0])).round(decimals=3)  # the posterior mean is (0.5, 0)
    tensor([[1., 0.]])
    """

    pseudo_inverse: ClassVar[bool] = True

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + A^+ (y - A D)."""
        denoised = self.model.denoise(x, t, **condition)
        return denoised + self.operator.pseudo_inverse(self.observation(x) - self.operator(denoised))
