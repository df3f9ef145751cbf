r"""A solver made for one model and one number of evaluations.

``tune`` finds the times and weights of a ``solvers.fitted.table.Table`` whose samples are closest to the
reference solution of the model's probability flow, from the same initial noise:

    0  the reference solution of a few hundred initial noise samples, with 384 evaluations for each;
    1  the best pairs of solver and grid among several families, by trial;
    2  their times, by least squares, with the weights that belong to the times;
    3  all coefficients of each of their tables, by least squares, and of the best of them to the end.

The default solver, whose coefficients depend on the sample, takes part itself and as the table of its mean
coefficients. The candidate with the lowest error on held-out noise samples is returned: it is never worse than the
default on them. With ``stochastic`` the solver may also draw noise, of a strength for each step that is chosen by a
distance of laws (``tuning.stochastic``).

The result belongs to the model, its condition (a guidance scale, say) and the number of evaluations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.evaluation.features import Extractor
from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.evaluation_time import seconds_per_evaluation
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.tuned_solver import Tuned
from sde_diffusion.tuning.candidates import Found
from sde_diffusion.tuning.effort import (
    Clock,
    Effort,
    Progress,
    Reporter,
    bar,
    effort_for,
)
from sde_diffusion.tuning.feature_loss import FeatureLoss, loss_for
from sde_diffusion.tuning.stages import FEW, tuned_solver
from sde_diffusion.tuning.stochastic.decision import DETERMINISTIC_SHARE, FITS_SHARE, NoiseChoice, noise_choice
from sde_diffusion.tuning.task import FIRST_NOISE, MOST_KEPT, Task, place, rows_of, work_of
from solvers import Solver
from solvers.conditions import cut
from solvers.errors import InputError, require_whole

DEFAULT_SOLVER = "pf-ode"
_MANY = 1_000_000


def tune(
    model: ScoreModel,
    nfe: int = 8,
    *,
    shape: Iterable[int] | None = None,
    seed: int = 0,
    minutes: float | None = None,
    progress: bool | Callable[[Progress], None] = True,
    **options: Any,
) -> Solver:
    """A solver fitted to one model and one NFE.

    Args:
        model: any ScoreModel.
        nfe: network evaluations for each sample; a guided model takes two for each call.
        shape: shape of one sample; the model's own by default.
        seed: seed of the initial noise.
        minutes: time limit; more time gives a better solver. No limit by default.
        progress: whether a bar is shown in a terminal or notebook; or a function that is called with the ``Progress``.
        options: of ``tuned_each``, such as ``noise_samples``, or the condition of the model.

    Raises:
        TypeError: a keyword that is no option and no condition of the network.

    Returns:
        A solver for ``solve(..., solver=tuned, nfe=nfe)`` and ``sample``; ``save_solver`` writes it to a file.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), std=0.2, sde=VPSDE())
    >>> solver = tune(model, nfe=2, shape=(2,), noise_samples=16, held_out=16)
    >>> solver.evaluations(2)
    2
    """
    return tuned_for(model, (nfe,), shape=shape, seed=seed, minutes=minutes, progress=progress, **options)[nfe].table


def tuned_for(model: ScoreModel, budgets: Sequence[int], **options: Any) -> dict[int, Tuned]:
    """The results of ``tuned_each``, as a dictionary by number of evaluations."""
    return {found.nfe: found for found in tuned_each(model, budgets, **options)}


@torch.no_grad()
def tuned_each(
    model: ScoreModel,
    budgets: Sequence[int],
    *,
    shape: Iterable[int] | None = None,
    seed: int = 0,
    noise_samples: int = 128,
    held_out: int = 128,
    batch_size: int = 512,
    minutes: float | None = None,
    progress: bool | Callable[[Progress], None] = True,
    on_effort: Callable[[Effort], None] | None = None,
    timer: Callable[[], float] = time.perf_counter,
    processes: Processes | None = None,
    loss: str = "rmse",
    features: str | Extractor | Callable[[Tensor], Tensor] | None = None,
    mean_start: bool = True,
    stochastic: bool = False,
    real: Tensor | None = None,
    law_samples: int = 1000,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Iterator[Tuned]:
    """Solvers fitted to one model, with their errors: a ``Tuned`` for each NFE, one by one.

    Args:
        model: any ScoreModel.
        budgets: the NFE of each solver; a guided model takes two evaluations for each call. All solvers share the
            reference solutions.
        shape: shape of one sample; the model's own by default.
        seed: seed of the initial noise.
        noise_samples: number of initial noise samples that times and weights are fitted on.
        held_out: number of held-out noise samples, which select the result.
        batch_size: samples in one call of the network.
        minutes: time for all NFE together. The numbers of samples then depend on the speed of the network, and the
            result on the load of the machine.
        progress: whether a bar is shown in a terminal or notebook; or a function that is called with the ``Progress``.
        timer: the clock of ``minutes``; ``time.process_time`` counts the CPU time of this process alone.
        on_effort: called with the planned ``Effort`` before the work.
        processes: processes that share the work, each with an equal model; all but the first find nothing.
        loss: what is minimised and selects the result: "rmse", the RMS distance of each sample to the reference
            solution, or "features", that of its features.
        features: for the loss "features", and for ``stochastic``: a name in ``evaluation.features.NAMES``, an Extractor
            or a function of samples (B, ...); the classifier of digits for images of its size by default.
        mean_start: whether, with ``minutes``, the first step may use the mean of the data in place of an evaluation
            (``solvers.fitted.mean_start``). Pipelines that evaluate the model at the start themselves, those of
            diffusers, need False.
        stochastic: whether the solver may draw noise (``solvers.fitted.noisy_table``), of a strength for each step
            (``tuning.stochastic``). It does where its samples then have a smaller Frechet distance of features to real
            samples, beyond doubt on samples that chose nothing. With ``minutes`` this takes 70 % of the time.
        real: for ``stochastic``, real samples (m, ...) in the units of those of ``sample``, such as the training data;
            endpoints of the reference solution by default.
        law_samples: number of samples drawn for the decision on noise, after half as many for the choice of strengths;
            with minutes it follows from the time.
        condition: conditions of the network, by name: tensors ``(noise_samples + held_out, ...)`` with a row
            for each sample, in dicts too; with minutes any number of rows from 8 up, half of them for the fits.
            Anything else is passed on unchanged.
        conditions: conditions as keywords.

    Raises:
        ValueError: an NFE below one call, too few noise samples, an unknown shape, conditions of another length, or
            features that do not take the samples or do not change smoothly with them.
        FloatingPointError: the model does not return numbers.
    """
    refuse_distilled(model, "tune a solver to")
    shape = model.shape if shape is None else tuple(shape)
    if shape is None:
        raise InputError("the model does not know the shape of a sample; pass shape=(...), without the batch")
    for nfe in budgets:
        if nfe < model.cost:
            raise InputError(f"nfe is a number of network evaluations, at least {model.cost} for this model; got {nfe}")
    require_whole("batch_size", batch_size, 1, 2**53)
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"minutes is how long tuning may take, a positive number; got {minutes}")
    for name, count in (("noise_samples", noise_samples), ("held_out", held_out)):
        require_whole(name, count, 0, _MANY)
    if noise_samples < FEW or held_out < 2:
        raise InputError(
            f"tuning needs at least {FEW} noise samples and 2 held out; got {noise_samples} and {held_out}"
        )
    given = conditions_for(tuned_each, model, conditions, condition, "tune")
    rows = rows_of(given, None if minutes is not None else noise_samples + held_out)
    compared = loss_for(model, shape, loss, None if stochastic and loss == "rmse" else features, place(model)[0])
    noise = noise_choice(model, shape, seed, features, real, law_samples, minutes is not None) if stochastic else None
    if noise is None and real is not None:
        raise InputError("real samples have an effect on the choice of noise alone; give stochastic=True")
    if noise is not None and minutes is None and noise.law is None:
        noise.require_endpoints(noise_samples + held_out)
    counts = (noise_samples, held_out, batch_size, minutes, timer)
    settings = (model, budgets, shape, seed, *counts, compared, mean_start, noise)
    model.eval()
    # Bound while they are whole: a null with a row for each sample is cut together with its condition.
    given = _first(model.bind(given), rows, rows, place(model)[0])
    with Pool(work_of(model, given, rows), processes) as pool:
        if pool is None:
            return
        if isinstance(progress, bool):
            with bar(progress) as shown:
                yield from _each(*settings, shown, on_effort, given, rows, pool)
        else:
            yield from _each(*settings, progress, on_effort, given, rows, pool)


def _each(
    model: ScoreModel,
    budgets: Sequence[int],
    shape: tuple[int, ...],
    seed: int,
    noise_samples: int,
    held_out: int,
    batch_size: int,
    minutes: float | None,
    timer: Callable[[], float],
    compared: FeatureLoss | None,
    mean_start: bool,
    noise: NoiseChoice | None,
    callback: Callable[[Progress], None] | None,
    on_effort: Callable[[Effort], None] | None,
    given: dict[str, Any],
    rows: int | None,
    pool: Pool,
) -> Iterator[Tuned]:
    clock = Clock(None if minutes is None else 60 * minutes, timer)
    reporter = Reporter(callback, clock)
    device, dtype = place(model)
    x1 = model.sde.prior((32, *shape), seeds=seeds_of(seed, 32, FIRST_NOISE), device=device, dtype=dtype)
    speed = seconds_per_evaluation(model, x1, batch_size, given, rows, timer)
    calls = [nfe // model.cost for nfe in budgets]
    seconds = clock.seconds if clock.seconds is None or noise is None else DETERMINISTIC_SHARE * clock.seconds
    made = effort_for(seconds, speed, calls, noise_samples, held_out, model.cost, MOST_KEPT // math.prod(shape))
    if rows is not None and minutes is not None:  # as many as there are conditions
        n = min(rows, made.noise_samples + made.held_out)
        made = replace(made, noise_samples=n - n // 2, held_out=n // 2)
        given = _first(given, rows, n, device)
    if clock.seconds is not None:
        made = replace(made, seconds=clock.seconds)
    elif noise is not None:
        made = replace(made, seconds=made.seconds + noise.seconds(sum(calls), speed * model.cost))
    if on_effort is not None:
        on_effort(made)
    reporter.tell(0.0, "reference solutions")
    task = Task.prepare(model, shape, seed, made, batch_size, given, pool, compared, mean_start)
    law = None if noise is None else noise.on(task)
    # A solver of n steps takes about n^2 calls for an iteration. With a path they are n, and few steps gain the most.
    weights = [math.sqrt(n) if task.path is not None else n**2 for n in calls]
    first = 0.3
    for k, nfe in enumerate(budgets):
        share = weights[k] / sum(weights[k:])
        width = (1 - first) * share
        reporter.within(first, width, f"{nfe} evaluations: ")
        part, found = clock.part(share), Found(task, reporter)
        best = tuned_solver(task, nfe, found, part if noise is None else part.part(FITS_SHARE))
        yield best if noise is None or law is None else noise.decided(task, found, best, law, part)
        first += width


def _first(given: dict[str, Any], rows: int | None, n: int | None, device: torch.device) -> dict[str, Any]:
    """The conditions of the first n samples, on a device."""
    return given if rows is None or n is None else cut(given, rows, torch.arange(n, device="cpu"), device)
