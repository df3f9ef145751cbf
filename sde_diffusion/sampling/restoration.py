r"""Restoration: samples of x_0 given a linear observation y = A x_0 + noise, with their mean, spread and residual.

The samples are draws from the approximate posterior of a method of ``guidance``; their mean is its best guess in mean
square, their standard deviation shows its uncertainty, and the residual y - A x of a sample has about the noise's
own size if the method follows the observation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion.guidance import METHODS, residual_rms
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.sampler import sample
from solvers import Solver
from solvers.errors import InputError, choose

SOLVER, METHOD, NFE = "dpm++2m-sde", "moment", 60


@dataclass(frozen=True)
class Restoration:
    """Samples of the posterior of one observation.

    Attributes:
        samples: (n, *shape).
        mean: (*shape), of the samples.
        std: (*shape), the standard deviation of the samples about their mean.
        residual: (n,) root mean square of y - A x over the observed entries; compare with the noise.
        nfe: forward passes for each sample.
        backward: backward passes for each sample, on top.
        seconds: of the whole run.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor
    residual: Tensor
    nfe: int
    backward: int
    seconds: float


def restore(
    model: ScoreModel,
    operator: Any,
    y: Tensor,
    noise: float,
    n: int = 8,
    *,
    method: str = METHOD,
    solver: str | Solver = SOLVER,
    nfe: int = NFE,
    seed: int = 0,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    batch_size: int = 64,
    **condition: Any,
) -> Restoration:
    """Samples of the posterior given an observation, with mean and standard deviation: a ``Restoration``.

    Args:
        model: the prior, with the shape of a sample.
        operator: A, an ``Operator`` of ``guidance`` or a linear physics object of deepinv.
        y: the observation (1, *observed).
        noise: its standard deviation in units of the data, >= 0.
        n: samples, at least 2.
        method: a name in ``guidance.METHODS``.
        solver: a name in ``SOLVERS`` or a Solver. Stochastic ones correct the errors of the approximate likelihood
            on the way; deterministic ones keep them.
        nfe: network evaluations (forward passes) for each sample.
        seed: of the run.
        clip: the range of the data, where methods with a gradient need it, see ``Observed``; None for exact models.
        batch_size: samples integrated together.
        condition: passed on to the network.

    Raises:
        ValueError: see the message.
        FloatingPointError: samples that are not finite.

    Warns:
        UserWarning: a deterministic solver with a method that needs a stochastic one.

    >>> import torch
    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = GaussianMixture(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), std=0.1, sde=VPSDE())
    >>> found = restore(prior, Mask(torch.tensor([True, False])), torch.tensor([[0.9, 0.0]]), 0.1, clip=None)
    >>> found.mean.round().tolist(), found.nfe
    ([1.0, -1.0], 60)
    """
    if n < 2:
        raise InputError(f"a mean and a spread need at least 2 samples; got n={n}")
    kind = choose(method, METHODS, "method")
    start = time.perf_counter()
    observed = kind(model, operator, y, noise, clip=clip)
    x = sample(observed, n, solver=solver, nfe=nfe, seed=seed, batch_size=batch_size, **condition)
    return Restoration(
        x,
        x.mean(0),
        x.std(0),
        residual_rms(observed.operator, x, y),
        nfe,
        nfe * int(observed.backward),
        time.perf_counter() - start,
    )
