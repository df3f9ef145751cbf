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

from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.noised_start import NoisedStart
from sde_diffusion.sampling.sampler import check_status, sample_batches
from sde_diffusion.sampling.settings import SamplingSettings
from solvers import Solver


@torch.no_grad()
def edit(
    model: ScoreModel,
    x: Tensor,
    strength: float = 0.4,
    *,
    solver: str | Solver = "pf-ode",
    nfe: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    eta: float | None = None,
    **condition: Any,
) -> Tensor:
    """Samples that keep part of x: noised to the time ``strength``, and denoised from there.

    Args:
        model: any ScoreModel.
        x: data (B, ...). For several variations of one sample repeat it.
        strength: the time t in (0, 1] to which x is noised: near 0 nothing changes, at 1 nothing is kept.
        solver: a name in ``SOLVERS`` or a Solver that is not made for one grid.
        nfe: network evaluations for each sample, all of them between t and the data; 20 by default, and no limit for
            adaptive solvers.
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
    given = conditions_for(edit, model, condition)
    start = NoisedStart(x, strength)
    settings = SamplingSettings(solver, nfe, eta=eta, seed=seed, batch_size=batch_size)
    out: list[Tensor] = []
    for part in sample_batches(model, len(x), settings, shape=x.shape[1:], start=start, condition=given):
        check_status(part, sum(len(done) for done in out))
        out.append(part.x)
    return torch.cat(out)


def transport(model: ScoreModel, x: Tensor, source: dict[str, Any], target: dict[str, Any], **options: Any) -> Tensor:
    """The samples x, moved from one condition to another along the probability flow.

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
