r"""Error profile of a run: the local error estimates of a solver, by time.

Every embedded or multistep solver has two results for a step, whose difference estimates its error. The estimates are
averaged over a few samples and binned by time; the shortest range of bins with half of their sum is reported.
A solver that controls its error spreads it evenly by design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from solvers import solve
from solvers.errors import InputError

_BINS = 20


@dataclass(frozen=True)
class Profile:
    """Local error by time.

    Attributes:
        t: start of each bin, decreasing.
        s: its end.
        error: sum of the estimates in it, RMS per entry of a sample in units of x, mean over samples.
        half: (from, to): the shortest range that holds half of the error.
    """

    t: list[float]
    s: list[float]
    error: list[float]
    half: tuple[float, float]


def shortest_half(error: Sequence[float]) -> tuple[int, int]:
    """First and last index of the shortest run of entries that holds half of their sum; of equals the largest.

    >>> shortest_half([1.0, 1.0, 5.0, 4.0, 1.0])
    (2, 3)
    """
    total, n = sum(error), len(error)
    runs = [(j - i, -sum(error[i : j + 1]), i, j) for i in range(n) for j in range(i, n)]
    _, _, i, j = min(run for run in runs if -run[1] >= total / 2)
    return i, j


def error_profile(model: ScoreModel, settings: SamplingSettings | None = None, *, n: int = 16) -> Profile:
    """The error profile of a solver on a model, from n samples.

    Args:
        model: any ScoreModel with a shape.
        settings: the settings of the run, with a solver that estimates its error.
        n: number of samples that are averaged.

    Raises:
        ValueError: the solver has no error estimate, or the model no shape.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.1, sde=VPSDE())
    >>> profile = error_profile(model, SamplingSettings("dpm++2m", nfe=12))
    >>> profile.half[0] > profile.half[1] > 0
    True
    """
    refuse_distilled(model, "measure the error of a step on")
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample")
    settings = settings or SamplingSettings()
    how = settings.resolve(model, model.shape)
    seeds = seeds_of(settings.seed, n)
    x1 = noise_for(model, model.shape, seeds)
    with torch.no_grad():
        run = solve(how.process(model), x1, solver=how.solver, nfe=how.nfe, grid=how.times, seeds=seeds, errors=True)
    if run.errors is None or not bool(run.errors.error.isfinite().any()):
        raise InputError(
            f"{settings.called} has no error estimate in this run; embedded and multistep solvers have one "
            "(pf-ode, unipc, dpm++2m, dpm++3m, rk23, rk45, ...), with at least 4 steps"
        )
    t, s, error = (c.double().cpu() for c in run.errors)
    known = error.isfinite()
    edges = sorted({float(c) for c in torch.cat([t[known], s[known]])}, reverse=True)
    if len(edges) > _BINS + 1:
        # A solver with different steps for each sample: bins with about equal numbers of attempts.
        q = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device="cpu")
        edges = sorted(set(torch.tensor(edges, dtype=torch.float64, device="cpu").quantile(q).tolist()), reverse=True)
    middle = (t[known] + s[known]) / 2
    sums = [float(error[known][(middle <= a) & (middle >= b)].sum()) / n for a, b in pairwise(edges)]
    i, j = shortest_half(sums)
    return Profile(edges[:-1], edges[1:], sums, (edges[i], edges[j + 1]))
