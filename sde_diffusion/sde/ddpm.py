r"""The discrete-time process of DDPM, on the time axis [0, 1].

T steps x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) eps_i, i = 1, ..., T, have the marginals

    x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps,      abar_i = prod_{j <= i} (1 - beta_j),

(Ho et al. 2020, eq. 2 and 4). Step i is the time t = i/T, and t = 0 is the data. Between two steps log abar
is linear in t, which makes the path that of a VP process with the rate -T log(1 - beta_i) on the interval of
step i: continuous-time solvers run on it, and a grid of times i/T meets the discrete process exactly.

With beta_T = 1 (zero terminal SNR, Lin et al. 2024) x_T is pure noise: abar_T = 0, and alpha itself is linear in t on
the last interval. Networks that predict the velocity or the data start there; from the noise x_0 cannot be found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE, as_float64, as_times
from solvers.errors import InputError, choose


def linear_betas(steps: int) -> Tensor:
    """Betas rising linearly from 0.1/T to 20/T, 1e-4 to 0.02 for T = 1000 (Ho et al. 2020, section 4).

    >>> linear_betas(1000)[[0, -1]].tolist()
    [0.0001, 0.02]
    """
    return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64, device="cpu")


def cosine_betas(steps: int) -> Tensor:
    """Betas of abar = cos^2(pi/2 (t + s)/(1 + s)), s = 0.008, at most 0.999 (Nichol & Dhariwal 2021, eq. 17).

    >>> float(cosine_betas(1000)[-1])
    0.999
    """
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
    abar = torch.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp_max(0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


@dataclass(frozen=True)
class DDPM(SDE):
    """Discrete-time DDPM: alpha^2 = abar at t = i/T, sigma^2 = 1 - alpha^2 (Ho et al. 2020, eq. 4).

    Args:
        steps: T; follows from the betas where they are given.
        schedule: "linear" or "cosine".
        betas: beta_1, ..., beta_T in (0, 1), any sequence of numbers, instead of a schedule by name; beta_T may be 1.

    Raises:
        ValueError: an unknown schedule, no steps, betas outside (0, 1).

    >>> sde = DDPM(betas=(0.5, 0.75))
    >>> [round(float(sde.marginal(t)[0]) ** 2, 6) for t in (0.0, 0.5, 1.0)]  # 1, 1/2, 1/2 * 1/4
    [1.0, 0.5, 0.125]
    """

    steps: int = 1000
    schedule: str = "linear"
    betas: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
            object.__setattr__(self, "steps", len(self.betas))
        if not isinstance(self.steps, int) or not 1 <= self.steps <= 1_000_000:
            raise InputError(f"steps is the number T of betas, at least 1 and at most 1,000,000; got {self.steps!r}")
        choose(self.schedule, SCHEDULES, "beta schedule")
        betas = self.beta_i()
        wrong = ~((betas > 0) & (betas < 1))
        if len(betas) > 1 and float(betas[-1]) == 1 and self.betas is not None:
            wrong[-1] = False
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise InputError(
                f"every beta lies in (0, 1), the last may be 1; beta_{k + 1} of {self.steps} is {float(betas[k]):.6g}"
                + ("" if self.betas else f": the {self.schedule} schedule needs more steps")
            )

    def beta_i(self) -> Tensor:
        """beta_1, ..., beta_T, (T,) float64."""
        if self.betas is not None:
            return torch.tensor(self.betas, dtype=torch.float64, device="cpu")
        return SCHEDULES[self.schedule](self.steps)

    def timestep(self, t: Tensor) -> Tensor:
        """The index i - 1 in 0, ..., T - 1 that a DDPM network receives at t, a fraction between two steps.

        >>> DDPM().timestep(torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64))
        tensor([  0., 499., 999.], dtype=torch.float64)
        """
        return (as_times(t) * self.steps - 1).clamp_min(0)

    def to_step(self, t: Tensor) -> Tensor:
        """The step that t belongs to, ceil(t T) / T: a uniform t becomes a uniform step.

        >>> DDPM(steps=4, schedule="cosine").to_step(torch.tensor([0.1, 0.25, 0.26], dtype=torch.float64))
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
        """
        # A multiple of 1/T may be off by rounding: it is not pushed to the next step.
        return (torch.ceil(t * self.steps - 1e-6) / self.steps).clamp(1 / self.steps, 1)

    def grid(self, steps: int) -> Tensor:
        """Times of DDIM's evenly spaced subset of steps, from 1 to 0: (steps + 1,), each i/T with whole i.

        >>> DDPM(steps=10, schedule="cosine").grid(4)
        tensor([1.0000, 0.8000, 0.5000, 0.2000, 0.0000], dtype=torch.float64)
        """
        if not 1 <= steps <= self.steps:
            raise InputError(f"a grid of a process of {self.steps} steps has 1 to {self.steps} of them; got {steps}")
        return torch.linspace(self.steps, 0, steps + 1, dtype=torch.float64, device="cpu").round() / self.steps

    @property
    def _ends_in_noise(self) -> bool:
        return self.betas is not None and self.betas[-1] == 1

    def _log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha and its time derivative, that of the interval below t."""
        nodes = _nodes(self, t.device)
        i = torch.ceil(t * self.steps - 1e-9).long().clamp(1, self.steps)
        low, high = nodes[i - 1], nodes[i]
        # From the upper node, so that a step of the process has its own value and not a rounded one.
        left = i - t * self.steps
        log_alpha, slope = high - left * (high - low), (high - low) * self.steps
        if not self._ends_in_noise:
            return log_alpha, slope
        last = i == self.steps
        return torch.where(last, low + torch.log(left), log_alpha), torch.where(last, -self.steps / left, slope)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(abar) at t = i/T."""
        return torch.exp(self._log_alpha(t)[0])

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - abar) at t = i/T."""
        return _sigma(self._log_alpha(t)[0])

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f alpha and -f alpha^2 / sigma, f the slope of log alpha below t."""
        log_alpha, f = self._log_alpha(t)
        alpha = torch.exp(log_alpha)
        if not self._ends_in_noise:
            return f * alpha, -f * alpha**2 / _sigma(log_alpha)
        # At t = 1 alpha is 0 and f infinite; their product is the slope of the last interval.
        dalpha = torch.where(alpha == 0, -self.steps * torch.exp(_nodes(self, t.device)[-2]), f * alpha)
        return dalpha, -dalpha * alpha / _sigma(log_alpha)

    def variance_slope(self, t: Tensor) -> Tensor:
        """-2 f alpha^2, f the slope of log alpha below t."""
        log_alpha, f = self._log_alpha(t)
        return -2 * f * torch.exp(2 * log_alpha)

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        """log alpha - log sigma."""
        log_alpha, _ = self._log_alpha(as_times(t))
        return log_alpha - torch.log(_sigma(log_alpha))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """Closed form: log alpha = -log(1 + exp(-2 lambda)) / 2, then its place between two nodes."""
        target = -torch.nn.functional.softplus(
            -2 * as_float64(half_log_snr), threshold=1e9
        ) / 2  # fmt: skip
        nodes = _nodes(self, target.device)
        i = torch.searchsorted(-nodes, -target.contiguous()).clamp(1, self.steps)
        low, high = nodes[i - 1], nodes[i]
        left = (high - target) / (high - low)
        if self._ends_in_noise:
            left = torch.where(i == self.steps, torch.exp(target - low), left)
        return ((i - left) / self.steps).clamp(0, 1)

    def prior_std(self) -> float:
        """1: sampling starts from a standard normal x_T, which the marginal is to rounding."""
        return 1.0


def _sigma(log_alpha: Tensor) -> Tensor:
    # Not the negative: minus zero at t = 0 would make alpha / sigma negative.
    return torch.expm1(2 * log_alpha).abs().sqrt()


@lru_cache(maxsize=16)
def _nodes(sde: DDPM, device: torch.device) -> Tensor:
    """log alpha at t = 0, 1/T, ..., 1."""
    log_alpha = torch.log1p(-sde.beta_i()).cumsum(0) / 2
    return torch.cat([log_alpha.new_zeros(1), log_alpha]).to(device)
