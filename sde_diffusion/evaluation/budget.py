r"""Decomposition of the distance between samples and data.

Five runs lead from the samples to the data, each without one more error. Their Frechet distances to the reference are

    A   the solver with its NFE, from the prior
    B   many steps down to the last time t_min of that run, then the same jump to 0
    C   many steps and a t_min near 0: the model's own law
    D   as C, from data noised to t = 1 instead of the prior
    E   n draws from the reference itself

so that A = discretisation (A - B) + truncation at t_min (B - C) + prior mismatch at t = 1 (C - D) + score error
(D - E) + Monte-Carlo floor (E), term by term and exactly. Runs share their seeds and a difference its half-samples, so
what two runs have in common cancels in the standard error. A term may be negative: errors can cancel, and a distance is
not a sum of squares.

The prior mismatch has a bound without any run. With x_1 = alpha x_0 + sigma eps and the prior N(0, s^2 I) in d
dimensions, convexity and the coupling of both to one eps give (alpha, sigma at t = 1)

    KL(x_1 || prior) <= 1/2 [ d (sigma^2/s^2 - 1 - log sigma^2/s^2) + alpha^2 E|x_0|^2 / s^2 ],
    W_2(x_1, prior)^2 <= alpha^2 E|x_0|^2 + d (sigma - s)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.data import Data
from sde_diffusion.evaluation.feature_sampler import FeatureSampler
from sde_diffusion.evaluation.metrics import Estimate, Moments, frechet_distance, standard_error
from sde_diffusion.evaluation.metrics.estimate import spread_of_halves
from sde_diffusion.evaluation.metrics.paired import frechet_of_halves
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sde import SDE
from solvers import make_grid
from solvers.errors import InputError

TERMS = ("discretisation", "truncation", "prior mismatch", "score error", "Monte-Carlo floor")
_FLOORS = 10
_T_MIN = 1e-4


@dataclass(frozen=True)
class Budget:
    """The Frechet distance of samples, split into its sources of error.

    Attributes:
        total: squared Frechet distance of the samples to the reference.
        terms: its parts by name, in the order of ``TERMS``; their values sum to the total.
        prior_kl: bound on KL(x_1 || prior), nats.
        prior_w2: bound on the 2-Wasserstein distance of x_1 and prior, units of x.
        loss: denoising loss of held-out data by time: (t, mean ||eps - eps_theta||^2 / d with its standard error).
        times: (t_min of the run, t_min of the fine runs).
    """

    total: Estimate
    terms: dict[str, Estimate]
    prior_kl: float
    prior_w2: float
    loss: list[tuple[float, Estimate]]
    times: tuple[float, float]


def prior_bounds(sde: SDE, second_moment: float, d: int) -> tuple[float, float]:
    """The bounds on KL (nats) and W_2 between x_1 and the prior.

    Args:
        sde: the process.
        second_moment: E|x_0|^2 of the data.
        d: values in a sample.

    >>> from sde_diffusion.sde import VPSDE
    >>> kl, w2 = prior_bounds(VPSDE(), second_moment=64.0, d=64)
    >>> f"{kl:.2e} {w2:.3f}"
    '1.38e-03 0.053'
    """
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    s2 = sde.prior_std() ** 2
    ratio = sigma**2 / s2
    shift = alpha**2 * second_moment
    kl = 0.5 * (d * (ratio - 1 - math.log(ratio)) + shift / s2)
    return kl, math.sqrt(shift + d * (sigma - math.sqrt(s2)) ** 2)


@torch.no_grad()
def loss_by_time(model: ScoreModel, data: Data, seed: int = 0, most: int = 1000) -> list[tuple[float, Estimate]]:
    """The denoising loss ||eps - eps_theta||^2 / d at ten times, over the first samples of held-out data.

    Even an exact score has a loss above 0, most where little can be known of the noise: only a difference between two
    models is an error of the score.
    """
    x0 = model.from_samples(data.batch(slice(0, most))).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    found = []
    for t in (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.99):
        parts = []
        for x, noise in zip(torch.split(x0, 250), torch.split(eps, 250), strict=True):
            times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
            error = model.noise(model.sde.perturb(x, times, noise), times) - noise
            parts.append(error.double().square().flatten(1).mean(1))
        loss = torch.cat(parts)
        found.append((t, Estimate(float(loss.mean()), float(loss.std()) / math.sqrt(len(loss)))))
    return found


def last_time(model: ScoreModel, drawing: SamplingSettings) -> float:
    """The last time before 0 of a drawing's grid: its truncation.

    Raises:
        ValueError: an adaptive solver, whose end is its own.
    """
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample")
    run = drawing.resolve(model, model.shape)
    if run.solver.adaptive:
        raise InputError("the error budget needs a solver with a time grid; adaptive solvers have none")
    times = run.times
    if len(times) < 3:
        raise InputError("one evaluation goes from noise to data at once and has no time to truncate at; use more")
    return float(times[-2])


def error_budget(
    sampler: FeatureSampler,
    drawing: SamplingSettings,
    n: int,
    reference: FeatureStatistics,
    data: Data,
    held_out: Data | None = None,
    *,
    fine: int = 64,
    draws: int = 40,
    progress: Callable[[float], None] | None = None,
) -> Budget:
    """The Frechet distance of samples to a reference, split into its sources of error.

    Args:
        sampler: with the model, and the extractor of the reference.
        drawing: settings of the sampling; the fine runs use its solver, or pf-ode where that is stochastic or has one
            grid only.
        n: number of samples.
        reference: the reference.
        data: the samples that the reference is of.
        held_out: samples for the denoising loss; those of ``data`` by default.
        fine: steps of the fine runs.
        draws: half-samples for the standard errors.
        progress: called with the share of the work that is done.

    Raises:
        ValueError: an adaptive solver, data that is not of the reference, fewer samples than features.
    """
    if data.fingerprint != reference.data["fingerprint"]:
        raise InputError(f"the data '{data.name}' is not what the reference '{reference.data['name']}' was made of")
    model = sampler.model
    t_min = last_time(model, drawing)
    solver = drawing.chosen()
    smooth = "pf-ode" if solver.stochastic or not isinstance(solver.grid, str) else drawing.solver
    process = model.sde.probability_flow(model)
    generator = torch.Generator().manual_seed(drawing.seed)
    x0 = model.to_latents(data.batch(torch.randint(len(data), (n,), generator=generator)))

    def to(end: float) -> SamplingSettings:
        times = make_grid("power", process, fine)[:-1]
        times = 1 - (1 - times) * ((1 - end) / (1 - times[-1]))  # the same spacing, with this last time
        return SamplingSettings(smooth, grid=(*times.tolist(), 0.0), seed=drawing.seed, batch_size=drawing.batch_size)

    fine_end = min(_T_MIN, t_min)
    runs: list[Tensor] = []
    for how, start in ((drawing, None), (to(t_min), None), (to(fine_end), None), (to(fine_end), x0)):
        runs.append(sampler.draw(how, n, start).features)
        if progress is not None:
            progress(len(runs) / 4)
    distance = [frechet_distance(run, reference.moments) for run in runs]
    floor = _floor(reference, n, drawing.seed)
    between = [_paired(a, b, reference.moments, draws) for a, b in pairwise(runs)]
    first, last = (
        float(standard_error(lambda x: frechet_distance(x, reference.moments, allow_few=True), run, draws=draws))
        for run in (runs[0], runs[-1])
    )
    values = [*(a - b for a, b in pairwise(distance)), distance[-1] - floor.value, floor.value]
    errors = [*between, math.hypot(last, floor.standard_error), floor.standard_error]
    terms = {name: Estimate(v, e) for name, v, e in zip(TERMS, values, errors, strict=True)}
    flat = model.from_samples(data.batch(slice(None))).flatten(1).double()
    kl, w2 = prior_bounds(model.sde, float(flat.square().sum(1).mean()), flat.shape[1])
    loss = loss_by_time(model, data if held_out is None else held_out, drawing.seed)
    return Budget(Estimate(distance[0], first), terms, kl, w2, loss, (t_min, fine_end))


def _paired(a: Tensor, b: Tensor, reference: Moments, draws: int) -> float:
    """The standard error of a difference of distances of two runs with the same seeds."""
    one, other = (frechet_of_halves(x, reference, draws, seed=0) for x in (a, b))
    return float(spread_of_halves(one - other, len(a)))


def _floor(reference: FeatureStatistics, n: int, seed: int) -> Estimate:
    """The distance of n draws from the reference to the reference: mean, and spread of one such set."""
    generator = torch.Generator().manual_seed(seed)
    kept = reference.features
    target = reference.moments if len(kept) == reference.moments.n else Moments.of(kept)
    found = torch.tensor(
        [frechet_distance(kept[torch.randint(len(kept), (n,), generator=generator)], target) for _ in range(_FLOORS)]
    )
    return Estimate(float(found.mean()), float(found.std()))
