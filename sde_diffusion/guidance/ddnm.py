r"""DDNM: the null space from the model, the range from the observation (Wang et al. 2023, eq. 13 and section 3.3).

    D_y = D + c_t A^+ (y - A D),       c_t = min(1, sigma / (alpha s)),

the form DDNM+ for noise s: once the noise of the observation exceeds that of the sample, it is followed in part only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_diffusion.guidance.observed import Observed


class DDNM(Observed):
    """Range and null space of A apart. Arguments as ``Observed``."""

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + c_t A^+ (y - A D)."""
        denoised = self.model.denoise(x, t, **condition)
        error = self.observation(x) - self.operator(denoised)
        alpha, sigma = self.scales(x, t)
        share = (sigma / (alpha * self.noise_std)).clamp_max(1) if self.noise_std > 0 else 1.0
        return denoised + share * self.operator.pseudo_inverse(error)
