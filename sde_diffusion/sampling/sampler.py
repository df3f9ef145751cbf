"""Sampling: from a model, a solver's name and an NFE to samples, batch by batch.

Sample k of a run starts from the noise of its seed, ``seed * 2^32 + k``; batch size, device and the number
of samples do not change it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling.noised_start import NoisedStart
from sde_diffusion.sampling.settings import Grid, SamplingRun, SamplingSettings
from sde_diffusion.sampling.settings import seeds_of as seeds_of
from solvers import ReverseProcess, Solution, Solver, Step, solve
from solvers.conditions import cut
from solvers.errors import InputError, NonFiniteError, require_whole

MOST_SAMPLES = 10_000_000
MOST_VALUES = 2**33  # of all samples together, 32 GiB in float32


def check_count(n: int, shape: Sequence[int]) -> None:
    """Refuse a number of samples that no memory holds, before the work is done.

    Raises:
        ValueError: below 1, or too many.
    """
    require_whole("n", n, 1, MOST_SAMPLES)
    values = math.prod(shape)
    if n * values > MOST_VALUES:
        raise InputError(
            f"{n:,} samples of {values:,} values do not fit into memory; at most {MOST_VALUES // values:,} do"
        )


def noise_for(model: ScoreModel, shape: Sequence[int], seeds: Tensor) -> Tensor:
    """Initial noise (len(seeds), *shape) on the device of the network, in its dtype or in float32 if that is less."""
    return model.sde.prior((len(seeds), *shape), seeds=seeds, device=model.device, dtype=model.state_dtype)


def batches(
    model: ScoreModel,
    n: int,
    settings: SamplingSettings,
    shape: Iterable[int] | None = None,
    condition: Mapping[str, Any] | None = None,
    which: Iterable[int] | None = None,
    start: NoisedStart | None = None,
) -> Iterator[tuple[ReverseProcess, Tensor, Tensor, SamplingRun]]:
    """Yields (process, x, seeds, run) of each batch of n samples: what ``solve`` needs for them.

    x is pure noise, or the noised data of ``start``.

    Batch b holds samples b * batch_size up to (b + 1) * batch_size, whoever runs it; ``which`` are the numbers of the
    batches, all by default.

    Raises:
        ValueError: an unknown shape, no samples, or a condition with another number of rows.
    """
    shape = model.shape if shape is None else tuple(shape)
    if shape is None:
        raise InputError("the model does not know the shape of a sample; pass shape=(...), without the batch")
    check_count(n, shape if which is None else ())
    condition = dict(condition or {})
    for name, value in condition.items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != n):
            raise InputError(
                f"condition '{name}' has {len(value) if value.ndim else 'no'} entries for {n} samples; give one each"
            )
    if start is not None:
        start.check_shape(model.sample_shape if shape == model.shape else shape)
    run = settings.resolve(model, shape) if start is None else start.resolve(settings, model, shape)
    scale = start_scale(model, run.times) if start is None else 1.0
    bound = model.bind(condition)
    for batch in range(math.ceil(n / settings.batch_size)) if which is None else which:
        first = batch * settings.batch_size
        size = min(settings.batch_size, n - first)
        seeds = seeds_of(settings.seed, size, first)
        x1 = noise_for(model, shape, seeds) * scale if start is None else start.noised(model, seeds, first)
        part = cut(bound, n, torch.arange(first, first + size, device="cpu"), x1.device)
        yield run.process(model, part), x1, seeds, run


def start_scale(model: ScoreModel, times: Tensor) -> float:
    """The size of the marginal at the first of the times over that at t = 1.

    >>> from sde_diffusion import EDM
    >>> round(start_scale(ScoreModel(None, EDM(80.0), "data"), torch.tensor([0.1, 0.0])), 4)
    0.1008
    """
    first = float(times[0])
    if first in (1.0, 0.0):
        return 1.0
    alpha, sigma = model.sde.marginal(first)
    return math.hypot(float(alpha), float(sigma)) / model.sde.prior_std()


def sample_batches(
    model: ScoreModel,
    n: int,
    settings: SamplingSettings | None = None,
    *,
    shape: Iterable[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_share: Callable[[float], None] | None = None,
    condition: Mapping[str, Any] | None = None,
    which: Iterable[int] | None = None,
    start: NoisedStart | None = None,
    decoded: bool = True,
    **conditions: Any,
) -> Iterator[Solution]:
    """Generate n samples in batches; ``sample`` with the solver's own account of each batch, x in units of the data.

    Args:
        model: any ScoreModel.
        n: number of samples.
        settings: the settings of the run.
        shape: shape of one sample; the model's own by default.
        on_step: called after every step of every batch.
        on_share: called instead with the share of all steps that is done.
        condition: as in ``sample``.
        which: numbers of the batches, as in ``batches``.
        start: data to start from instead of pure noise.
        decoded: whether those of a latent model are decoded, or remain latents.
        conditions: the same as keywords.
    """
    given = {**conditions, **(condition or {})}
    settings = settings or SamplingSettings()
    which = None if which is None else list(which)
    total = math.ceil(n / settings.batch_size) if which is None else len(which)
    for k, (process, x1, seeds, run) in enumerate(batches(model, n, settings, shape, given, which, start)):
        tell = on_step or share_of_steps(on_share, k, total)
        out = solve(process, x1, solver=run.solver, nfe=run.nfe, grid=run.times, seeds=seeds, on_step=tell)
        yield replace(out, x=model.to_samples(out.x) if decoded else model.units.to_data(out.x))


@torch.no_grad()
def sample(
    model: ScoreModel,
    n: int,
    *,
    solver: str | Solver | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    grid: Grid = None,
    seed: int = 0,
    shape: Iterable[int] | None = None,
    batch_size: int = 256,
    eta: float | None = None,
    partial: bool = False,
    progress: bool | Callable[[float], None] = True,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Tensor:
    """Samples of a model, (n, *shape).

    Args:
        model: any ScoreModel.
        n: number of samples.
        solver: a name in ``SOLVERS`` or a Solver; by default the model's own sampler if it was distilled, else pf-ode.
        nfe: network evaluations per sample; 20 unless steps or the times are given.
        steps: grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.
        seed: seed of the run; sample k depends on (seed, k) alone.
        shape: shape of one sample; the model's own by default.
        batch_size: samples integrated together.
        eta: noise level of the reverse process; 1 for stochastic solvers and 0 for the others by default.
        partial: whether times that do not lead from 1 to 0 are taken, as Stable Diffusion's are: from the first of
            them, with noise of the marginal's size there for data of unit variance, to the last.
        progress: whether a bar is shown in a terminal or notebook after a second; or a function that is called with the
            share done.
        condition: conditions of the network, by name: tensors (n, ...) with a row for each sample, in dicts
            too; anything else is passed on unchanged.
        conditions: the same as keywords, such as ``label=...``.

    Returns:
        (n, *shape), in the units of the training data: in the dtype of the network, or in float32 if that is less.
        Those of a latent model are decoded.

    Raises:
        ValueError: arguments out of range or in conflict, see the message.
        TypeError: a keyword that is no argument and no condition of the network.
        FloatingPointError: samples that are not finite; the message names them and the time.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.05, sde=VPSDE())
    >>> sample(model, 100, nfe=20).abs().mean().round(decimals=2)
    tensor(1.)
    """
    given = conditions_for(sample, model, conditions, condition)
    model.eval()
    settings = SamplingSettings(solver, nfe, steps, grid, eta, seed, batch_size, partial=partial)
    out: list[Tensor] = []
    with share_bar(progress, "sampling") as report:
        for process, x1, seeds, run in batches(model, n, settings, shape, given):
            on_step = share_of_steps(report, len(out), math.ceil(n / batch_size))
            part = solve(process, x1, solver=run.solver, nfe=run.nfe, grid=run.times, seeds=seeds, on_step=on_step)
            check_status(part, start=sum(len(x) for x in out))
            out.append(model.to_samples(part.x))
    return torch.cat(out)


def share_of_steps(report: Callable[[float], None] | None, done: int, total: int) -> Callable[[Step], None] | None:
    """The function that a run calls after each step to report the share done of all batches; None to report nothing.

    Args:
        report: takes the share.
        done: number of batches before this one.
        total: number of batches.
    """
    if report is None:
        return None
    # Time runs from 1 to 0, so 1 - t is the share of a batch.
    return lambda step: report(min((done + 1 - float(step.t.mean())) / total, 1.0))


def check_status(part: Solution, start: int = 0) -> None:
    """Refuse samples that are not finite, and warn of those that ended early.

    Raises:
        FloatingPointError: with the first such sample and the time at which it was lost.
    """
    status = part.status
    lost = [k for k, name in enumerate(status) if name == "non_finite"]
    if lost:
        raise NonFiniteError(
            f"{len(lost)} of {len(status)} samples are not finite; the first is sample {start + lost[0]}, lost "
            f"before t = {float(part.failed_at[lost[0]]):.4g}. Check the network there, or use more evaluations"
        )
    diverged = status.count("diverged")
    if diverged:
        warnings.warn(
            f"{diverged} of {len(status)} samples diverged: on the way their state was larger than its noise level and "
            "the model's answers explain, so they are not samples of the model. Use more evaluations, another grid, or "
            "pf-ode",
            stacklevel=2,
        )
    early = [name for name in status if name not in ("ok", "diverged")]
    if early:
        warnings.warn(
            f"{len(early)} of {len(status)} samples ended early ({', '.join(sorted(set(early)))}); raise nfe or the "
            "tolerance",
            stacklevel=2,
        )
