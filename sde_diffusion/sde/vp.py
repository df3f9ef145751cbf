r"""Variance-preserving processes: linear beta, its sub-VP relative, and the cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE, as_float64, as_times
from solvers.errors import InputError


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """Beta(t) = beta_min + t (beta_max - beta_min) and alpha = exp(-1/2 int beta)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max < math.inf or self.beta_max == 0:
            raise InputError(
                f"expected 0 <= beta_min <= beta_max, beta_max > 0; got beta_min={self.beta_min}, "
                f"beta_max={self.beta_max}"
            )

    def beta(self, t: float | Tensor) -> Tensor:
        """The noise rate beta(t)."""
        return self.beta_min + as_times(t) * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * ((self.beta_max - self.beta_min) / 2))

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-B/2), B = beta_min t + (beta_max - beta_min) t^2 / 2."""
        return torch.exp(-self._integral(t) / 2)


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance preserving: dx = -1/2 beta x dt + sqrt(beta) dw, sigma^2 = 1 - alpha^2 (Song et al. 2021, eq. 11).

    Args:
        beta_min: beta(0).
        beta_max: beta(1).

    >>> round(float(VPSDE().g(1.0)) ** 2, 9)  # beta(1)
    20.0
    """

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B))."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def marginal(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Both from one B: every call of a network comes by here."""
        total = self._integral(as_times(t))
        return torch.exp(-total / 2), torch.sqrt(-torch.expm1(-total))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-beta alpha / 2 and beta alpha^2 / (2 sigma)."""
        half, alpha = self.beta(t) / 2, self.alpha(t)
        return -half * alpha, half * alpha**2 / self.sigma(t)

    def variance_slope(self, t: Tensor) -> Tensor:
        """Beta alpha^2."""
        return self.beta(t) * self.alpha(t) ** 2

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """Closed form: B = log(1 + exp(-2 lambda)), then the quadratic in t."""
        total = torch.nn.functional.softplus(-2 * as_float64(half_log_snr), threshold=1e9)
        rise = self.beta_max - self.beta_min
        # The root of rise t^2/2 + beta_min t = B, written without cancellation.
        return (2 * total / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * rise * total))).clamp(0, 1)


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP: sigma = 1 - alpha^2, g^2 = beta (1 - exp(-2 B)) (Song et al. 2021, eq. 12).

    >>> sde = SubVPSDE()
    >>> bool(torch.isclose(sde.g(0.4) ** 2, sde.beta(0.4) * (1 - sde.alpha(torch.tensor(0.4)) ** 4)))
    True
    """

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B)."""
        return -torch.expm1(-self._integral(t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-beta alpha / 2 and beta alpha^2."""
        beta, alpha = self.beta(t), self.alpha(t)
        return -beta / 2 * alpha, beta * alpha**2


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Variance preserving with alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) (Nichol & Dhariwal 2021, eq. 17).

    alpha(1) = 0 exactly: x_1 is pure noise, and a network must predict the data or the velocity.

    >>> CosineVPSDE()(1.0).alpha
    tensor(0., dtype=torch.float64)
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.s < 1:
            raise InputError(f"the offset s of the cosine schedule lies in [0, 1); got {self.s}")

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    @property
    def _start(self) -> float:
        return self._rate * self.s

    def alpha(self, t: Tensor) -> Tensor:
        """Written as a sine of 1 - t, which is exactly 0 at t = 1."""
        return torch.sin(self._rate * (1 - t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2), by cos^2 a - cos^2 b = sin(a + b) sin(b - a)."""
        b = self._rate * t
        return torch.sqrt(torch.sin(2 * self._start + b) * torch.sin(b)) / math.cos(self._start)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha/dt, and -alpha alpha' / sigma."""
        dalpha = -self._rate * torch.cos(self._rate * (1 - t)) / math.cos(self._start)
        return dalpha, -self.alpha(t) * dalpha / self.sigma(t)

    def variance_slope(self, t: Tensor) -> Tensor:
        """-2 alpha d alpha/dt."""
        return -2 * self.alpha(t) * self.slopes(t)[0]
