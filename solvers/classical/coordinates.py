r"""Coordinates in which a probability flow is easy to integrate with few steps.

The probability flow is linear in x and in the denoised D = E[x_0 | x_t]. With d = sigma_data and

    x = N y,    N = sqrt(alpha^2 + sigma^2 / d^2),    theta = atan(sigma / (alpha d))

in place of x and t it reads (Karras et al. 2022, table 1, whose network output F is -d dy/dtheta)

    dy/dtheta = (cos(theta) y - D) / sin(theta).

y is exactly constant for Gaussian data of standard deviation d, theta runs over a finite interval
even where alpha = 0, and nothing depends on how the path is run through in t: the steps of one path
are the steps of all. For d = 1 on a variance-preserving path y = x and dy/dtheta is the velocity
alpha eps - sigma x_0.

Every drift of the time t itself fits the same interface: N = 1 and theta = t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from solvers.problem import Problem, ReverseProcess, Scales, like


class PathPoint(NamedTuple):
    """A point at which a slope is evaluated; every field has the shape of the requested positions.

    Attributes:
        t: the times.
        scale: N of x = N y.
        linear: p of dy/dtau = p y + q D.
        gain: q of the same.
    """

    t: Tensor
    scale: Tensor
    linear: Tensor
    gain: Tensor

    def stage(self, i: int, shape: tuple[int, ...]) -> PathPoint:
        """The i-th row of points asked for together, shaped to multiply x."""
        return PathPoint(*(c[i].reshape(shape) for c in self))


class Coordinates(Protocol):
    """A variable tau(t) to step in, and the unknown y that goes with it."""

    def position(self, t: Tensor) -> Tensor:
        """Tau at the times t."""
        ...

    def points(self, tau: Tensor) -> PathPoint:
        """The point at the positions tau (any shape)."""
        ...

    def slope(self, problem: Problem, y: Tensor, at: PathPoint) -> Tensor:
        """dy/dtau: one model evaluation."""
        ...


class Time:
    """The drift as it is, in t.

    >>> from solvers.problem import Equation
    >>> t = torch.zeros(1, 1, dtype=torch.float64)
    >>> Time().slope(Equation(lambda x, t: -x), torch.ones(1, 1), Time().points(t))
    tensor([[-1.]])
    """

    def position(self, t: Tensor) -> Tensor:
        """T itself."""
        return t

    def points(self, tau: Tensor) -> PathPoint:
        """N = 1; p and q are not used."""
        one = torch.ones_like(tau)
        return PathPoint(tau, one, one, one)

    def slope(self, problem: Problem, y: Tensor, at: PathPoint) -> Tensor:
        """The drift."""
        return problem.drift(y, at.t)


class Angle:
    """The angle theta between data and noise, for the probability flow of a path.

    theta(t) is inverted by Newton steps on log theta as a function of log t (nearly linear towards
    the data for every path), safeguarded by the bracket of a table.

    Args:
        path: t -> Scales, elementwise.
        low: smallest time that will be asked for, where sigma > 0.
        high: largest time that will be asked for.
        sigma_data: d.

    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> angle = Angle(straight, 1e-3, 1.0)
    >>> tau = angle.position(torch.tensor([0.25, 1.0], dtype=torch.float64))
    >>> angle.time(tau)
    tensor([0.2500, 1.0000], dtype=torch.float64)
    """

    def __init__(self, path: Callable[[Tensor], Scales], low: float, high: float, sigma_data: float = 1.0) -> None:
        self.path, self.d = path, sigma_data
        ends = torch.tensor([low, high], dtype=torch.float64, device="cpu").log()
        self.t = torch.linspace(float(ends[0]), float(ends[1]), 2049, dtype=torch.float64, device="cpu").exp()
        self.t[0], self.t[-1] = low, high
        self.tau = self.position(self.t)

    def position(self, t: Tensor) -> Tensor:
        """theta(t), with full relative accuracy at both ends."""
        alpha, sigma = self.path(t)[:2]
        return torch.atan2(sigma, self.d * alpha)

    def time(self, tau: Tensor) -> Tensor:
        """The time at which theta has a value; beyond the ends, the nearer end."""
        tau = tau.clamp(float(self.tau[0]), float(self.tau[-1]))
        table, times = self.tau.to(tau.device), self.t.to(tau.device)
        k = torch.searchsorted(table, tau.contiguous()).clamp(1, len(table) - 1)
        low, high = times[k - 1], times[k]
        part = (tau - table[k - 1]) / (table[k] - table[k - 1])
        t = torch.lerp(low, high, part)
        for _ in range(60):
            alpha, sigma, dalpha, dsigma = self.path(t)
            d_alpha = self.d * alpha
            theta = torch.atan2(sigma, d_alpha)
            rate = (dsigma * d_alpha - sigma * self.d * dalpha) / (sigma**2 + d_alpha**2)
            gap = torch.log1p((tau - theta) / theta)
            low, high = torch.where(gap > 0, t, low), torch.where(gap < 0, t, high)
            move = gap * theta / (t * rate)
            new = t * torch.exp(move)
            inside = (new >= low) & (new <= high)
            t = torch.where(inside, new, torch.sqrt(low * high))
            # Newton squares the distance: after a move of 1e-9 the rest is below rounding.
            if bool((inside & (move.abs() < 1e-9)).all()):
                break
        return t.clamp(float(self.t[0]), float(self.t[-1]))

    def points(self, tau: Tensor) -> PathPoint:
        """Times, N, cot(theta) and -1/sin(theta)."""
        return self.at(self.time(tau))

    def at(self, t: Tensor) -> PathPoint:
        """The point at given times."""
        alpha, sigma = self.path(t)[:2]
        scale = torch.hypot(alpha, sigma / self.d)
        sine = sigma / (self.d * scale)
        return PathPoint(t, scale, alpha / (scale * sine), -1 / sine)

    def slope(self, problem: Problem, y: Tensor, at: PathPoint) -> Tensor:
        """(cos(theta) y - D) / sin(theta)."""
        assert isinstance(problem, ReverseProcess)
        x0 = problem.denoise(like(at.scale, y) * y, at.t)
        return like(at.linear, y) * y + like(at.gain, y) * x0
