r"""Forward processes dx = f(t) x dt + g(t) dw and the Gaussian paths x_t = alpha x_0 + sigma eps they define.

    f(t) = d log alpha / dt,    g(t)^2 = d sigma^2/dt - 2 f sigma^2,    lambda(t) = log(alpha / sigma).

t runs over [0, 1]: 0 is data (alpha = 1, sigma = 0) and 1 is noise. Every function here takes a time (or a
tensor of times) of any shape and returns float64 of that shape, accurate to rounding near both ends:
1 - alpha^2 is never formed by subtraction.

Sources: Song et al. 2021 (VP, sub-VP, VE; eq. 9-12 and 29-32), Nichol & Dhariwal 2021 (cosine, eq. 17),
Karras et al. 2022 (sigma = t), Lipman et al. 2023 and Liu et al. 2023 (straight path).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers.errors import choose
from solvers.noise import PRIOR, as_seeds, standard_normal
from solvers.problem import ReverseProcess, Scales

if TYPE_CHECKING:
    from sde_diffusion.score import ScoreModel


def _times(t: float | Tensor) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float64)
    # Checked on the CPU alone: reading a device tensor here would stall every training step.
    if t.device.type == "cpu" and t.numel() > 0:
        low, high = (float(end) for end in t.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"t must lie in [0, 1] (0 is data, 1 is noise); got {low:.6g} to {high:.6g}")
    return t


def _per_sample(c: Tensor, x: Tensor) -> Tensor:
    """A coefficient for each sample, shaped and cast to multiply x; 0-d stays a scalar."""
    return c if c.ndim == 0 else c.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def _derivative(c: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        total = c(t).sum()
        return torch.autograd.grad(total, t)[0] if total.requires_grad else torch.zeros_like(t)


# eq=False: an undecorated subclass with attributes of its own is equal to itself alone, as caches need.
@dataclass(frozen=True, eq=False)
class SDE(ABC):
    """A forward process given by its Gaussian path.

    A schedule of one's own is a frozen dataclass with the two methods ``alpha`` and ``sigma``, written in
    torch operations; derivatives come from automatic differentiation and the inverse of lambda from
    bisection unless overridden.

    >>> class Half(SDE):
    ...     def alpha(self, t):
    ...         return 1 - t**2 / 2
    ...     def sigma(self, t):
    ...         return t
    >>> float(Half().f(0.5))  # alpha'/alpha = -0.5 / 0.875
    -0.571428...
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The scale of the data; 1 at t = 0, non-increasing."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The scale of the noise; 0 at t = 0, increasing."""

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt) by automatic differentiation; override with the closed form."""
        return _derivative(self.alpha, t), _derivative(self.sigma, t)

    def __call__(self, t: float | Tensor) -> Scales:
        """Alpha, sigma and their time derivatives, float64.

        >>> [round(float(c), 6) for c in VPSDE()(0.5)]
        [0.281183, 0.959654, -1.412944, 0.413999]
        """
        t = _times(t)
        return Scales(self.alpha(t), self.sigma(t), *self.slopes(t))

    def marginal(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) alone, float64.

        >>> [round(float(c), 6) for c in VPSDE().marginal(1.0)]
        [0.006572, 0.999978]
        """
        t = _times(t)
        return self.alpha(t), self.sigma(t)

    def f(self, t: float | Tensor) -> Tensor:
        """The drift coefficient, d log alpha / dt (1 / unit of t)."""
        alpha, _, dalpha, _ = self(t)
        return dalpha / alpha

    def g(self, t: float | Tensor) -> Tensor:
        """The diffusion coefficient, g^2 = 2 sigma sigma' - 2 f sigma^2."""
        alpha, sigma, dalpha, dsigma = self(t)
        return (2 * sigma * (dsigma - dalpha / alpha * sigma)).clamp_min(0).sqrt()

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        """Lambda(t) = log(alpha / sigma), decreasing from +inf at t = 0."""
        t = _times(t)
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """The t in [0, 1] at which lambda(t) has a value: bisection to float64 resolution.

        Values beyond the range of lambda give the nearer end.

        >>> float(VPSDE().time(VPSDE().half_log_snr(0.3)))
        0.3...
        """
        target = torch.as_tensor(half_log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(64):
            middle = (low + high) / 2
            noisy = self.half_log_snr(middle) < target
            low, high = torch.where(noisy, low, middle), torch.where(noisy, middle, high)
        return (low + high) / 2

    def velocity_weights(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of the velocity v = a x_0 + b eps that a network may predict.

        By default v = alpha eps - sigma x_0 (Salimans & Ho 2022, eq. 10).
        """
        t = _times(t)
        return -self.sigma(t), self.alpha(t)

    def perturb(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps.

        Args:
            x0: data (B, ...).
            t: one time, or one per sample (B,).
            eps: standard normal noise like x0.

        >>> VPSDE().perturb(torch.ones(1, 1), 0.5, torch.zeros(1, 1))
        tensor([[0.2812]])
        """
        alpha, sigma = self.marginal(t)
        return _per_sample(alpha, x0) * x0 + _per_sample(sigma, x0) * eps

    def prior_std(self) -> float:
        """Standard deviation of x_1 for data of unit variance, sqrt(alpha(1)^2 + sigma(1)^2)."""
        alpha, sigma = self.marginal(1.0)
        return math.hypot(float(alpha), float(sigma))

    def prior(
        self,
        shape: Iterable[int],
        *,
        seeds: Iterable[int] | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Starting points x_1 ~ N(0, prior_std^2 I), each from its own seed.

        Args:
            shape: (B, ...).
            seeds: one integer per sample; ``range(B)`` when absent. x_1 of a seed does not depend on the batch.
            dtype: of the result; the noise itself is always drawn in float32.
            device: of the result.

        >>> x1 = VPSDE().prior((4, 2), seeds=range(4))
        >>> torch.equal(x1[2:3], VPSDE().prior((1, 2), seeds=[2]))
        True
        """
        shape = tuple(shape)
        seeds = as_seeds(range(shape[0]) if seeds is None else seeds, shape[0])
        noise = standard_normal(seeds, shape[1:], PRIOR)
        return noise.to(device=device, dtype=dtype) * self.prior_std()

    def reverse(self, model: ScoreModel, eta: float = 1.0, **condition: Tensor) -> ReverseProcess:
        """The reverse-time process with noise level eta: 1 is the reverse-time SDE (Anderson 1982).

        Args:
            model: a ScoreModel on this path.
            eta: >= 0; every value has the same marginals.
            condition: per-sample tensors that every call of the network receives.

        Raises:
            ValueError: the model belongs to another path, or predicts noise where alpha(1) = 0.
        """
        if model.sde != self:
            raise ValueError(f"this model was made for {model.sde}, not for {self}; use model.sde.reverse(model)")
        if model.predicts not in ("data", "velocity") and float(self.marginal(1.0)[0]) == 0:
            raise ValueError(
                f"{type(self).__name__} has alpha(1) = 0: pure noise tells nothing of x_0, so a network that "
                f"predicts '{model.predicts}' cannot start there; use predicts='velocity' or 'data'"
            )
        return ReverseProcess(model.denoise, self, eta, cost=model.cost, condition=condition)

    def probability_flow(self, model: ScoreModel, **condition: Tensor) -> ReverseProcess:
        """The probability-flow ODE, ``reverse(model, eta=0)`` (Song et al. 2021, eq. 13)."""
        return self.reverse(model, eta=0.0, **condition)


@dataclass(frozen=True)
class _LinearBeta(SDE):
    """Beta(t) = beta_min + t (beta_max - beta_min) and alpha = exp(-1/2 int beta)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max < math.inf or self.beta_max == 0:
            raise ValueError(
                f"expected 0 <= beta_min <= beta_max, beta_max > 0; got beta_min={self.beta_min}, "
                f"beta_max={self.beta_max}"
            )

    def beta(self, t: float | Tensor) -> Tensor:
        """The noise rate beta(t)."""
        return self.beta_min + _times(t) * (self.beta_max - self.beta_min)

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

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-beta alpha / 2 and beta alpha^2 / (2 sigma)."""
        half, alpha = self.beta(t) / 2, self.alpha(t)
        return -half * alpha, half * alpha**2 / self.sigma(t)

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """Closed form: B = log(1 + exp(-2 lambda)), then the quadratic in t."""
        total = torch.nn.functional.softplus(-2 * torch.as_tensor(half_log_snr, dtype=torch.float64), threshold=1e9)
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
            raise ValueError(
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
        dsigma2 = self.sigma_min**2 * self._rate * torch.exp(self._rate * t)
        return torch.zeros_like(t), dsigma2 / (2 * self.sigma(t))


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
            raise ValueError(f"the offset s of the cosine schedule lies in [0, 1); got {self.s}")

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


@dataclass(frozen=True)
class EDM(SDE):
    """alpha = 1, sigma = sigma_max t (Karras et al. 2022, sigma proportional to time).

    >>> float(EDM(sigma_max=80.0).half_log_snr(0.0125))
    0.0
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_max < math.inf:
            raise ValueError(f"sigma_max must be positive; got {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_max t."""
        return self.sigma_max * t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and sigma_max."""
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)


@dataclass(frozen=True)
class Flow(SDE):
    """The straight path alpha = 1 - t, sigma = t of flow matching; velocity is dx/dt = eps - x_0.

    >>> float(Flow().half_log_snr(0.5))
    0.0
    """

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-1 and 1."""
        return -torch.ones_like(t), torch.ones_like(t)

    def velocity_weights(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """v = eps - x_0 (Lipman et al. 2023, eq. 23)."""
        one = torch.ones_like(_times(t))
        return -one, one


SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "cosine": CosineVPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "edm": EDM,
    "flow": Flow,
}


def make_sde(name: str, **settings: Any) -> SDE:
    """An SDE by its name in ``SDES``.

    >>> make_sde("vp", beta_max=10.0)
    VPSDE(beta_min=0.1, beta_max=10.0)
    """
    return choose(name, SDES, "SDE")(**settings)


def sde_name(sde: SDE) -> str:
    """The name of an SDE in ``SDES``.

    Raises:
        ValueError: a class of one's own, which a checkpoint cannot name.

    >>> sde_name(VESDE())
    've'
    """
    for name, kind in SDES.items():
        if type(sde) is kind:
            return name
    raise ValueError(
        f"{type(sde).__name__} is not in SDES, so a checkpoint could not name it; register it: "
        f"sde_diffusion.sde.SDES['my-sde'] = {type(sde).__name__}"
    )
