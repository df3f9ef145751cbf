r"""The limit of the denoised sample at zero noise, from its last three values.

A run ends at a noise level rho_N = sigma / alpha > 0, and D_N = E[x_0 | x_N] is not yet x_0. Along the flow of Gaussian
data of standard deviation c around a mean,

    D(rho) = x_0 - (x_0 - mean) h(rho / c),      h(y) = 1 - 1 / sqrt(1 + y^2),

so D is linear in h, and x_0 is its value at h = 0. c shows in how the last two changes of D compare: with the nodes
h_i = h(rho_i / c) the ratio

    q = <D_N - D_{N-1}, D_{N-1} - D_{N-2}> / |D_{N-1} - D_{N-2}|^2 = (h_{N-1} - h_N) / (h_{N-2} - h_{N-1})

increases as c falls, from that of polynomials in rho^2 (c infinite: D is smooth on the scale of the noise) to that of
polynomials in 1 / rho. Each sample has its own q, thus its own c, and its x_0 is the parabola in h through the three
values, at h = 0, in the form of Newton:

    x_0 = D_N + trust (first + share second),      first  = h_N [D_N, D_{N-1}],
                                                   second = h_N h_{N-1} [D_N, D_{N-1}, D_{N-2}],

with divided differences in h. It is exact for one c, for a point mass, and of higher order in rho_N for any smooth D.
The share of the second term falls from 1 to 0 where it is from half as large as the first to as large. Where the
changes of D fall faster than those of a polynomial in rho^2, D has converged, or is rough: the trust is then q over the
ratio of such a polynomial, and 0 where they point apart. The extrapolation of sequences whose differences fall at an
estimated rate is that of Aitken 1926.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError

_WIDEST, _NARROWEST = 1e3, 0.5  # c over rho_N
_NODES = 128


@dataclass(frozen=True)
class ZeroNoise:
    """The extrapolation from three noise levels, for samples of any c.

    Args:
        table: for each c the ratio q and the factors of three terms, (4, nodes): that of D_N - D_{N-1} in the first
            term, and those of D_N - D_{N-1} and D_{N-1} - D_{N-2} in the second. The ratios increase.
    """

    table: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, rho: Sequence[float]) -> ZeroNoise:
        """For three decreasing noise levels above 0; the first may be infinite.

        Raises:
            ValueError: other noise levels.

        >>> made = ZeroNoise.of([0.4, 0.2, 0.1])
        >>> [round(row[0], 3) for row in made.table]
        [0.25, 0.333, 0.089, -0.022]
        """
        if not (len(rho) == 3 and rho[0] > rho[1] > rho[2] > 0):
            raise InputError(f"three noise levels that decrease and are above 0 are needed; got {tuple(rho)}")
        c = np.geomspace(_WIDEST, _NARROWEST, _NODES) * rho[2]
        earlier, before, last = (_h(c / level) for level in rho)
        second = last * before / (earlier - last)
        rows = (
            (before - last) / (earlier - before),
            last / (before - last),
            second / (before - last),
            -second / (earlier - before),
        )
        return cls(tuple(tuple(row.tolist()) for row in rows))

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """x_0 from the values of D, newest first, (B, ...) each.

        >>> ZeroNoise.of([0.4, 0.2, 0.1])([torch.tensor([[v]]) for v in (0.99, 0.96, 0.84)])
        tensor([[1.0000]])
        """
        change, earlier = values[0] - values[1], values[1] - values[2]
        dtype = torch.promote_types(change.dtype, torch.float32)
        like = (-1, *[1] * (change.ndim - 1))
        a, b = (c.flatten(1).to(dtype) for c in (change, earlier))
        # Where nothing changed, any c gives D_N.
        tiny = torch.finfo(dtype).tiny
        q = (a * b).sum(1) / (b * b).sum(1).clamp_min(tiny)
        ratios, *rows = torch.tensor(self.table, dtype=dtype, device=q.device)
        k = torch.searchsorted(ratios, q).clamp_(1, _NODES - 1)
        part = ((q - ratios[k - 1]) / (ratios[k] - ratios[k - 1])).clamp_(0, 1)
        trust = (q / ratios[0]).clamp_(0, 1)
        one, two, three = (
            (trust * torch.lerp(row[k - 1], row[k], part)).to(change.dtype).reshape(like) for row in rows
        )
        first, second = one * change, two * change + three * earlier
        sizes = [torch.linalg.vector_norm(term.flatten(1), dim=1, dtype=dtype) for term in (first, second)]
        share = (2 - 2 * sizes[1] / sizes[0].clamp_min(tiny)).clamp_(0, 1)
        return values[0] + first + share.to(change.dtype).reshape(like) * second


def _h(y: np.ndarray) -> np.ndarray:
    """1 - 1 / sqrt(1 + 1 / y^2) = 1 / (s (s + y)) with s = sqrt(1 + y^2), for y = c / rho."""
    s = np.sqrt(1 + y * y)
    return np.asarray(1 / (s * (s + y)))
