r"""The energy view of a score model: log-density ratios without a normalising constant.

The score is the gradient of log p_t = -E_t - log Z_t, so that a line integral of it compares two points,

    log p_t(b) - log p_t(a) = int_0^1 score(a + u (b - a), t) . (b - a) du,

and Z_t drops out (Song & Ermon 2019, section 1). For a network the field need not be a gradient: another path gives
another value, which the error bar does not see.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from solvers.errors import InputError


class LogRatio(NamedTuple):
    """The value log p_t(b) - log p_t(a) in nats and the error of its quadrature, both (B,) float64."""

    value: Tensor
    error: Tensor


@torch.no_grad()
def log_ratio(model: ScoreModel, a: Tensor, b: Tensor, t: float, *, nodes: int = 16, **condition: Any) -> LogRatio:
    """The log-density ratio of two points at one time, by Gauss-Legendre quadrature along the line between them.

    Args:
        model: any ScoreModel.
        a: (B, ...).
        b: like a.
        t: in (0, 1]; the score of data at t = 0 need not exist.
        nodes: of the coarser of two rules, at least 2: the finer one has twice as many and gives the value, their
            difference the error. One network evaluation a node, 3 ``nodes`` in all.
        condition: passed on to the network.

    Raises:
        ValueError: shapes that differ, a time outside (0, 1], or fewer than 2 nodes.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> unit = GaussianMixture(torch.zeros(1, 1).double(), std=1.0, sde=VPSDE())
    >>> a, b = torch.zeros(1, 1).double(), torch.full((1, 1), 2.0).double()
    >>> log_ratio(unit, a, b, 0.5).value.round(decimals=6)  # -b^2 / 2
    tensor([-2.], dtype=torch.float64)
    """
    if a.shape != b.shape or a.ndim < 2:
        raise InputError(f"two points have one shape (B, ...); got {tuple(a.shape)} and {tuple(b.shape)}")
    if not 0 < t <= 1:
        raise InputError(f"t is a time in (0, 1]; got {t}")
    if nodes < 2:
        raise InputError(f"the quadrature needs at least 2 nodes; got {nodes}")
    times = torch.full((len(a),), t, dtype=torch.float64, device=a.device)

    def rule(count: int) -> Tensor:
        total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
        for node, weight in zip(*np.polynomial.legendre.leggauss(count), strict=True):
            slope = model.score(torch.lerp(a, b, (float(node) + 1) / 2), times, **condition) * (b - a)
            total += float(weight) / 2 * slope.flatten(1).double().sum(1)
        return total

    coarse, fine = rule(nodes), rule(2 * nodes)
    return LogRatio(fine, (fine - coarse).abs())
