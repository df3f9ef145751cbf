"""Exact models from every noise level at which a path may start, with initial noise and reference solutions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.exact_family.models import ModelSet
from solvers import ReverseProcess, Scales, solve
from solvers.solver import Solver

STARTS = (3.0, 6.6, 14.6, 80.0, 152.0, 1000.0, math.inf)
CACHE = Path("runs/exact-family")
_FAR = 1e5  # start of the reference solution for a path that starts at infinity
_REFERENCE_STEPS = 140


@torch.no_grad()
def flow(models: ModelSet, z: Tensor, start: float, steps: int = _REFERENCE_STEPS, end: float = 1e-4) -> Tensor:
    """The reference solution: Runge-Kutta of order 4 in log rho on z / sqrt(1 + rho^2)."""
    logs = torch.linspace(math.log(min(start, _FAR)), math.log(end), steps + 1, dtype=torch.float64)

    def slope(y: Tensor, log: Tensor) -> Tensor:
        n2 = 1 + torch.exp(2 * log)
        n = n2.sqrt()
        return (y / n - models.denoise(y * n, log.exp())) / n

    y, h = z / torch.sqrt(1 + torch.exp(2 * logs[0])), logs[1] - logs[0]
    for log in logs[:-1]:
        a = slope(y, log)
        b = slope(y + h / 2 * a, log + h / 2)
        c = slope(y + h / 2 * b, log + h / 2)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, log + h))
    return models.denoise(y * torch.sqrt(1 + torch.exp(2 * logs[-1])), logs[-1].exp())


@dataclass(frozen=True)
class Task:
    """Models from one start, with initial noise and its endpoints."""

    models: ModelSet
    start: float
    eps: Tensor
    ends: Tensor

    def path(self, t: Tensor) -> Scales:
        """The straight path from this start: x = (1 - s) x_0 + s eps, s = t s_1."""
        top = 1.0 if math.isinf(self.start) else self.start / (1 + self.start)
        return Scales(1 - top * t, top * t, -top * torch.ones_like(t), top * torch.ones_like(t))

    @torch.no_grad()
    def run(self, solver: str | Solver, nfe: int, grid: Tensor | str | None = None) -> Tensor:
        """Errors of a solver, (P, B)."""
        p, b, d = self.eps.shape

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = self.path(t[0])[:2]
            x = x.reshape(p, b, d)
            if float(alpha) == 0:
                return self.models.denoise(x / sigma * _FAR, torch.tensor(_FAR).double()).reshape(p * b, d)
            return self.models.denoise(x / alpha, sigma / alpha).reshape(p * b, d)

        sigma = self.path(torch.ones((), dtype=torch.float64)).sigma
        x1 = (self.eps * sigma).reshape(p * b, d)
        x = solve(ReverseProcess(denoise, self.path), x1, solver=solver, nfe=nfe, grid=grid).x.reshape(p, b, d)
        error = self.models.rms(x - self.ends)
        return torch.where(error.isfinite(), error, 1e6)


def task(models: ModelSet, start: float, n: int = 32, seed: int = 0, cache: Path = CACHE) -> Task:
    """Models from one start, with their reference solution, stored or computed."""
    eps = models.initial_noise(n, seed)
    path = cache / f"{models.fingerprint}-{start:g}-{n}-{seed}-{_REFERENCE_STEPS}.pt"
    if path.exists():
        return Task(models, start, eps, torch.load(path))
    ends = flow(models, eps * min(start, _FAR), start)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(ends, path)
    return Task(models, start, eps, ends)
