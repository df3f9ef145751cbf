"""The table of metrics by name, and one call that gives figures with their intervals.

Intervals cover the randomness of the generated samples; the reference is taken as exact, except by kid and mmd, whose
jackknife covers both sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.estimate import Estimate, spread_of_halves, standard_error
from sde_diffusion.evaluation.metrics.frechet import unbiased_frechet_distance
from sde_diffusion.evaluation.metrics.halves import neighbours_of_halves
from sde_diffusion.evaluation.metrics.inception import inception_score
from sde_diffusion.evaluation.metrics.mmd import kid, squared_mmd
from sde_diffusion.evaluation.metrics.moments import Moments
from sde_diffusion.evaluation.metrics.two_sample import two_sample_accuracy
from sde_diffusion.evaluation.metrics.wasserstein import sliced_wasserstein
from solvers.errors import InputError, choose


@dataclass(frozen=True)
class Sets:
    """The features of generated and real samples that a metric compares.

    Args:
        generated: features (n, d).
        reference: features (m, d).
        moments: moments of the whole reference, where ``reference`` is a part of it; its own when absent.
        probabilities: p(y|x) of the generated samples (n, classes), for the inception score.
        draws: half-samples for a standard error.
        seed: seed of everything that is drawn.
    """

    generated: Tensor
    reference: Tensor
    moments: Moments | None = None
    probabilities: Tensor | None = None
    draws: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Metric:
    """A line of the table.

    Attributes:
        measure: Sets -> the figures, in the order of ``figures``.
        figures: name of each figure.
        best: the best value of each.
        enough: (d) -> number of samples from which the metric is meaningful.
        least: (d) -> numbers of generated and of real samples from which it exists.
    """

    measure: Callable[[Sets], list[Estimate]]
    figures: tuple[str, ...]
    best: tuple[str, ...]
    enough: Callable[[int], int]
    least: Callable[[int], tuple[int, int]]


def _halved(s: Sets, statistic: Callable[[Tensor], Tensor | float], of: Tensor) -> list[Estimate]:
    values = torch.as_tensor(statistic(of), dtype=torch.float64).reshape(-1).tolist()
    errors = standard_error(statistic, of, draws=s.draws, seed=s.seed).reshape(-1).tolist()
    return [Estimate(value, error) for value, error in zip(values, errors, strict=True)]


def _frechet(s: Sets) -> list[Estimate]:
    return [unbiased_frechet_distance(s.generated, s.moments or Moments.of(s.reference))]


def _neighbours(s: Sets) -> list[Estimate]:
    whole, halves = neighbours_of_halves(s.generated, s.reference, s.draws, s.seed)
    errors = spread_of_halves(halves, len(s.generated))
    return [Estimate(value, error) for value, error in zip(whole.tolist(), errors.tolist(), strict=True)]


def _sliced(s: Sets) -> list[Estimate]:
    return _halved(s, lambda x: sliced_wasserstein(x, s.reference, seed=s.seed), s.generated)


def _inception(s: Sets) -> list[Estimate]:
    if s.probabilities is None:
        raise InputError("the inception score needs a classifier's probabilities: use features of a classifier")
    return _halved(s, inception_score, s.probabilities)


def _kernel(measure: Callable[[Tensor, Tensor], Estimate], s: Sets) -> list[Estimate]:
    return [measure(s.generated, s.reference)]


def _two_sample(s: Sets) -> list[Estimate]:
    return [two_sample_accuracy(s.generated, s.reference, seed=s.seed)]


METRICS: dict[str, Metric] = {
    "frechet": Metric(_frechet, ("frechet",), ("0",), lambda d: 10 * d, lambda d: (max(d, 2), max(d, 2))),
    "kid": Metric(partial(_kernel, kid), ("kid",), ("0",), lambda d: 100, lambda d: (3, 3)),
    "mmd": Metric(partial(_kernel, squared_mmd), ("mmd",), ("0",), lambda d: 100, lambda d: (3, 3)),
    "sliced-wasserstein": Metric(_sliced, ("sliced-wasserstein",), ("0",), lambda d: 100, lambda d: (4, 1)),
    "neighbours": Metric(
        _neighbours,
        ("precision", "recall", "density", "coverage"),
        ("high", "high", "1", "1"),
        lambda d: 1000,
        lambda d: (12, 6),  # 5 neighbours within half of the samples
    ),
    "two-sample": Metric(_two_sample, ("two-sample",), ("0.5",), lambda d: 400, lambda d: (4, 4)),
    "inception-score": Metric(_inception, ("inception-score",), ("high",), lambda d: 1000, lambda d: (4, 1)),
}
"""Metrics by name."""


def measure(sets: Sets, metrics: Iterable[str]) -> dict[str, Estimate]:
    """The metrics of generated features against those of a reference.

    Args:
        sets: the features.
        metrics: names in ``METRICS``.

    Returns:
        Figures by name, each with its standard error and interval.

    Warns:
        UserWarning: too few samples for a meaningful metric.

    Raises:
        ValueError: an unknown name, or features that a metric cannot take.

    >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> found = measure(Sets(x[:200], x[200:] + 3), ["frechet"])["frechet"]
    >>> found.interval[0] < 18 < found.interval[1]
    True
    """
    found: dict[str, Estimate] = {}
    for name in metrics:
        metric = choose(name, METRICS, "metric")
        found |= dict(zip(metric.figures, metric.measure(sets), strict=True))
        n, d = sets.generated.flatten(1).shape
        n = min(n, sets.moments.n if sets.moments and name == "frechet" else len(sets.reference))
        if n < (enough := metric.enough(d)):
            warnings.warn(
                f"{name}: {n} samples in {d} dimensions are few, take {enough} or more; "
                "compare only figures of equal n",
                stacklevel=2,
            )
    return found
