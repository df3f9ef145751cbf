r"""The scale of the data of a model, from its reference solutions, and solvers and noise levels in units of it.

    c = 1.5 std(x_0)        around the mean of each entry, as a power of sqrt(2); 1 for c between 0.4 and 2.5,

and a third of sigma / alpha at the start at most, which leaves room for the noise levels. Images in [-1, 1], for which
the default solver and the grids were chosen, have standard deviations of about 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.sde import SDE
from solvers import Solver
from solvers.fitted.data_units import InDataUnits

_UNIT, _WIDE = 1.5, 2.5
_ROOM = 3.0  # sigma / alpha of the start in units of the scale, at least
_LEAST = 1e-6


def scale_of(x0: Tensor, start: float = math.inf) -> float:
    """The scale of data (B, ...), and 1 where it is near 1, for a sigma / alpha at the start.

    >>> import torch
    >>> x0 = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    >>> scale_of(x0), scale_of(20 * x0), round(scale_of(0.1 * x0), 3), scale_of(0 * x0)
    (1.0, 32.0, 0.177, 1.0)
    >>> scale_of(20 * x0, start=30.0), scale_of(20 * x0, start=2.0)
    (10.0, 1.0)
    """
    scale = _UNIT * float((x0.double() - x0.double().mean(0)).square().mean().sqrt())
    if scale < _LEAST or 1 / _WIDE < scale < _WIDE:
        return 1.0
    return min(2 ** (round(2 * math.log2(scale)) / 2), max(start / _ROOM, 1.0))


@dataclass(frozen=True)
class ScaledNoise:
    """A process as data of scale 1 see it: sigma is divided by the scale.

    >>> import torch
    >>> from sde_diffusion.sde import Flow
    >>> path = ScaledNoise(Flow(), 4.0)
    >>> alpha, sigma = path.marginal(torch.tensor(0.8, dtype=torch.float64))
    >>> float(path.time(torch.log(alpha / sigma)))
    0.8
    """

    sde: SDE
    scale: float

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Alpha, and sigma over the scale."""
        alpha, sigma = self.sde.marginal(t)
        return alpha, sigma / self.scale

    def time(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a lambda in these units."""
        return self.sde.time(half_log_snr - math.log(self.scale))


def for_scale(solver: Solver, scale: float) -> Solver:
    """The solver for data of a scale.

    >>> from solvers import SOLVERS
    >>> for_scale(SOLVERS["unipc"], 1.0) is SOLVERS["unipc"], for_scale(SOLVERS["unipc"], 4.0).scale
    (True, 4.0)
    """
    return solver if scale == 1 else InDataUnits(solver, scale)
