"""The time that an evaluation will take, from a few network evaluations and metrics of a part of the reference."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence

import torch

from sde_diffusion.evaluation.feature_sampler import FeatureSampler
from sde_diffusion.evaluation.metrics import Sets, measure
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.models.evaluation_time import seconds_per_evaluation
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import DEFAULT_NFE, SamplingSettings, seeds_of

_TRIED = 1000  # samples that the metrics are timed on
PAIRS = {"kid", "mmd", "neighbours"}  # metrics of all pairs of samples
LONG = 5000  # samples from which the time is worth a word


def seconds_for(
    sampler: FeatureSampler,
    drawings: Sequence[SamplingSettings],
    n: int,
    reference: FeatureStatistics,
    metrics: Iterable[str],
    draws: int,
) -> tuple[float, float]:
    """Seconds to draw n samples in every given way, and to measure them.

    Args:
        sampler: with the model, the extractor and the processes.
        drawings: the ways.
        n: number of samples.
        reference: the reference.
        metrics: names of the metrics.
        draws: half-samples for standard errors.
    """
    model = sampler.model
    assert model.shape is not None
    x1 = noise_for(model, model.shape, seeds_of(0, 32))
    condition = model.bind(dict(sampler.condition))
    one = seconds_per_evaluation(model, x1, drawings[0].batch_size, condition, n)
    start = time.perf_counter()
    with torch.no_grad():
        sampler.extractor(model.to_samples(x1).clamp(-1, 1).float())
    taken = (time.perf_counter() - start) / len(x1)
    evaluations = sum(drawing.nfe or drawing.steps or DEFAULT_NFE for drawing in drawings)
    world = 1 if sampler.pool is None else sampler.pool.world
    drawing = n * (evaluations * one + len(drawings) * taken) / world
    few = reference.features[: min(_TRIED, n)]
    sets = Sets(few, reference.features, reference.moments, None, draws)
    measuring, m = 0.0, len(reference.features)

    def pairs(count: int) -> int:
        return count**2 + count * m + m**2

    measure(sets, ["kid"])  # the first call of anything is slow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in metrics:
            if name == "inception-score":
                continue
            start = time.perf_counter()
            measure(sets, [name])
            grows = pairs(n) / pairs(len(few)) if name in PAIRS else n / len(few)
            measuring += (time.perf_counter() - start) * grows
    return drawing, len(drawings) * measuring
