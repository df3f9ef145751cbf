"""Samples against a reference: figures with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sde_diffusion.evaluation.feature_sampler import Drawn
from sde_diffusion.evaluation.features import Extractor, Features
from sde_diffusion.evaluation.metrics import METRICS, Estimate, Sets, measure
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.result import Evaluation
from sde_diffusion.report.share_of_work import share_bar
from solvers.errors import choose, require_whole

DEFAULT_METRICS = ("frechet", "kid", "neighbours")
MOST_DRAWS = 100_000
_BATCH = 500


def features_of(
    x: Tensor | Iterable[Tensor],
    extractor: Extractor,
    batch_size: int = _BATCH,
    report: Callable[[float], None] | None = None,
) -> Features:
    """The features of samples (n, ...), or of their parts in order, batch by batch.

    ``report`` is called with the share done of samples that are one tensor.
    """
    total = len(x) if isinstance(x, Tensor) else None
    pieces = (batch for part in ([x] if isinstance(x, Tensor) else x) for batch in torch.split(part, batch_size))
    parts, done = [], 0
    for batch in pieces:
        parts.append(extractor(batch))
        done += len(batch)
        if report is not None and total:
            report(done / total)
    p = [part.probabilities for part in parts if part.probabilities is not None]
    return Features(torch.cat([part.features for part in parts]).cpu(), torch.cat(p).cpu() if p else None)


def too_few(metrics: Iterable[str], n: int, reference: FeatureStatistics) -> dict[str, str]:
    """The metrics that n samples, or those of the reference, do not suffice for, each with the numbers in words.

    >>> from sde_diffusion.data import load_data
    >>> from sde_diffusion.evaluation.features import make_extractor
    >>> reference = FeatureStatistics.of(load_data("digits"), make_extractor("digits"))
    >>> too_few(["frechet", "kid"], 20, reference)
    {'frechet': 'frechet of 64 features takes 64 samples or more, not 20'}
    """
    d, found = len(reference.moments.mean), {}
    for name in metrics:
        least, real = choose(name, METRICS, "metric").least(d)
        m = reference.moments.n if name == "frechet" else len(reference.features)
        if n < least:
            found[name] = f"{name} of {d} features takes {least} samples or more, not {n}"
        elif m < real:
            found[name] = f"{name} of {d} features takes a reference of {real} samples or more, not {m}"
    return found


def evaluate(
    samples: Tensor | Features | Drawn,
    reference: FeatureStatistics,
    *,
    extractor: Extractor | None = None,
    metrics: Iterable[str] = DEFAULT_METRICS,
    draws: int = 40,
    seed: int = 0,
    progress: bool | Callable[[float], None] = True,
) -> Evaluation:
    """The metrics of samples against a reference, each with its standard error.

    Args:
        samples: (n, ...) in the units of the reference, images of bytes in [-1, 1]; or features that were taken
            already, by the extractor of the reference.
        reference: the real samples to compare with.
        extractor: the features; those of the reference by default.
        metrics: names in ``metrics.METRICS``; "all" for all that the features and the number of samples allow.
        draws: half-samples for the standard errors.
        seed: seed of the half-samples, and of lines and halves within metrics.
        progress: whether a bar is shown in a terminal or notebook after a second; or a function that is called with the
            share done.

    Returns:
        Figures by name, an ``Evaluation``: a dict that shows itself.

    Raises:
        ValueError: samples or features that do not fit the reference, too few samples, unknown names.

    >>> from sde_diffusion.data import load_data
    >>> from sde_diffusion.evaluation.features import make_extractor
    >>> real = load_data("moons")
    >>> reference = FeatureStatistics.of(real, make_extractor("pixels"))
    >>> found = evaluate(load_data("moons", split="test").x[:2000], reference, metrics=["frechet"])
    >>> found["frechet"].interval[0] < 0.001 < 0.01 > found["frechet"].value
    True
    """
    if isinstance(samples, Tensor):
        reference.check_shape(tuple(samples.shape[1:]))
        extractor = reference.make_extractor() if extractor is None else extractor
        with share_bar(progress, "taking features") as report:
            samples = features_of(samples, extractor, report=None if report is None else lambda k: report(k / 2))
    if extractor is not None:
        reference.check(extractor)
    names = list(metrics)
    if names == ["all"]:
        names = [name for name in METRICS if name != "inception-score" or samples.probabilities is not None]
        few = too_few(names, len(samples.features), reference)
        names = [name for name in names if name not in few]
    for name in names:
        choose(name, METRICS, "metric")
    require_whole("seed", seed, 0, 2**31 - 1)
    require_whole("draws", draws, 2, MOST_DRAWS)
    sets = Sets(samples.features, reference.features, reference.moments, samples.probabilities, draws, seed)
    found: dict[str, Estimate] = {}
    with share_bar(progress, "measuring") as report:
        for k, name in enumerate(names):
            if report is not None:
                report((1 + k / len(names)) / 2, name)
            found |= measure(sets, [name])
        if report is not None:
            report(1.0)
    return Evaluation(found)
