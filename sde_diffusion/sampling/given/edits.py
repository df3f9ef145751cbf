r"""Edits of given samples, one function for each mode of `sdediff edit`.

    variations    noised to several times t and denoised: a row for each sample and t
    morphs        the codes of two neighbours and those between them on the great circle, decoded: a row for each pair
    transports    encoded with one label, decoded with others: a row for each sample
    retold        encoded with one caption, decoded with others: a row for each sample

The codes are those of the probability flow. The second column of ``transports``, and the ends of ``morphs``, are
decoded without a change: their distance to what was given is the error of the flow's round trip, ``Edits.error``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.given.conditions import GivenCondition
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.inversion import flow_map, interpolate
from sde_diffusion.sampling.noised_start import NoisedStart
from sde_diffusion.sampling.sampler import check_status, sample_batches
from sde_diffusion.sampling.settings import SamplingSettings
from solvers.errors import InputError


@dataclass(frozen=True)
class Edits:
    """The edits of given samples.

    Attributes:
        x: (R, K, ...): K results in each of R rows.
        given: (R, ...): what the row was made from.
        other: (R, ...): the second sample of a pair, for ``morphs``.
        headings: of the K columns.
        names: of the R rows, or none.
        nfe: network evaluations of one result, least and most; a code that several results share counts for each.
        error: root mean square error of the round trip to a code and back, the largest of all samples; None without
            codes.
    """

    x: Tensor
    given: Tensor
    headings: list[str]
    names: list[str]
    nfe: tuple[int, int]
    error: float | None = None
    other: Tensor | None = None


@torch.no_grad()
def variations(
    model: ScoreModel,
    x: Tensor,
    strengths: Sequence[float],
    n: int,
    settings: SamplingSettings,
    labels: Sequence[int] | None = None,
    guidance: GuidanceSettings | None = None,
) -> Edits:
    """n variations of each sample at each strength.

    Args:
        model: any ScoreModel.
        x: (m, ...).
        strengths: times in (0, 1].
        n: variations of each sample and strength.
        settings: of sampling.
        labels: classes that the variations take in turn.
        guidance: towards the labels.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.1, sde=VPSDE())
    >>> found = variations(model, torch.ones(2, 1), [0.1, 1.0], 3, SamplingSettings(nfe=8))
    >>> found.x.shape, found.names, found.nfe
    (torch.Size([4, 3, 1]), ['t = 0.1', 't = 1', 't = 0.1', 't = 1'], (8, 8))
    """
    guided, condition = guided_model(model, n * len(x), labels, guidance)
    rows = x.repeat_interleave(n, 0)
    columns: list[Tensor] = []
    spent: list[Tensor] = []
    for strength in strengths:
        parts: list[Tensor] = []
        start = NoisedStart(rows, strength)
        for part in sample_batches(guided, len(rows), settings, start=start, condition=condition):
            check_status(part, sum(len(done) for done in parts))
            parts.append(part.x)
            spent.append(part.nfe)
        columns.append(torch.cat(parts).reshape(len(x), n, *x.shape[1:]))
    found = torch.stack(columns, 1).flatten(0, 1)
    return Edits(
        found.float().cpu(),
        x.repeat_interleave(len(strengths), 0),
        [f"sample {k + 1}" for k in range(n)],
        [f"t = {s:g}" for s in strengths] * len(x),
        _range(torch.cat(spent)),
    )


def morphs(model: ScoreModel, x: Tensor, n: int, tolerance: float = 1e-4, labels: Sequence[int] | None = None) -> Edits:
    """n samples from each sample to the next one, evenly on the great circle between their codes.

    Args:
        model: any ScoreModel.
        x: (m, ...), m >= 2.
        n: samples of each pair, both ends included, at least 2.
        tolerance: of the flow.
        labels: classes of x in turn; both ends of a pair need the same one.

    Raises:
        ValueError: fewer than two samples, or different labels.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
    >>> morphs(model, torch.tensor([[3.0, 0.0], [0.0, 3.0]]).double(), 3).x[0, 1].round(decimals=2)
    tensor([2.1200, 2.1200])
    """
    if len(x) < 2 or n < 2:
        raise InputError(f"an interpolation needs two or more samples, and n from 2 up; got {len(x)} and n={n}")
    if labels is not None and len(set(labels)) > 1:
        raise InputError(f"an interpolation has one label; got {list(labels)}; for several use transport")
    model, condition = guided_model(model, len(x), labels)
    codes, there = flow_map(model, x, True, tolerance=tolerance, condition=condition)
    weights = torch.linspace(0, 1, n, dtype=torch.float64, device="cpu").tolist()
    between = interpolate(codes[:-1], codes[1:], weights).transpose(0, 1)
    condition = {name: value[:1].expand(between.shape[:2].numel()) for name, value in condition.items()}
    found, back = flow_map(model, between.flatten(0, 1), False, tolerance=tolerance, condition=condition)
    found = found.reshape(*between.shape[:2], *found.shape[1:]).float().cpu()  # decoded, from a latent model
    return Edits(
        found,
        x[:-1],
        [f"{weight:.2g}" for weight in weights],
        [],
        _range(there.max() + back),
        max(_error(found[:, 0], x[:-1]), _error(found[:, -1], x[1:])),
        x[1:],
    )


def transports(
    model: ScoreModel,
    x: Tensor,
    source: Sequence[int],
    targets: Sequence[int],
    tolerance: float = 1e-4,
    names: Sequence[str] | None = None,
) -> Edits:
    """Each sample as one of each target class; the first result is its own class, decoded again.

    Args:
        model: trained with labels.
        x: (m, ...).
        source: classes of x in turn.
        targets: classes of the results.
        tolerance: of the flow.
        names: of the classes.

    Raises:
        ValueError: a model without labels, or classes that it does not have.
    """
    called = (lambda k: names[k]) if names is not None else str
    own = guided_model(model, len(x), source)[1]
    others = {called(target): guided_model(model, len(x), [target])[1] for target in targets}
    rows = [called(source[k % len(source)]) for k in range(len(x))]
    return _transported(model, x, own, others, rows, tolerance)


@torch.no_grad()
def retold(
    model: ScoreModel, x: Tensor, source: GivenCondition, targets: Mapping[str, GivenCondition], tolerance: float = 1e-4
) -> Edits:
    """Each sample as one of each target caption; the first result is its own caption, decoded again.

    Args:
        model: trained with captions.
        x: (m, ...).
        source: captions of x in turn.
        targets: captions of the results, by their names.
        tolerance: of the flow.

    Raises:
        ValueError: a model without captions.
    """
    own = guided_model(model, len(x), None, GuidanceSettings(condition=source))[1]
    others = {
        name: guided_model(model, len(x), None, GuidanceSettings(condition=given))[1] for name, given in targets.items()
    }
    return _transported(model, x, own, others, [], tolerance)


def _transported(
    model: ScoreModel,
    x: Tensor,
    own: dict[str, Tensor],
    others: Mapping[str, dict[str, Tensor]],
    rows: list[str],
    tolerance: float,
) -> Edits:
    codes, there = flow_map(model, x, True, tolerance=tolerance, condition=own)
    again, back = flow_map(model, codes, False, tolerance=tolerance, condition=own)
    columns, spent = [again], [there + back]
    for other in others.values():
        found, back = flow_map(model, codes, False, tolerance=tolerance, condition=other)
        columns.append(found)
        spent.append(there + back)
    return Edits(
        torch.stack(columns, 1).float().cpu(),
        x,
        ["round trip", *(f"as {name}" for name in others)],
        rows,
        _range(torch.cat(spent)),
        _error(columns[0], x),
    )


def _error(a: Tensor, b: Tensor) -> float:
    return float((a.cpu().double() - b.cpu().double()).flatten(1).square().mean(1).sqrt().max())


def _range(nfe: Tensor) -> tuple[int, int]:
    return int(nfe.min()), int(nfe.max())
