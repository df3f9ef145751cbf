r"""Variance-exploding processes: alpha = 1, and sigma grows geometrically or linearly in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE, as_float64
from solvers.errors import InputError


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, g = sigma_min r^t sqrt(2 log r), r = sigma_max / sigma_min.

    sigma(t)^2 = sigma_min^2 (r^{2t} - 1) is the exact kernel of that g from t = 0 (Song et al. 2021, eq. 30,
    whose recipe leaves the -1 out and so starts at sigma_min).

    >>> round(float(VESDE(sigma_max=50.0).sigma(torch.tensor(1.0, dtype=torch.float64))), 6)
    49.999999
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                f"expected 0 < sigma_min < sigma_max; got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min sqrt(r^{2t} - 1)."""
        return self.sigma_min * torch.sqrt(torch.expm1(self._rate * t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and g^2 / (2 sigma)."""
        return torch.zeros_like(t), self.variance_slope(t) / (2 * self.sigma(t))

    def variance_slope(self, t: Tensor) -> Tensor:
        """g^2, since f = 0."""
        return self.sigma_min**2 * self._rate * torch.exp(self._rate * t)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """Closed form: log(1 + (sigma / sigma_min)^2) / log r^2."""
        log_ratio = -as_float64(half_log_snr) - math.log(self.sigma_min)
        return (torch.nn.functional.softplus(2 * log_ratio, threshold=1e9) / self._rate).clamp(0, 1)


@dataclass(frozen=True)
class EDM(SDE):
    """alpha = 1, sigma = sigma_max t (Karras et al. 2022, sigma proportional to time).

    >>> float(EDM(sigma_max=80.0).half_log_snr(0.0125))
    0.0
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_max < math.inf:
            raise InputError(f"sigma_max must be positive; got {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_max t."""
        return self.sigma_max * t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and sigma_max."""
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """Closed form: exp(-lambda) / sigma_max."""
        rho = torch.exp(-as_float64(half_log_snr))
        return (rho / self.sigma_max).clamp(0, 1)
