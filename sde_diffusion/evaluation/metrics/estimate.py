r"""An estimate from a finite set, with its standard error and interval.

The spread of a statistic over n samples is found from its spread over random halves of the set (McCarthy 1969;
Politis & Romano 1994). A half of m samples, drawn without replacement, has for a mean the variance

    Var theta_m = s^2/m (1 - m/n),      so      Var theta_n = s^2/n = Var theta_m  (m/n) / (1 - m/n),

a factor of 1 at m = n/2. The bootstrap draws with replacement instead; a sample that is there twice is its own
nearest neighbour, counts as a pair in a kernel mean, and takes rank from a covariance, so these statistics of a
bootstrap set are those of another problem. A half holds nothing twice. The interval lies around the figure of the
whole set; the bias of a half is not in it. Where two laws nearly agree, a distance between them is quadratic in what
chance does and the spread of halves is larger than that of sets, up to twice: the interval errs on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.errors import InputError

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error.

    Attributes:
        value: the figure.
        standard_error: standard deviation of its error.
        bias: bias of n samples that was subtracted from the plain statistic, or 0.
        growth: of a squared distance, by how much the variance of its error grows with the true distance; or 0.

    >>> low, high = Estimate(3.0, 0.1).interval
    >>> round(low, 3), round(high, 3)
    (2.804, 3.196)
    """

    value: float
    standard_error: float
    bias: float = 0.0
    growth: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: every true value from which this one is at most 1.96 of its standard errors away.

        A squared distance d^2 has the error variance v + g max(d^2, 0), v at equal laws, so its interval is that of
        Wilson 1927 for a rate: longer upwards than downwards, and it holds near 0 too.
        """
        z, g, x = _NORMAL_95, self.growth, self.value
        base = max(self.standard_error**2 - g * max(x, 0.0), 0.0)
        reach = z * math.sqrt(base)
        middle, half = x + z * z * g / 2, z * math.sqrt(max((z * g / 2) ** 2 + base + g * x, 0.0))
        return (middle - half if x > reach else x - reach), (middle + half if x > -reach else x + reach)


def standard_error(statistic: Callable[..., Tensor | float], *sets: Tensor, draws: int = 100, seed: int = 0) -> Tensor:
    """The standard error of a statistic of one or more independent sets of samples.

    Args:
        statistic: function from the sets to a number or a tensor of numbers.
        sets: each (n, ...); every one is halved on its own.
        draws: number of halves; the standard error is itself uncertain by a factor of about 1 / sqrt(2 draws).
        seed: seed of the halves.

    Returns:
        Shaped like the statistic, float64.

    Raises:
        ValueError: fewer than 2 draws, no set, or a set of fewer than 4 samples.

    >>> x = torch.arange(100.0)
    >>> expected = x.std() / 10  # of a mean
    >>> bool(abs(standard_error(torch.mean, x, draws=400) / expected - 1) < 0.1)
    True
    """
    if draws < 2 or not sets or min(len(x) for x in sets) < 4:
        raise InputError(
            f"expected 2 draws or more of sets of 4 samples or more; got {draws} of {[len(x) for x in sets]}"
        )
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(draws):
        halves = [x[torch.randperm(len(x), generator=generator)[: len(x) // 2]] for x in sets]
        values.append(torch.as_tensor(statistic(*halves), dtype=torch.float64))
    # Sets of odd size miss one half by one sample; the factor of the smallest covers all.
    return spread_of_halves(torch.stack(values), min(len(x) for x in sets))


def halves_of(n: int, draws: int, seed: int) -> list[Tensor]:
    """The rows of random halves of a set of n samples, those that ``standard_error`` draws of one set.

    >>> [len(half) for half in halves_of(9, draws=2, seed=0)]
    [4, 4]
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator)[: n // 2] for _ in range(draws)]


def spread_of_halves(values: Tensor, n: int) -> Tensor:
    """The standard error of a statistic of n samples, from its values (draws, ...) on halves."""
    share = (n // 2) / n
    return values.std(0) * math.sqrt(share / (1 - share))
