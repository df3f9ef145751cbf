r"""Latent codes: data to noise and back along the probability flow.

The flow takes x_{t_min} = alpha(t_min) x to x_1 and, run the other way, x_1 to x_{t_min}; it is a bijection, so every x
has one code z = x_1 / prior_std, and if the model is right codes of data are N(0, I). ``decode`` divides by
alpha(t_min) and takes no last denoising step, so that it is the inverse of ``encode`` up to the error of the solver.

Gaussian codes in d dimensions lie near a sphere of radius sqrt(d); a straight line between two of them passes at
0.71 sqrt(d), where there are none. ``interpolate`` turns the direction at constant angular speed on the great circle
(Shoemake 1985; Song, Meng & Ermon 2021, eq. 67) and goes evenly from one norm to the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from solvers import Solver, find, solve
from solvers.errors import InputError, NonFiniteError
from solvers.grids import time_at
from solvers.solver import sample_rms


@dataclass(frozen=True)
class RoundTrip:
    """The error of a round trip from data to latent codes and back.

    Attributes:
        code: z, like x.
        x: decoded again, like x.
        error: root mean square of the difference over the values of a sample, (B,) float64.
        nfe: network evaluations of both ways together, int64 (B,).
    """

    code: Tensor
    x: Tensor
    error: Tensor
    nfe: Tensor


def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: str | Solver = "rk45",
    tolerance: float = 1e-5,
    steps: int | None = None,
    t_min: float = 1e-5,
    **condition: Tensor,
) -> Tensor:
    """The codes z = x_1 / prior_std of data, N(0, I) under an exact model.

    Args:
        model: any ScoreModel.
        x: data (B, ...), in the type of the model's parameters or float64 for an exact model.
        solver: a name in ``SOLVERS`` or a Solver.
        tolerance: for adaptive solvers given by name.
        steps: for fixed-step solvers, equal in the angle between data and noise.
        t_min: first time of the flow, in (0, 1).
        condition: per-sample tensors passed to the network.

    Raises:
        ValueError: arguments out of range or in conflict, see the message.
        FloatingPointError: values that are not finite.

    >>> from sde_diffusion import Flow, Gaussian
    >>> model = Gaussian(torch.ones(1), torch.full((1,), 4.0), sde=Flow())
    >>> encode(model, torch.tensor([[3.0]])).round(decimals=3)  # one standard deviation above the mean
    tensor([[1.]])
    """
    given = conditions_for(encode, model, condition)
    return flow_map(model, x, True, solver, tolerance, steps, t_min, given)[0]


def decode(
    model: ScoreModel,
    z: Tensor,
    *,
    solver: str | Solver = "rk45",
    tolerance: float = 1e-5,
    steps: int | None = None,
    t_min: float = 1e-5,
    **condition: Tensor,
) -> Tensor:
    """The data of codes: the inverse of ``encode``, with the same arguments.

    >>> from sde_diffusion import Flow, Gaussian
    >>> model = Gaussian(torch.ones(1), torch.full((1,), 4.0), sde=Flow())
    >>> decode(model, torch.tensor([[1.0]])).round(decimals=3)
    tensor([[3.]])
    """
    given = conditions_for(decode, model, condition)
    return flow_map(model, z, False, solver, tolerance, steps, t_min, given)[0]


def round_trip(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: str | Solver = "rk45",
    tolerance: float = 1e-5,
    steps: int | None = None,
    t_min: float = 1e-5,
    **condition: Tensor,
) -> RoundTrip:
    """Encode, decode, and compare; the arguments are those of ``encode``.

    >>> from sde_diffusion import Flow, Gaussian
    >>> model = Gaussian(torch.ones(1), torch.full((1,), 4.0), sde=Flow())
    >>> bool(round_trip(model, torch.tensor([[3.0]]).double(), tolerance=1e-8).error < 1e-6)
    True
    """
    given = conditions_for(round_trip, model, condition)
    code, there = flow_map(model, x, True, solver, tolerance, steps, t_min, given)
    again, back = flow_map(model, code, False, solver, tolerance, steps, t_min, given)
    return RoundTrip(code, again, sample_rms((again - x).double()), there + back)


def interpolate(a: Tensor, b: Tensor, weight: float | Sequence[float] | Tensor) -> Tensor:
    """Codes on the great circle from a to b, with norms between theirs.

    The angle to a is weight times the angle between a and b, the norm (1 - weight) |a| + weight |b|.

    Args:
        a: codes (B, ...).
        b: codes like a.
        weight: one number in [0, 1], or K of them.

    Returns:
        Like a for one weight, (K, B, ...) for several.

    Raises:
        ValueError: shapes that differ, weights outside [0, 1], a code that is 0, or codes that are opposite.

    >>> interpolate(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 0.5)  # 45 degrees, norm 3
    tensor([[2.1213, 2.1213]])
    """
    if a.shape != b.shape or a.ndim < 2:
        raise InputError(f"codes must have one shape (B, ...); got {tuple(a.shape)} and {tuple(b.shape)}")
    weights = torch.as_tensor(weight, dtype=torch.float64, device=a.device)
    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise InputError(f"weights of an interpolation lie in [0, 1]; got {weight}")
    flat = [c.flatten(1).double() for c in (a, b)]
    norms = [c.norm(dim=1, keepdim=True) for c in flat]
    if not bool(((norms[0] > 0) & (norms[1] > 0)).all()):
        raise InputError("a code of norm 0 has no direction to interpolate")
    u, v = (c / n for c, n in zip(flat, norms, strict=True))
    # The part of v orthogonal to u: stable for every angle, unlike the arc cosine of a scalar product near 1.
    across = v - (u * v).sum(1, keepdim=True) * u
    angle = torch.atan2(across.norm(dim=1, keepdim=True), (u * v).sum(1, keepdim=True))
    if bool((angle > torch.pi - 1e-6).any()):
        raise InputError("opposite codes have no shortest way between them; interpolate over a third one")
    across = across / across.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    w = weights.reshape(-1, 1, 1)
    out = (torch.cos(w * angle) * u + torch.sin(w * angle) * across) * ((1 - w) * norms[0] + w * norms[1])
    out = out.reshape(-1, *a.shape).to(a.dtype)
    return out[0] if weights.ndim == 0 else out


def flow_solver(solver: str | Solver, tolerance: float, dtype: torch.dtype) -> Solver:
    """The solver of a flow; one that is named and adaptive gets the tolerance, as far as the dtype's rounding allows.

    Raises:
        ValueError: a solver that draws noise, or a tolerance that is not positive.

    >>> flow_solver("rk45", 1e-9, torch.float32).rtol > 1e-7
    True
    """
    method = find(solver)
    if method.stochastic:
        raise InputError(f"{type(method).__name__} draws noise, the flow has none; use rk45, or adams with steps=100")
    if isinstance(solver, str) and method.adaptive:
        if not 0 < tolerance < math.inf:
            raise InputError(f"the tolerance of a flow is positive and finite; got {tolerance}")
        finest = max(tolerance, 10 * torch.finfo(dtype).eps)
        return replace(method, rtol=finest, atol=finest)  # type: ignore[call-arg]
    return method


@torch.no_grad()
def flow_map(
    model: ScoreModel,
    x: Tensor,
    forward: bool,
    solver: str | Solver = "rk45",
    tolerance: float = 1e-5,
    steps: int | None = None,
    t_min: float = 1e-5,
    condition: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes of data (``forward``) or data of codes, and the network evaluations of each, int64 (B,)."""
    refuse_distilled(model, "find the code of data with")
    if not 0 < t_min < 1:
        raise InputError(f"t_min is a time near the data, in (0, 1); got {t_min}")
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or not bool(x.isfinite().all()):
        raise InputError("data and codes are finite floating point tensors")
    x = (model.from_samples(x) if forward else x).to(model.state_dtype if model.dtype else x.dtype)
    method = flow_solver(solver, tolerance, x.dtype)
    if (steps is None) != method.adaptive:
        raise InputError(
            f"{type(method).__name__} "
            + ("chooses its own steps: leave steps out" if steps else "needs steps=100, say")
        )
    times = (
        torch.tensor([t_min, 1.0], dtype=torch.float64, device="cpu") if steps is None else _angles(model, t_min, steps)
    )
    alpha, scale = float(model.sde.marginal(t_min)[0]), model.sde.prior_std()
    run = solve(
        model.sde.probability_flow(model, **(condition or {})),
        x * alpha if forward else x * scale,
        solver=method,
        grid=times if forward else times.flip(0),
    )
    lost = [k for k, status in enumerate(run.status) if status != "ok"]
    if lost:
        raise NonFiniteError(
            f"the flow of {len(lost)} of {len(x)} samples ended early, the first is sample {lost[0]} "
            f"({run.status[lost[0]]}); check the network there, or use a larger tolerance"
        )
    return (run.x / scale if forward else model.to_samples(run.x / alpha)), run.nfe


def _angles(model: ScoreModel, t_min: float, steps: int) -> Tensor:
    """Times from t_min to 1 at equal steps of atan(sigma / alpha)."""
    if steps < 1:
        raise InputError(f"steps must be at least 1; got {steps}")
    alpha, sigma = model.sde.marginal(torch.tensor([t_min, 1.0], dtype=torch.float64, device="cpu"))
    first, last = torch.atan2(sigma, alpha).tolist()
    theta = torch.linspace(first, last, steps + 1, dtype=torch.float64, device="cpu")
    times = time_at(model.sde, -torch.log(torch.tan(theta)))
    times[0], times[-1] = t_min, 1.0
    return times
