r"""Families of time grids with a shape and an end, for searches over grids.

Each family spaces N times evenly, from t = 1 to a chosen last rho = sigma / alpha, in a function of rho or t; the
interval to t = 0 follows.

    power-p    t = u^p
    angle-d    atan(rho / d)
    sine       v with sin(atan(rho)) = sin(v)^2, the spacing of PNDM's improved variant
    flow-d     rho / (d + rho), the time of a straight path
    karras     rho^(1/7)
    log-snr    log rho
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.tuning.data_scale import ScaledNoise
from solvers.errors import choose

# If rho(1) is infinite or nearly so, the spacing of the second time starts here.
_RHO_MAX = 400.0

Map = Callable[[Tensor], Tensor]


def _families(d: float) -> dict[str, tuple[Map, Map]]:
    """The function of rho, and its inverse."""
    return {
        "angle": (lambda rho: torch.atan(rho / d), lambda v: d * torch.tan(v)),
        "flow": (lambda rho: rho / (d + rho), lambda v: d * v / (1 - v)),
        "karras": (lambda rho: rho ** (1 / 7), lambda v: v**7),
        "log-snr": (torch.log, torch.exp),
        "sine": (
            lambda rho: torch.asin(torch.sin(torch.atan(rho)).sqrt()),
            lambda v: torch.tan(torch.asin(torch.sin(v) ** 2)),
        ),
    }


def spaced(sde: SDE | ScaledNoise, kind: str, n: int, low: float) -> Tensor:
    """N times from 1 to rho = low, evenly spaced in the variable of the kind, and 0.

    Args:
        sde: the process, which defines rho.
        kind: a family, with its number after a dash: "power-2.5", "angle-0.5", "karras".
        n: number of steps; one step gives the times 1 and 0.
        low: rho at the last time before 0.

    Returns:
        (n + 1,) float64.

    Raises:
        ValueError: an unknown family.

    >>> from sde_diffusion.sde import VPSDE
    >>> [round(t, 4) for t in spaced(VPSDE(), "power-2", 4, 0.1).tolist()]
    [1.0, 0.5205, 0.1961, 0.027, 0.0]
    """
    name, _, number = kind.partition("-") if kind != "log-snr" else (kind, "", "")
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    if n == 1:
        t = torch.ones(1, dtype=torch.float64)
    elif name == "power":
        p = 1 / float(number)
        end = float(sde.time(-math.log(low)))
        t = (1 - u * (1 - end**p)) ** (1 / p)
    else:
        forward, inverse = choose(name, _families(float(number or 1)), "family of grids")
        alpha, sigma = (float(c) for c in sde.marginal(1.0))
        high = sigma / alpha if alpha * _RHO_MAX > sigma else _RHO_MAX
        first, last = forward(torch.tensor([high, low], dtype=torch.float64))
        t = sde.time(-torch.log(inverse(first + u * (last - first))))
    t[0] = 1.0
    return torch.cat([t, t.new_zeros(1)])
