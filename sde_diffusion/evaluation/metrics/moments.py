r"""Mean and covariance of a stream of feature vectors, in float64, that can be merged.

With n, mean m and scatter M = sum (x - m)(x - m)' of two sets a and b (Chan, Golub & LeVeque 1983, eq. 2.1),

    n = n_a + n_b,   m = m_a + n_b/n (m_b - m_a),   M = M_a + M_b + n_a n_b / n (m_b - m_a)(m_b - m_a)'.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from solvers.errors import InputError

_PART = 8192  # samples that are copied to float64 at once


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and scatter matrix (d, d) of feature vectors.

    >>> moments = Moments.of(torch.tensor([[0.0], [2.0]])) + Moments.of(torch.tensor([[4.0]]))
    >>> float(moments.mean), float(moments.covariance)
    (2.0, 4.0)
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of a batch (n, ...); samples are flattened to vectors.

        Raises:
            ValueError: an empty batch, or values that are not finite.
        """
        x = features.detach().flatten(1)
        if len(x) == 0:
            raise InputError("moments of no samples")
        bad = ~x.isfinite().all(1)
        if bool(bad.any()):
            raise InputError(
                f"{int(bad.sum())} of {len(x)} feature vectors are not finite; the first is {int(bad.nonzero()[0])}"
            )
        parts = [cls._of_part(part.double().cpu()) for part in torch.split(x, _PART)]
        return reduce(cls.__add__, parts)

    @classmethod
    def _of_part(cls, x: Tensor) -> Moments:
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        if self.mean.shape != other.mean.shape:
            raise InputError(f"features of {len(self.mean)} and {len(other.mean)} dimensions cannot be merged")
        n = self.n + other.n
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + (self.n * other.n / n) * torch.outer(gap, gap)
        return Moments(n, self.mean + (other.n / n) * gap, scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, scatter / (n - 1)."""
        if self.n < 2:
            raise InputError("a covariance needs at least 2 samples")
        return self.scatter / (self.n - 1)
