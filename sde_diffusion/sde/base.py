r"""Base class of forward processes: derivatives, drift and diffusion, noised data, the prior, the reverse."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.denoiser import Denoiser
from solvers.errors import InputError
from solvers.grids import time_where
from solvers.noise import PRIOR, as_seeds, standard_normal
from solvers.problem import Equation, ReverseProcess, Scales


def as_float64(value: float | Tensor) -> Tensor:
    """A number as a float64 tensor on the CPU, for every default device; a tensor keeps its device.

    >>> as_float64(2)
    tensor(2., dtype=torch.float64)
    """
    return (
        value.to(torch.float64) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
    )


def as_times(t: float | Tensor) -> Tensor:
    """Times as float64; refuses what lies outside [0, 1].

    >>> as_times(0.5)
    tensor(0.5000, dtype=torch.float64)
    """
    t = as_float64(t)
    # Checked on the CPU alone: reading a device tensor here would stall every training step.
    if t.device.type == "cpu" and t.numel() > 0:
        low, high = (float(end) for end in t.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise InputError(f"t must lie in [0, 1] (0 is data, 1 is noise); got {low:.6g} to {high:.6g}")
    return t


def per_sample(c: Tensor, x: Tensor) -> Tensor:
    """A coefficient for each sample, shaped and cast to multiply x; 0-d stays a scalar.

    >>> per_sample(torch.ones(4), torch.zeros(4, 3, 2)).shape
    torch.Size([4, 1, 1])
    """
    return c if c.ndim == 0 else c.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def _derivative(c: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        total = c(t).sum()
        return torch.autograd.grad(total, t)[0] if total.requires_grad else torch.zeros_like(t)


@dataclass(frozen=True)
class _Drift:
    """(x, t) -> f(t) x."""

    sde: SDE

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return per_sample(self.sde.f(t), x) * x


@dataclass(frozen=True)
class _Diffusion:
    """(x, t) -> g(t), to multiply x's noise."""

    sde: SDE

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return per_sample(self.sde.g(t), x)


# eq=False: an undecorated subclass with attributes is equal only to itself, as caches need.
@dataclass(frozen=True, eq=False)
class SDE(ABC):
    """A forward process given by its Gaussian path.

    A process of your own is a frozen dataclass with the two methods ``alpha`` and ``sigma``, written in
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

        >>> from sde_diffusion.sde import VPSDE
        >>> [round(float(c), 6) for c in VPSDE()(0.5)]
        [0.281183, 0.959654, -1.412944, 0.413999]
        """
        t = as_times(t)
        return Scales(self.alpha(t), self.sigma(t), *self.slopes(t))

    def marginal(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) alone, float64.

        >>> from sde_diffusion.sde import VPSDE
        >>> [round(float(c), 6) for c in VPSDE().marginal(1.0)]
        [0.006572, 0.999978]
        """
        t = as_times(t)
        return self.alpha(t), self.sigma(t)

    def f(self, t: float | Tensor) -> Tensor:
        """The drift coefficient, d log alpha / dt (1 / unit of t)."""
        alpha, _, dalpha, _ = self(t)
        return dalpha / alpha

    def g(self, t: float | Tensor) -> Tensor:
        """The diffusion coefficient, g^2 = d sigma^2/dt - 2 f sigma^2; at t = 0, where sigma = 0, its limit.

        >>> from sde_diffusion.sde import VPSDE
        >>> round(float(VPSDE().g(0.0)) ** 2, 9)  # beta(0)
        0.1
        """
        t = as_times(t)
        alpha, sigma, dalpha, _ = self(t)
        return (self.variance_slope(t) - 2 * dalpha / alpha * sigma**2).clamp_min(0).sqrt()

    def variance_slope(self, t: Tensor) -> Tensor:
        """d sigma^2/dt at times t; override with the closed form.

        Where sigma = 0, sigma' may be infinite: there the slope is that of a parabola through sigma^2 at 0, 1e-4 and
        2e-4.
        """
        sigma, dsigma = self.sigma(t), self.slopes(t)[1]
        h = 1e-4
        near, far = (self.sigma(torch.full((), c, dtype=torch.float64, device=t.device)) ** 2 / c for c in (h, 2 * h))
        return torch.where(sigma == 0, 2 * near - far, 2 * sigma * dsigma)

    def half_log_snr(self, t: float | Tensor) -> Tensor:
        """Lambda(t) = log(alpha / sigma), decreasing from +inf at t = 0."""
        t = as_times(t)
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time(self, half_log_snr: float | Tensor) -> Tensor:
        """The t in [0, 1] at which lambda(t) has a value: bisection to float64 resolution.

        Values outside the range of lambda give the closer end.

        >>> from sde_diffusion.sde import VPSDE
        >>> float(VPSDE().time(VPSDE().half_log_snr(0.3)))
        0.3...
        """
        return time_where(self.half_log_snr, as_float64(half_log_snr))

    def to_step(self, t: Tensor) -> Tensor:
        """The times that training on t stands for: t itself, or the next one of a discrete-time process."""
        return t

    def velocity_weights(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of the velocity v = a x_0 + b eps that a network may predict.

        By default v = alpha eps - sigma x_0 (Salimans & Ho 2022, eq. 10).
        """
        t = as_times(t)
        return -self.sigma(t), self.alpha(t)

    def perturb(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps.

        Args:
            x0: data (B, ...).
            t: one time, or one per sample (B,).
            eps: standard normal noise like x0.

        >>> from sde_diffusion.sde import VPSDE
        >>> VPSDE().perturb(torch.ones(1, 1), 0.5, torch.zeros(1, 1))
        tensor([[0.2812]])
        """
        alpha, sigma = self.marginal(t)
        return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * eps

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
            seeds: one integer per sample; ``range(B)`` by default. x_1 of a seed does not depend on the batch.
            dtype: dtype of the result; the noise itself is always drawn in float32.
            device: device of the result.

        >>> from sde_diffusion.sde import VPSDE
        >>> x1 = VPSDE().prior((4, 2), seeds=range(4))
        >>> torch.equal(x1[2:3], VPSDE().prior((1, 2), seeds=[2]))
        True
        """
        shape = tuple(shape)
        seeds = as_seeds(range(shape[0]) if seeds is None else seeds, shape[0])
        noise = standard_normal(seeds, shape[1:], PRIOR)
        return noise.to(device=device, dtype=dtype) * self.prior_std()

    def forward(self) -> Equation:
        """The forward SDE dx = f(t) x dt + g(t) dw, to be solved along increasing times.

        It turns data at t = 0 into noise; over any interval (s, t) its transition has the mean alpha_t / alpha_s x_s.

        >>> import torch
        >>> from sde_diffusion.sde import VPSDE
        >>> from solvers import solve
        >>> times = torch.linspace(0, 0.2, 101, dtype=torch.float64)
        >>> x0 = torch.ones(4000, 1, dtype=torch.float64)
        >>> out = solve(VPSDE().forward(), x0, solver="euler-maruyama", grid=times, seeds=range(4000)).x
        >>> abs(float(out.mean()) - float(VPSDE().marginal(0.2)[0])) < 0.04  # alpha = 0.811
        True
        """
        return Equation(_Drift(self), _Diffusion(self))

    def reverse(self, model: Denoiser, eta: float = 1.0, **condition: Any) -> ReverseProcess:
        """The reverse-time process with noise level eta: 1 is the reverse-time SDE (Anderson 1982).

        Args:
            model: a ScoreModel, or any other ``Denoiser``, on this path.
            eta: >= 0; every value has the same marginals.
            condition: arguments of every call of the network besides (x, t); see ``solvers.conditions``.

        Raises:
            ValueError: the model belongs to another path, or predicts noise where alpha(1) = 0.
        """
        if model.sde != self:
            raise InputError(f"this model was made for {model.sde}, not for {self}; use model.sde.reverse(model)")
        model.check_defined_at_pure_noise()
        learned = getattr(model, "learned_variance", None)
        return ReverseProcess(
            model.denoise, self, eta, cost=model.cost, condition=condition, variance=learned() if learned else None
        )

    def probability_flow(self, model: Denoiser, **condition: Any) -> ReverseProcess:
        """The probability-flow ODE, ``reverse(model, eta=0)`` (Song et al. 2021, eq. 13)."""
        return self.reverse(model, eta=0.0, **condition)
