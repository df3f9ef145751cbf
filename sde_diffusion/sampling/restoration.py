r"""Restoration: samples of x_0 given a linear observation y = A x_0 + noise, with their mean, spread and residual.

The samples are draws from the approximate posterior of a method of ``guidance``; their mean is its best guess in mean
square, their standard deviation shows its uncertainty, and the residual y - A x of a sample has about the noise's
own size if the method follows the observation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.guidance import METHODS, MomentMatching, Observed, residual_rms
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import SDE
from solvers import Solver
from solvers.errors import InputError, choose
from solvers.grids import at_noise_levels, first_noise_level
from solvers.noise_clock import clock, noise_level

SOLVER, METHOD, NFE = "ddpm", "moment", 60
_POWER = 1.25  # of the steps of the clock


def restoration_times(sde: SDE, steps: int) -> Tensor:
    """Times on the clock of noise levels, (steps + 1,) float64: on VPSDE(0.1, 20) they are (1 - i / steps)^1.25.

    Methods with the covariance of x_0 gain from more evaluations at high noise than samplers spend there. With equal
    steps the last of 20 levels would be above a noise of 0.05, and samples would miss the observation.

    >>> from sde_diffusion import VPSDE
    >>> restoration_times(VPSDE(), 4)
    tensor([1.0000, 0.6980, 0.4204, 0.1768, 0.0000], dtype=torch.float64)
    """
    first = clock(torch.tensor(first_noise_level(sde), dtype=torch.float64, device="cpu"))
    share = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
    return at_noise_levels(sde, noise_level(first * share[:-1] ** _POWER))


def times_of(observed: Observed, steps: int) -> Tensor | None:
    """``restoration_times`` for moment matching, and None, the solver's own grid, for the other methods.

    The others follow the observation in full until sigma / alpha is below its noise, which the last of these times is
    not.
    """
    return restoration_times(observed.sde, steps) if isinstance(observed, MomentMatching) and steps >= 1 else None


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
    grid: str | Tensor | None = None,
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
        grid: a name in ``GRIDS`` or the times; None is ``restoration_times`` for "moment" with "ddpm", and the
            solver's own otherwise.
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
    if grid is None and solver == SOLVER:
        grid = times_of(observed, nfe)
    x = sample(observed, n, solver=solver, nfe=nfe, grid=grid, seed=seed, batch_size=batch_size, **condition)
    return Restoration(
        x,
        x.mean(0),
        x.std(0),
        residual_rms(observed.operator, x, y),
        nfe,
        nfe * int(observed.backward),
        time.perf_counter() - start,
    )
