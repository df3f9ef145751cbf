"""The step that is exact while the denoised sample stays constant: DDIM, ancestral sampling, and between."""

from __future__ import annotations

import math

from torch import Tensor

from solvers.errors import InputError
from solvers.problem import ReverseProcess


def ancestral_step(
    problem: ReverseProcess,
    x: Tensor,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    xi: Tensor | None,
    eta: float | None = None,
) -> Tensor:
    """The transition from t to s, given D at t; xi is None for eta = 0. eta is the problem's unless given."""
    eta = problem.eta if eta is None else eta
    alpha_t, sigma_t = (float(c) for c in problem.path(t)[:2])
    alpha_s, sigma_s = (float(c) for c in problem.path(s)[:2])
    fresh = 0.0
    if eta > 0:
        # 1 - exp(-2h) = 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2, factored against cancellation.
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
        fresh = eta**2 * (1 - ratio) * (1 + ratio)
    if fresh > 1:
        raise InputError(f"ancestral sampling takes eta up to 1 at any step size; got eta={eta}")
    kept = sigma_s * math.sqrt(1 - fresh) / sigma_t
    out = x0 * (alpha_s - kept * alpha_t)
    out += x * kept
    return out if xi is None else out.add_(xi, alpha=sigma_s * math.sqrt(fresh))
