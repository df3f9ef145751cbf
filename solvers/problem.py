r"""Problems to integrate: a reverse diffusion process, or any ODE or SDE.

A forward process x_t = alpha(t) x_0 + sigma(t) eps, with t = 0 at the data and t = 1 at the noise, has
a family of reverse-time processes with the same marginals, indexed by eta >= 0 (Song et al. 2021,
eq. 6 and 13; Karras et al. 2022, eq. 6):

    dx = [ v(x, t) - eta^2 g(t)^2 / 2 * score(x, t) ] dt + eta g(t) dw,      t from 1 down to 0,

    v(x, t)     = alpha'(t) D(x, t) + sigma'(t) (x - alpha(t) D(x, t)) / sigma(t),
    score(x, t) = (alpha(t) D(x, t) - x) / sigma(t)^2,
    g(t)^2      = 2 sigma sigma' - 2 (alpha'/alpha) sigma^2.

eta = 0 is the probability-flow ODE and eta = 1 the reverse-time SDE. The only unknown is the posterior
mean D(x, t) = E[x_0 | x_t = x]; it is the one expensive call, and solvers see nothing else of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.brownian_path import TimeChange
from solvers.errors import InputError


class Scales(NamedTuple):
    """The scales of x_t = alpha x_0 + sigma eps at a time, and their time derivatives, float64.

    >>> Scales(*torch.tensor([0.6, 0.8, -1.0, 1.0])).sigma
    tensor(0.8000)
    """

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


Path = Callable[[Tensor], Scales]
"""t -> Scales: a process, as solvers see it."""


def batch_times(t: Tensor, x: Tensor) -> Tensor:
    """Times as a model receives them: (B,) float64 on the device of x.

    Args:
        t: a 0-d time for the whole batch, or one time per sample, (B,) or (B, 1, ..., 1).
        x: the batch, (B, ...).

    >>> batch_times(torch.tensor(0.5, dtype=torch.float64), torch.zeros(3, 2)).shape
    torch.Size([3])
    """
    if t.ndim == 0:
        return torch.full((len(x),), float(t), dtype=torch.float64, device=x.device)
    return t.reshape(-1)


def like(c: Tensor, x: Tensor) -> Tensor:
    """A float64 coefficient ready to multiply x without promoting it.

    A 0-d CPU tensor acts as a scalar in every dtype and on every device; per-sample coefficients are
    cast.
    """
    return c if c.ndim == 0 else c.to(x.dtype)


def _plain(t: Any) -> Any:
    """Position and variance of plain time; a module-level function, so that it can be a cache key."""
    return t


@dataclass(frozen=True)
class Equation:
    """Any equation dx = model(x, t) dt + g(x, t) dw, integrated from the first to the last time of a grid.

    Attributes:
        model: the drift, (x, t) -> like x, with t of shape (B,).
        g: the diffusion, (x, t) -> broadcastable to x; None for an ODE.
        cost: network passes in one call of ``model``.
        condition: arguments of every call of ``model`` besides (x, t), by name; see ``solvers.conditions``.

    >>> decay = Equation(lambda x, t: -x)
    >>> decay.drift(torch.ones(1, 1), torch.tensor(0.0))
    tensor([[-1.]])
    """

    model: Callable[..., Tensor]
    g: Callable[[Tensor, Tensor], Tensor] | None = None
    cost: int = 1
    condition: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def stochastic(self) -> bool:
        """Whether the process is stochastic."""
        return self.g is not None

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift at one time for the batch or one time per sample."""
        return self.model(x, batch_times(t, x), **self.condition)

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """The coefficient of dw; zero for an ODE."""
        if self.g is None:
            return torch.zeros((), dtype=torch.float64, device="cpu")
        return self.g(x, batch_times(t, x))

    @property
    def clock(self) -> TimeChange:
        """The clock of the driving Brownian motion: plain time."""
        return TimeChange(_plain, _plain)


class KnownTimes:
    """A path with cached scales at the times of a grid; equal to the path it wraps.

    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> known = KnownTimes(straight, torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64))
    >>> float(known(torch.tensor(0.25, dtype=torch.float64)).alpha), known == KnownTimes(straight, torch.ones(1))
    (0.75, True)
    """

    def __init__(self, path: Callable[[Tensor], Scales], times: Tensor) -> None:
        self.path = path
        columns = (c.unbind() for c in path(times))
        self._at = dict(zip(times.tolist(), map(Scales._make, zip(*columns, strict=True)), strict=True))

    def __call__(self, t: Tensor) -> Scales:
        """The scales at t."""
        found = self._at.get(float(t)) if t.ndim == 0 else None
        return self.path(t) if found is None else found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KnownTimes) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


# Brownian paths of reverse processes live on this range of lambda = log(alpha / sigma).
_LAMBDA_MIN, _LAMBDA_MAX = -16.0, 24.0
_SPAN = _LAMBDA_MAX - _LAMBDA_MIN


def _snr(u: Any) -> Any:
    """The variance of the path at u; a module-level function, so that it can be a cache key."""
    exponent = 2 * (_LAMBDA_MIN + u * _SPAN)
    return torch.exp(exponent) if isinstance(exponent, Tensor) else math.exp(exponent)


class LearnedVariance(NamedTuple):
    """The call of a network that learned the variance of its steps as well.

    Attributes:
        of: the model (x, t) -> E[x_0 | x_t] that the call stands for: with another model it is not used.
        call: (x, t) -> E[x_0 | x_t] and the share s of log Sigma = s log beta + (1 - s) log beta~, like x; the share is
            None where the network learned none.
    """

    of: Callable[..., Tensor]
    call: Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class ReverseProcess:
    r"""The reverse-time process of a path, as a first-class object.

    Attributes:
        model: (x, t) -> E[x_0 | x_t = x], like x; t is (B,).
        path: t -> Scales; an SDE, or anything with these marginals.
        eta: 0 for the probability-flow ODE, 1 for the reverse-time SDE, or any value between or above.
        cost: network passes in one call of ``model`` (2 for a guided pair); the NFE meter counts them.
        condition: arguments of every call of ``model`` besides (x, t), by name; see ``solvers.conditions``.
        variance: the call of ``model`` with its learned variance, or None.

    Raises:
        ValueError: eta is negative or not finite, or cost < 1.

    A Dirac at 3 under x_t = (1 - t) x_0 + t eps; its flow is a straight line:

    >>> flow = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> ode = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), flow)
    >>> ode.drift(torch.tensor([[1.0]]), torch.tensor(0.5, dtype=torch.float64))
    tensor([[-4.]])
    """

    model: Callable[..., Tensor]
    path: Callable[[Tensor], Scales]
    eta: float = 0.0
    cost: int = field(default=1, kw_only=True)
    condition: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    variance: LearnedVariance | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise InputError(f"eta is the noise level of the reverse process and must be >= 0; got {self.eta}")
        if self.cost < 1:
            raise InputError(f"cost is the number of network passes per call, at least 1; got {self.cost}")

    @property
    def stochastic(self) -> bool:
        """Whether the process is stochastic."""
        return self.eta > 0

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]: one model evaluation."""
        return self.model(x, batch_times(t, x), **self.condition)

    def denoise_with_share(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """E[x_0 | x_t = x], and the share of a learned variance or None: one model evaluation."""
        if self.variance is None or self.variance.of != self.model:
            return self.denoise(x, t), None
        return self.variance.call(x, batch_times(t, x), **self.condition)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift of the reverse process in t (integrate it towards smaller t)."""
        return self.drift_from(self.denoise(x, t), x, t)

    def drift_from(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The drift, given the denoised x: no model evaluation."""
        scales = self.path(t)
        if t.ndim == 0:
            # As numbers: arithmetic on tensors without dimensions costs more than the sum itself.
            alpha, sigma, dalpha, dsigma = (float(c) for c in scales)
            if alpha > 0 and sigma > 0:
                a, b = _drift_weights(alpha, sigma, dalpha, dsigma, self.eta)
                return x.mul(b).add_(x0, alpha=a)
        a, b = (like(c, x) for c in _drift_weights(*scales, self.eta))
        return a * x0 + b * x

    def diffusion(self, x: Tensor, t: Tensor) -> Tensor:
        """The coefficient of dw, eta g(t); zero for eta = 0, where g is infinite too."""
        if self.eta == 0:
            return torch.zeros((), dtype=torch.float64, device=x.device)
        scales = self.path(t)
        if t.ndim == 0:
            alpha, sigma, dalpha, dsigma = (float(c) for c in scales)
            if alpha > 0:
                g2 = _squared_diffusion(alpha, sigma, dalpha, dsigma)
                return torch.tensor(self.eta * max(g2, 0.0) ** 0.5, dtype=torch.float64, device="cpu")
        return like(self.eta * _squared_diffusion(*scales).clamp_min(0).sqrt(), x)

    def finish(self, x: Tensor, t: Tensor) -> Tensor:
        """The step of every solver to sigma = 0: x_0 = E[x_0 | x_t = x]."""
        return self.denoise(x, t)

    def half_log_snr(self, t: float) -> float:
        """Lambda(t) = log(alpha / sigma) as a number; infinite at the ends where alpha or sigma is 0."""
        alpha, sigma = (float(c) for c in self.path(torch.tensor(t, dtype=torch.float64, device="cpu"))[:2])
        if alpha == 0 or sigma == 0:
            return -math.inf if alpha == 0 else math.inf
        return math.log(alpha / sigma)

    @property
    def clock(self) -> TimeChange:
        """The clock of the driving Brownian motion: the signal-to-noise ratio alpha^2 / sigma^2.

        On it the exact solution of the reverse SDE for a constant D is an increment of Brownian motion,
        so that coarse and fine grids see one and the same noise.
        """

        def position(t: Any) -> Any:
            if isinstance(t, Tensor):
                alpha, sigma = self.path(t)[:2]
                return ((torch.log(alpha / sigma) - _LAMBDA_MIN) / _SPAN).clamp(0, 1)
            return min(max((self.half_log_snr(t) - _LAMBDA_MIN) / _SPAN, 0.0), 1.0)

        return TimeChange(position, _snr)


def _drift_weights(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, eta: float) -> tuple[Any, Any]:
    """(a, b) of the drift a D + b x, of numbers or tensors."""
    # v - eta^2 g^2 / 2 score, with the x - alpha D of both terms collected.
    slope = dsigma / sigma
    if eta > 0:
        slope = slope + eta**2 * (dsigma / sigma - dalpha / alpha)
    return dalpha - slope * alpha, slope


def _squared_diffusion(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any) -> Any:
    """g^2, of numbers or tensors."""
    return 2 * sigma * (dsigma - dalpha / alpha * sigma)


Problem = Equation | ReverseProcess
