r"""Times for a table from the path of the reference solution, without a network evaluation.

On the path x*, D* = E[x_0 | x*] is known at up to 65 times t_k. The error of a row from t_i to t_j that uses D at t_i
and at earlier times t_p, ... is, with the best coefficients,

    e(t_j; t_i, t_p, ...) = min_{a, b} rms( x*_j - a x*_i - b_0 D*_i - b_1 D*_p - ... ),

a small least-squares problem on the inner products of all x*_k and D*_k, which are formed once. The flow is taken to
shrink it as that of Gaussian data of the standard deviation s of x_0 does,

    f_j e,      f_j = s / sqrt(alpha_j^2 s^2 + sigma_j^2).

The times with the smallest sum of (f e)^q are found by dynamic programming over pairs of times for rows with two values
of D, for all numbers of steps at once. Single times then move as long as the sum for rows with four values falls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sde_diffusion.sampling.reference_states import ReferencePath
from sde_diffusion.sde import SDE

_SAMPLES = 64
_BAND = 4
_JITTER = 1e-9
_LOWEST = 1e-3  # rho of the last time before 0, in units of s
_MOVES = (-3, -2, -1, 1, 2, 3)
_ROUNDS = 20


@dataclass(frozen=True)
class PathTimes:
    """Inner products of the states and denoised samples of a reference solution.

    Attributes:
        times: (T,) from 1 to 0.
        products: of the T states and the T - 1 denoised samples, (2 T - 1, 2 T - 1).
        shrink: f at each time, (T,).
    """

    times: Tensor
    products: Tensor
    shrink: Tensor

    @classmethod
    def of(cls, path: ReferencePath, sde: SDE) -> PathTimes:
        """Those of the first samples of a path."""
        states, denoised = path.kept(_SAMPLES)
        x0 = states[-1].double()
        size = max(float((x0 - x0.mean(0)).square().mean().sqrt()), 1e-6)
        alpha, sigma = (c.double().expand_as(path.times) for c in sde.marginal(path.times))
        some = sigma > _LOWEST * size * alpha
        few = torch.cat([states[:-1][some[:-1]], states[-1:], denoised[some[:-1]]])
        flat = few.double().flatten(1)
        products = (flat @ flat.T / flat.shape[1]).cpu()
        some[-1] = True
        return cls(path.times[some], products, (size / torch.hypot(alpha * size, sigma))[some])

    def errors(self, ends: Tensor, used: Tensor) -> Tensor:
        """The f e of rows.

        Args:
            ends: (R,) the numbers of the times t_j.
            used: (R, m) those of t_i and of earlier times.
        """
        columns = torch.cat([used[:, :1], used + len(self.times)], 1)
        a = self.products[columns[:, :, None], columns[:, None, :]]
        g = self.products[columns, ends[:, None]]
        size = a.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-30)
        a = a / size[:, :, None] / size[:, None, :] + _JITTER * torch.eye(columns.shape[1], dtype=a.dtype)
        g = g / size
        left = self.products[ends, ends] - (g * torch.linalg.solve(a, g)).sum(1)
        return self.shrink[ends] * left.clamp_min(0).sqrt()

    def best(self, steps: int, power: float = 1.0) -> tuple[float, ...]:
        """The times of a number of steps, from 1 to 0, for sums of a power of the errors.

        >>> from sde_diffusion import Gaussian, VPSDE
        >>> from sde_diffusion.sampling.reference_solution import converged
        >>> model = Gaussian(torch.zeros(2), torch.tensor([0.04, 1.0]), sde=VPSDE())
        >>> x1 = model.sde.prior((16, 2), seeds=range(16))
        >>> path = ReferencePath(model, x1, 64)
        >>> _ = converged(model, x1, steps=64, on_state=path.keep)
        >>> times = PathTimes.of(path, model.sde).best(3)
        >>> len(times), times[0], times[-1]
        (4, 1.0, 0.0)
        """
        nodes = self._moved(self._programmed(steps, power), power)
        return (1.0, *self.times[nodes[1:-1]].tolist(), 0.0)

    def _programmed(self, steps: int, power: float) -> list[int]:
        n = len(self.times)
        if steps >= n:
            return list(range(n))
        from_two, from_one = self._step_errors
        cost, first = from_two**power, from_one**power
        totals, before = [first], []
        for _ in range(steps - 1):
            total, back = (totals[-1][:, :, None] + cost).min(0)
            totals.append(total)
            before.append(back)
        nodes = [n - 1, int(totals[-1][:, n - 1].argmin())]
        for back in reversed(before):
            nodes.append(int(back[nodes[-1], nodes[-2]]))
        return nodes[::-1]

    @cached_property
    def _step_errors(self) -> tuple[Tensor, Tensor]:
        """The f e of rows with two values of D, by p, i and j, and of first rows, by i and j; infinite for others."""
        n = len(self.times)
        every = torch.arange(n)
        p, i, j = (c.flatten() for c in torch.meshgrid(every, every, every, indexing="ij"))
        able = (p < i) & (i < j)
        p, i, j = p[able], i[able], j[able]
        from_two = torch.full((n, n, n), math.inf, dtype=torch.float64)
        from_two[p, i, j] = self.errors(j, torch.stack([i, p], 1))
        from_one = torch.full((n, n), math.inf, dtype=torch.float64)  # a step from the start alone
        from_one[0, 1:] = self.errors(every[1:], torch.zeros(n - 1, 1, dtype=torch.long))
        return from_two, from_one

    def _moved(self, nodes: Sequence[int], power: float) -> list[int]:
        best, least = list(nodes), self._sum(nodes, power)
        for _ in range(_ROUNDS):
            found = least
            for k in range(1, len(best) - 1):
                for move in _MOVES:
                    tried = [*best[:k], best[k] + move, *best[k + 1 :]]
                    if tried[k - 1] < tried[k] < tried[k + 1] and (total := self._sum(tried, power)) < least:
                        best, least = tried, total
            if least == found:
                break
        return best

    def _sum(self, nodes: Sequence[int], power: float) -> float:
        total = 0.0
        by_band: dict[int, list[int]] = {}
        for k in range(len(nodes) - 1):
            by_band.setdefault(min(k + 1, _BAND), []).append(k)
        for band, rows in by_band.items():
            ends = torch.tensor([nodes[k + 1] for k in rows])
            used = torch.tensor([[nodes[k - m] for m in range(band)] for k in rows])
            total += float((self.errors(ends, used) ** power).sum())
        return total
