r"""The three forms of the exponential integral, and the variables in which its integrand is a polynomial.

With h = lambda_s - lambda_t, H = (1 + tau^2) h and u the fraction of a step from t to s in lambda, a form is a quantity
m = a x_0 + b x, what a network of that parametrization predicts, with

    x_s = decay x + Int_0^1 kernel(u) m(u) du + noise xi

exactly (the formulas are in ``solvers.exponential.adams``). Where alpha_t = 0 the data and the velocity form are
integrals over v = alpha / sigma, with equal steps of v for u.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from solvers.errors import InputError, choose
from solvers.exponential.quadrature import POINTS, Array
from solvers.exponential.quadrature import WEIGHTS as QUADRATURE
from solvers.noise_clock import regular_clock

# The end of the step is added with weight 0, so that the kernel's value there is at hand.
U, W = np.append(POINTS, 1.0), np.append(QUADRATURE, 0.0)


class Integral(NamedTuple):
    """A step in a form: the factor of x, the kernel at the points ``U``, and the factor of the noise."""

    decay: float
    kernel: Array
    noise: float


class Form(ABC):
    """The interpolated quantity, m = a x_0 + b x, and the integral that contains it."""

    regular: ClassVar[bool] = True
    """Whether steps from pure noise are an integral of m."""

    @abstractmethod
    def value(self, alpha: float, sigma: float) -> tuple[float, float]:
        """(a, b) of m."""

    @abstractmethod
    def integral(self, tau: float, alpha: Array, sigma: Array, h: float, rho: Array) -> Integral:
        """A step.

        Args:
            tau: the noise level.
            alpha: at the start and the end of the step.
            sigma: likewise.
            h: its length in lambda.
            rho: sigma / alpha at the points ``U``.
        """

    @abstractmethod
    def from_pure_noise(self, alpha: Array, sigma: Array, v: Array) -> Integral:
        """A step without noise that starts where alpha = 0; v is alpha / sigma at the points ``U``."""


@dataclass(frozen=True)
class DataForm(Form):
    """m = x_0.

    >>> DataForm().value(0.6, 0.8)
    (1.0, 0.0)
    """

    def value(self, alpha: float, sigma: float) -> tuple[float, float]:
        """x_0."""
        return 1.0, 0.0

    def integral(self, tau: float, alpha: Array, sigma: Array, h: float, rho: Array) -> Integral:
        """alpha_s Int H e^{-H (1 - u)} x_0 du."""
        big = (1 + tau**2) * h
        decay = sigma[1] / sigma[0] * math.exp(-(tau**2) * h)
        noise = sigma[1] * math.sqrt(max(-math.expm1(-2 * tau**2 * h), 0.0))
        return Integral(decay, alpha[1] * big * np.exp(-big * (1 - U)), noise)

    def from_pure_noise(self, alpha: Array, sigma: Array, v: Array) -> Integral:
        """sigma_s Int x_0 dv."""
        return Integral(sigma[1] / sigma[0], np.full_like(v, alpha[1]), 0.0)


@dataclass(frozen=True)
class NoiseForm(Form):
    """m = eps = (x - alpha x_0) / sigma."""

    regular = False

    def value(self, alpha: float, sigma: float) -> tuple[float, float]:
        """Eps."""
        return -alpha / sigma, 1 / sigma

    def integral(self, tau: float, alpha: Array, sigma: Array, h: float, rho: Array) -> Integral:
        """-(1 + tau^2) alpha_s Int h rho eps du."""
        rho_t, rho_s = sigma / alpha
        noise = tau * alpha[1] * math.sqrt(max((rho_t - rho_s) * (rho_t + rho_s), 0.0))
        return Integral(alpha[1] / alpha[0], -(1 + tau**2) * alpha[1] * h * rho, noise)

    def from_pure_noise(self, alpha: Array, sigma: Array, v: Array) -> Integral:
        """None: eps says nothing of x_0 there."""
        raise InputError("the noise form has no step from pure noise")


@dataclass(frozen=True)
class VelocityForm(Form):
    """m = F = (n x_0 - d^2 alpha x / n) / (sigma d), n = sqrt(sigma^2 + d^2 alpha^2).

    Args:
        d: sigma_data.
    """

    d: float = 1.0

    def value(self, alpha: float, sigma: float) -> tuple[float, float]:
        """F."""
        n, d = math.hypot(sigma, self.d * alpha), self.d
        return n / (sigma * d), -d * alpha / (n * sigma)

    def integral(self, tau: float, alpha: Array, sigma: Array, h: float, rho: Array) -> Integral:
        """(1 + tau^2) n_s Int q^{tau^2} F d theta."""
        d = self.d
        n = np.hypot(sigma, d * alpha)
        cos_s = d * alpha[1] / n[1]
        q_t = d * alpha[0] / n[0] / cos_s
        q = d / np.hypot(rho, d) / cos_s
        kernel = (1 + tau**2) * n[1] * h * rho * d / (rho**2 + d**2) * q ** (tau**2)
        noise = n[1] * math.sqrt(max(-math.expm1(2 * tau**2 * math.log(q_t)), 0.0))
        return Integral(n[1] / n[0] * q_t ** (tau**2), kernel, noise)

    def from_pure_noise(self, alpha: Array, sigma: Array, v: Array) -> Integral:
        """n_s Int F d theta, where theta = atan(1 / (d v)) falls from pi / 2: d theta = -d dv / (1 + (d v)^2)."""
        d = self.d
        n = math.hypot(sigma[1], d * alpha[1])
        return Integral(n / sigma[0], n * d / (1 + (d * v) ** 2) * (alpha[1] / sigma[1]), 0.0)


FORMS: dict[str, Callable[[float], Form]] = {
    "data": lambda d: DataForm(),
    "noise": lambda d: NoiseForm(),
    "velocity": VelocityForm,
}


def form_of(name: str, sigma_data: float) -> Form:
    """The form of a name.

    Raises:
        ValueError: an unknown name.
    """
    return choose(name, FORMS, "form")(sigma_data)


def _angle(v: Array, d: float) -> Array:
    return np.arctan2(1.0, d * v)


def _clock(v: Array, d: float) -> Array:
    return regular_clock(torch.from_numpy(v)).numpy()


# psi of v = alpha / sigma, with d = sigma_data.
VARIABLES: dict[str, Callable[[Array, float], Array]] = {
    "lambda": lambda v, d: np.log(v),
    "rho": lambda v, d: 1 / v,
    "angle": _angle,
    "time": _clock,
}


def variable_of(name: str, v: Array) -> Callable[[Array, float], Array]:
    """The variable of a name for a step whose nodes have these alpha / sigma: lambda and rho are infinite at 0."""
    return _angle if name in ("lambda", "rho") and bool((v == 0).any()) else VARIABLES[name]


def _exact(exact: Array, kernel: Array, r: Array) -> Array:
    return exact


def _half(slope_of_two: Callable[[Array], float]) -> Callable[[Array, Array, Array], Array]:
    """With two nodes the integral of the slope is a number over 2; other weights are exact."""

    def weights(exact: Array, kernel: Array, r: Array) -> Array:
        if len(r) != 2:
            return exact
        slope = slope_of_two(kernel) / 2 / (r[0] + r[1])
        return np.where(r == 0, kernel @ W - slope, slope)

    return weights


_bh2 = _half(lambda kernel: kernel @ W)


def _dpm3m(exact: Array, kernel: Array, r: Array) -> Array:
    if len(r) != 3:
        return _bh2(exact, kernel, r)
    second = [1 / np.prod([a - b for b in r if b != a]) for a in r]
    return exact - (kernel * U**2) @ W / 2 * np.array(second)


# (exact weights, kernel, nodes in units of the step from where it starts) -> weights.
WEIGHTS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "exact": _exact,
    "bh1": _half(lambda kernel: kernel[-1]),
    "bh2": _bh2,
    "dpm++3m": _dpm3m,
}
