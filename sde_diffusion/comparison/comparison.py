r"""Comparison of solvers on one model, from the same initial noise, by their distance to the reference solution.

A deterministic solver has a paired error: the distance, root mean square over entries, of each of its samples to the
endpoint that the converged probability flow (``sde_diffusion.sampling.reference_solution``) reaches from the same
noise. At each NFE all are compared with the one of the smallest mean error, sample by sample, by intervals that hold
for the whole table at once (``sde_diffusion.comparison.simultaneous``); one that contains 0 is no evidence of a
difference. A stochastic solver has no such error. It, like every other, has the distance of its samples to the data:
squared Frechet, with its interval, and sliced Wasserstein.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.comparison.result import Comparison, ComparisonRow
from sde_diffusion.evaluation.metrics import Moments, sliced_wasserstein, unbiased_frechet_distance
from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report.share_of_work import Relay, part_of, share_bar
from sde_diffusion.sampling.reference_solution import converged, reference_work, rms
from sde_diffusion.sampling.sampler import MOST_SAMPLES, check_count, noise_for, sample_batches
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from solvers import Solver
from solvers.conditions import cut
from solvers.errors import InputError, NonFiniteError, require_whole
from solvers.planning import MOST

SHORTLIST = ("pf-ode", "unipc", "dpm++2m", "deis", "ddim", "sde")
BUDGETS = (5, 10, 20)
# The cost of a step of the reference solution, twice in float64, over that of a network evaluation in float32.
_REFERENCE = 3.0
# Of the sliced distance, which sorts the data anew for every row.
_LINES, _MOST = 128, 2048


class _Part(NamedTuple):
    """A batch of samples on the CPU, their evaluations and how they ended."""

    x: Tensor
    nfe: Tensor
    status: list[str]


@torch.no_grad()
def compare(
    model: ScoreModel,
    solvers: Mapping[str, Solver | Mapping[int, Solver]],
    budgets: Sequence[int] = BUDGETS,
    *,
    n: int = 512,
    paired: int = 64,
    seed: int = 0,
    data: Tensor | None = None,
    batch_size: int = 256,
    reference_steps: int = 800,
    on_row: Callable[[str], None] | None = None,
    processes: Processes | None = None,
    progress: bool | Callable[[float], None] = True,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Comparison:
    """The errors and distances of solvers at each NFE, from the same initial noise: a ``Comparison``.

    Those of a latent model are errors and distances of its latents, into which the data are encoded.

    Args:
        model: any ScoreModel with a shape.
        solvers: by the names to show; one, or one for each NFE.
        budgets: network evaluations for each sample.
        n: number of samples for each solver and NFE.
        paired: number of samples, the first ones, that are compared with the reference solution; at most n.
        seed: sample k starts from the noise that ``sample(model, n, seed=seed)`` gives it.
        data: (m, ...) to measure the distance of the samples to; without it there is none.
        batch_size: samples integrated together.
        reference_steps: steps of the reference solution.
        on_row: called with a description of the next computation.
        processes: processes that share the batches, each with an equal model; all but the first get no rows.
        progress: whether a bar is shown in a terminal or notebook after a second; or a function that is called with the
            share done.
        condition: conditions of the network, by name; tensors (n, ...) have a row for each sample.
        conditions: the same as keywords, such as ``label=...``.

    Raises:
        ValueError: no solvers, none for an NFE, an NFE below 1, fewer than 2 paired samples, or none that can run.
        FloatingPointError: the model returns NaN or inf.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> from solvers import SOLVERS
    >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.2, sde=VPSDE())
    >>> found = compare(model, {k: SOLVERS[k] for k in ("ddim", "pf-ode")}, [10], n=16, paired=16, reference_steps=100)
    >>> found.verdict(found.rows[0]).best, found.verdict(found.rows[0]).tie
    ('pf-ode', False)
    """
    given = conditions_for(compare, model, conditions, condition)
    refuse_distilled(model, "compare solvers on")
    if not solvers or not budgets or min(budgets) < 1:
        raise InputError(
            f"expected one solver or more and NFE of at least 1; got solvers {list(solvers)}, nfe {list(budgets)}"
        )
    ways = {(name, nfe): _for(name, solver, nfe) for name, solver in solvers.items() for nfe in budgets}
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample: set model.shape")
    check_count(n, model.shape)
    require_whole("paired", paired, 0, MOST_SAMPLES)
    require_whole("reference_steps", reference_steps, 1, MOST)
    paired = min(paired, n)
    if paired < 2:
        raise InputError(f"an interval needs at least 2 samples; got n={n}, of which {paired} are paired")
    model.eval()
    say = on_row or (lambda what: None)
    relay, batches = Relay(), -(-n // batch_size)

    def batch(name: str, nfe: int, number: int) -> _Part:
        settings = SamplingSettings(ways[name, nfe], nfe, seed=seed, batch_size=batch_size)
        share = relay.part(number / batches, 1 / batches)
        (part,) = sample_batches(model, n, settings, condition=given, which=[number], on_share=share, decoded=False)
        return _Part(part.x.cpu(), part.nfe.cpu(), part.status)

    bound = model.bind(given)
    deterministic = not all(solver.stochastic for solver in ways.values())
    done = _REFERENCE * reference_steps * paired if deterministic else 0.0
    total = done + n * sum(nfe for _, nfe in ways)
    with (
        Pool({"batch": batch, **reference_work(model, bound, n)}, processes) as pool,
        share_bar(progress, "reference solution") as report,
    ):
        if pool is None:
            return Comparison([], n, paired, seed, None)
        endpoints, reference_error = None, None
        if deterministic:
            say("the reference solution")
            x1 = noise_for(model, model.shape, seeds_of(seed, paired))
            first = cut(bound, n, torch.arange(paired, device="cpu"), x1.device)
            endpoints, reference_error = converged(
                model,
                x1,
                steps=reference_steps,
                batch_size=batch_size,
                pool=None if pool.world == 1 else pool,
                on_share=part_of(report, 0.0, done / total),
                **first,
            )
            endpoints = model.units.to_data(endpoints).cpu()
            reference_error *= model.units.largest_scale
        data = None if data is None else model.to_latents(data)
        target = None if data is None else (_some(data.cpu()), Moments.of(data))
        rows = []
        for (name, nfe), solver in ways.items():
            say(f"{name}, {nfe} evaluations")
            relay.report = part_of(report, done / total, n * nfe / total, f"{name}, {nfe} NFE")
            done += n * nfe
            begin = time.perf_counter()
            made = pool.map("batch", ((name, nfe, number) for number in range(batches)))
            rows.append(_row(name, nfe, made, None if solver.stochastic else endpoints, target, begin))
    if not any(row.used > 0 for row in rows):
        raise InputError(f"no solver could run: {'; '.join(f'{r.solver} at {r.nfe}: {r.note}' for r in rows)}")
    if all(row.note.startswith("not finite") for row in rows):
        raise NonFiniteError("no solver gave finite samples: the model returns NaN or inf; check its weights")
    return Comparison(rows, n, paired, seed, reference_error)


def _for(name: str, solver: Solver | Mapping[int, Solver], nfe: int) -> Solver:
    """The solver of a name for an NFE."""
    if isinstance(solver, Solver):
        return solver
    if nfe not in solver:
        raise InputError(f"'{name}' has solvers for {', '.join(map(str, solver))} evaluations, and none for {nfe}")
    return solver[nfe]


def _some(data: Tensor) -> Tensor:
    """Evenly spaced samples of a large set."""
    return data[torch.linspace(0, len(data) - 1, min(len(data), _MOST), dtype=torch.float64).long()]


def _far(x: Tensor, data: Tensor) -> int:
    """The number of samples more than 1.5 times as far from the mean of the data as any of the data."""
    centre = data.double().flatten(1).mean(0)
    reach = (data.double().flatten(1) - centre).norm(dim=1).max()
    return int(((x.flatten(1) - centre).norm(dim=1) > 1.5 * reach).sum())


def _row(
    name: str,
    nfe: int,
    made: Iterator[Any],
    endpoints: Tensor | None,
    target: tuple[Tensor, Moments] | None,
    begin: float,
) -> ComparisonRow:
    try:
        parts = list(made)
    except ValueError as error:  # the NFE does not suffice for one step, or is not the one it was tuned for
        return ComparisonRow(name, nfe, float("nan"), None, None, None, 0.0, str(error))
    seconds = time.perf_counter() - begin
    x = torch.cat([part.x for part in parts]).double().cpu()
    used = float(torch.cat([part.nfe for part in parts]).double().mean())
    lost = int((~x.isfinite().flatten(1).all(1)).sum())
    if lost:
        return ComparisonRow(name, nfe, used, None, None, None, seconds, f"not finite: {lost} of {len(x)} samples")
    ends = [status for part in parts for status in part.status]
    diverged = ends.count("diverged")
    early = len(ends) - ends.count("ok") - diverged
    note = f"{early} of {len(x)} samples ended early" if early else ""
    if diverged:
        note = "; ".join(filter(None, [f"{diverged} of {len(x)} samples diverged", note]))
    errors = None if endpoints is None else rms(x[: len(endpoints)] - endpoints)
    frechet = sliced = None
    if target is not None:
        if far := _far(x, target[0]):
            note = "; ".join(filter(None, [note, f"{far} of {len(x)} samples far from all data decide the distances"]))
        sliced = sliced_wasserstein(x, target[0], projections=_LINES)
        if min(len(x), target[1].n) >= max(x[0].numel(), 2):
            frechet = unbiased_frechet_distance(x, target[1])
    return ComparisonRow(name, nfe, used, errors, frechet, sliced, seconds, note)
