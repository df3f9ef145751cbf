r"""A clock that all paths share: a smooth, bounded function of rho = sigma / alpha alone.

The parametrization of time by a path is arbitrary, so grids and interpolation polynomials use the time at which
VPSDE(0.1, 20) has a noise level,

    tau(rho) = 2 L / (b_0 + sqrt(b_0^2 + 2 (b_1 - b_0) L)),     L = log(1 + rho^2),   b_0 = 0.1, b_1 = 20,

which is 1 at rho = 152. It is linear in rho^2 near the data, as every smooth denoiser is, and grows with
sqrt(log rho) far from it. ``regular_clock`` is tau(rho / (1 + rho / R)) with R = 10^4: nearly the same up to rho of a
thousand, and smooth in 1 / rho at the infinite rho at which straight and cosine paths start.
"""

from __future__ import annotations

import torch
from torch import Tensor

_B0, _B1 = 0.1, 20.0
_R = 1e4


def clock(rho: Tensor) -> Tensor:
    """tau of finite noise levels, float64.

    >>> clock(torch.tensor([0.0, 152.158], dtype=torch.float64))
    tensor([0.0000, 1.0000], dtype=torch.float64)
    """
    log = torch.log1p(rho.square())
    return 2 * log / (_B0 + torch.sqrt(_B0**2 + 2 * (_B1 - _B0) * log))


def noise_level(tau: Tensor) -> Tensor:
    """The rho at which the clock has a value.

    >>> clock(noise_level(torch.tensor([0.3], dtype=torch.float64)))
    tensor([0.3000], dtype=torch.float64)
    """
    return torch.sqrt(torch.expm1(tau * (_B0 + (_B1 - _B0) * tau / 2)))


def regular_clock(inverse: Tensor) -> Tensor:
    """tau(rho / (1 + rho / R)) from 1 / rho = alpha / sigma, which is 0 at pure noise.

    >>> regular_clock(torch.tensor([0.0, 1e-4], dtype=torch.float64)) < 1.37
    tensor([True, True])
    """
    return clock(1 / (inverse + 1 / _R))
