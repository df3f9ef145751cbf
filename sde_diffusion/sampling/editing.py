r"""Editing: part of the way to noise and back (Meng et al. 2022, SDEdit), and transport between conditions.

``edit`` adds noise to x up to the time t = strength, x_t = alpha x + sigma eps, and runs the reverse process from
there. Both have the marginals of the process, so draws from the model's distribution keep this distribution at every
strength, and the strength sets how much of the given x is kept.

``transport`` encodes x with one condition and decodes with another along the probability flow (Su et al. 2023, dual
diffusion implicit bridges): between two Gaussians it is the affine map that takes one to the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.sampler import check_status
from sde_diffusion.sampling.settings import seeds_of
from solvers import Solver, find, make_grid, solve
from solvers.errors import InputError
from solvers.noise import FORWARD, standard_normal
from solvers.problem import ReverseProcess


def times_from(process: ReverseProcess, start: float, steps: int, grid: str = "quadratic") -> Tensor:
    """Times from ``start`` to 0 in a number of steps: the finest named grid with as many below ``start``, float64.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.zeros(1, 1), std=1.0, sde=VPSDE())
    >>> times_from(model.sde.probability_flow(model), 0.25, 2, "uniform").tolist()
    [0.25, 0.2, 0.0]
    """
    whole = steps
    while True:
        below = make_grid(grid, process, whole)
        below = below[below < start * (1 - 1e-9)]
        if len(below) >= steps:
            return torch.cat([torch.tensor([start], dtype=torch.float64, device="cpu"), below[-steps:]])
        whole += 1


@torch.no_grad()
def edit(
    model: ScoreModel,
    x: Tensor,
    strength: float = 0.4,
    *,
    solver: str | Solver = "dpm++2m-sde",
    nfe: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    eta: float | None = None,
    **condition: Any,
) -> Tensor:
    """Samples that keep part of x.

    Args:
        model: any ScoreModel.
        x: data (B, ...). For several variations of one sample repeat it.
        strength: the time t in (0, 1] to which x is noised: near 0 nothing changes, at 1 nothing is kept.
        solver: a fixed-step solver, by name in ``SOLVERS`` or a Solver.
        nfe: network evaluations for each sample.
        seed: of the run; sample k depends on (seed, k) alone.
        batch_size: samples integrated together.
        eta: noise level; 1 for stochastic solvers and 0 for the others by default.
        condition: per-sample tensors passed to the network.

    Returns:
        Like x.

    Raises:
        ValueError: arguments out of range or in conflict, see the message.
        FloatingPointError: samples that are not finite.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.1, sde=VPSDE())
    >>> edit(model, torch.tensor([[1.0], [-1.0]]), strength=0.2).sign().tolist()
    [[1.0], [-1.0]]
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength is the time to which x is noised, in (0, 1]; got {strength}")
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or x.ndim < 2 or not bool(x.isfinite().all()):
        raise InputError("x is a batch of finite floating point samples (B, ...)")
    method = find(solver)
    if method.adaptive:
        raise InputError(f"{type(method).__name__} chooses its own steps; edit with a fixed-step solver")
    named = method.grid if isinstance(method.grid, str) else "quadratic"
    level = float(method.stochastic) if eta is None else eta
    out: list[Tensor] = []
    for start in range(0, len(x), batch_size):
        seeds = seeds_of(seed, min(batch_size, len(x) - start), start)
        part = {k: v[start : start + batch_size] if isinstance(v, Tensor) else v for k, v in condition.items()}
        process = model.sde.reverse(model, level, **part)
        steps = method.steps_for(nfe // process.cost)
        eps = standard_normal(seeds, x.shape[1:], FORWARD).to(x)
        noised = model.sde.perturb(x[start : start + batch_size], strength, eps)
        run = solve(process, noised, solver=method, grid=times_from(process, strength, steps, named), seeds=seeds)
        check_status(run, start)
        out.append(run.x)
    return torch.cat(out)


def transport(model: ScoreModel, x: Tensor, source: dict[str, Any], target: dict[str, Any], **options: Any) -> Tensor:
    """x of one condition as one of another, along the probability flow.

    Args:
        model: a conditional model.
        x: data (B, ...) of the source condition.
        source: conditions of x by name, per-sample tensors.
        target: those of the result.
        options: solver, tolerance, steps and t_min of ``encode``.

    Returns:
        Like x; transporting back gives x up to the error of the solver.

    >>> from sde_diffusion import VPSDE
    >>> sde = VPSDE()
    >>> def network(x, t, mean):  # the denoiser of N(mean, 1)
    ...     alpha, sigma = (c[:, None].to(x.dtype) for c in sde.marginal(t))
    ...     return mean + alpha * (x - alpha * mean)
    >>> model = ScoreModel(network, sde, predicts="data", shape=(1,))
    >>> zero, five = torch.zeros(1, 1).double(), torch.full((1, 1), 5.0).double()
    >>> transport(model, torch.tensor([[0.3]]).double(), {"mean": zero}, {"mean": five}).round(decimals=1)
    tensor([[5.3000]], dtype=torch.float64)
    """
    return decode(model, encode(model, x, **options, **source), **options, **target)
