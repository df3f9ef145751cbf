"""Sampling: from a model, a solver's name and a budget to samples, batch by batch.

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
from solvers import Solution, Solver, Step, find, solve
from solvers.conditions import cut
from solvers.errors import InputError, NonFiniteError, require_whole

_SEED_STRIDE = 2**32
MOST_SAMPLES = 10_000_000
MOST_VALUES = 2**33  # of all samples together, 32 GiB in float32

Grid = str | Tensor | Sequence[float] | None


def seeds_of(seed: int, n: int, start: int = 0) -> Tensor:
    """The seeds of samples start to start + n - 1 of a run.

    Raises:
        ValueError: a seed outside [0, 2^31).

    >>> seeds_of(0, 3)
    tensor([0, 1, 2])
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must be an integer from 0 to 2^31 - 1; got {seed}")
    return seed * _SEED_STRIDE + torch.arange(start, start + n, device="cpu")


def usual_nfe(solver: Solver, nfe: int | None, steps: int | None, grid: Grid) -> int | None:
    """The given NFE; 20 if neither steps nor times are given.

    >>> from solvers import SOLVERS
    >>> usual_nfe(SOLVERS["ddim"], None, None, "karras"), usual_nfe(SOLVERS["rk45"], None, None, None)
    (20, None)
    """
    named = isinstance(solver.grid if grid is None else grid, str)
    return 20 if nfe is None and steps is None and named and not solver.adaptive else nfe


def whole_way(grid: Grid, partial: bool = False) -> Grid:
    """A grid for samples, which start from noise and end as data.

    Raises:
        ValueError: times that do not lead from 1 to 0.

    >>> whole_way([1.0, 0.5])
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: samples start from noise at t = 1 and end as data at t = 0; this grid goes ...
    """
    if not partial and grid is not None and not isinstance(grid, str) and len(grid) > 0:
        first, last = float(grid[0]), float(grid[-1])
        inside = min(first, last) >= 0 and max(first, last) <= 1  # times outside [0, 1] raise in make_grid
        if inside and (first, last) != (1.0, 0.0):
            raise InputError(
                f"samples start from noise at t = 1 and end as data at t = 0; this grid goes from {first:g} to "
                f"{last:g}. For a part of the way, or the way back, use --partial (partial=True), solvers.solve or "
                f"sde_diffusion.encode"
            )
    return grid


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
    """Starting points (len(seeds), *shape) on the device of the network's parameters, in their dtype or float32."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return model.sde.prior((len(seeds), *shape), seeds=seeds)
    # The sums of a solver need more digits than a network in half precision: its state stays in float32.
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return model.sde.prior((len(seeds), *shape), seeds=seeds, device=parameter.device, dtype=dtype)


def start_scale(model: ScoreModel, grid: Grid) -> float:
    """The size of the marginal at the first of given times over that at t = 1; 1 for a grid by name.

    >>> from sde_diffusion import EDM
    >>> round(start_scale(ScoreModel(None, EDM(80.0), "data"), [0.1, 0.0]), 4)  # sqrt(1 + 8^2) / sqrt(1 + 80^2)
    0.1008
    """
    if grid is None or isinstance(grid, str) or float(grid[0]) in (1.0, 0.0):
        return 1.0
    alpha, sigma = model.sde.marginal(float(grid[0]))
    return math.hypot(float(alpha), float(sigma)) / model.sde.prior_std()


def sample_batches(
    model: ScoreModel,
    n: int,
    *,
    solver: str | Solver = "pf-ode",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Tensor | Sequence[float] | None = None,
    seed: int = 0,
    shape: Iterable[int] | None = None,
    batch_size: int = 256,
    eta: float | None = None,
    partial: bool = False,
    on_step: Callable[[Step], None] | None = None,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Iterator[Solution]:
    """Generate n samples in batches; ``sample`` with the solver's own account of each batch, x in units of the data.

    The arguments are those of ``sample``; on_step is called after every step of every batch.
    """
    shape = model.shape if shape is None else tuple(shape)
    if shape is None:
        raise InputError("the model does not know the shape of a sample; pass shape=(...), without the batch")
    check_count(n, shape)
    require_whole("batch_size", batch_size, 1, 2**53)
    condition = {**conditions, **(condition or {})}
    for name, value in condition.items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != n):
            raise InputError(
                f"condition '{name}' has {len(value) if value.ndim else 'no'} entries for {n} samples; give one each"
            )
    solver = find(solver)
    nfe, grid = usual_nfe(solver, nfe, steps, grid), whole_way(grid, partial)
    eta = float(solver.stochastic) if eta is None else eta
    bound = model.bind(condition)
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        seeds = seeds_of(seed, size, start)
        x1 = noise_for(model, shape, seeds) * start_scale(model, grid)
        part = cut(bound, n, torch.arange(start, start + size, device="cpu"), x1.device)
        out = solve(
            model.sde.reverse(model, eta, **part),
            x1,
            solver=solver,
            nfe=nfe,
            steps=steps,
            grid=grid,
            seeds=seeds,
            on_step=on_step,
        )
        yield replace(out, x=model.units.to_data(out.x))


@torch.no_grad()
def sample(
    model: ScoreModel,
    n: int,
    *,
    solver: str | Solver = "pf-ode",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Tensor | Sequence[float] | None = None,
    seed: int = 0,
    shape: Iterable[int] | None = None,
    batch_size: int = 256,
    eta: float | None = None,
    partial: bool = False,
    condition: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Tensor:
    """Generate samples.

    Args:
        model: any ScoreModel.
        n: number of samples.
        solver: a name in ``SOLVERS`` or a Solver.
        nfe: network evaluations per sample; 20 unless steps or the times are given.
        steps: grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.
        seed: seed of the run; sample k depends on (seed, k) alone.
        shape: shape of one sample; the model's own by default.
        batch_size: samples integrated together.
        eta: noise level of the reverse process; 1 for stochastic solvers and 0 for the others by default.
        partial: whether times that do not lead from 1 to 0 are taken, as Stable Diffusion's are: from the first of
            them, with noise of the marginal's size there for data of unit variance, to the last.
        condition: what the network takes beside (x, t), by name: tensors (n, ...) with a row for each sample, in dicts
            too; anything else is passed on unchanged.
        conditions: the same as keywords, such as ``label=...``.

    Returns:
        (n, *shape), in the units of the training data.

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
    out: list[Tensor] = []
    for part in sample_batches(
        model,
        n,
        solver=solver,
        nfe=nfe,
        steps=steps,
        grid=grid,
        seed=seed,
        shape=shape,
        batch_size=batch_size,
        eta=eta,
        partial=partial,
        on_step=None,
        condition=given,
    ):
        check_status(part, start=sum(len(x) for x in out))
        out.append(part.x)
    return torch.cat(out)


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
    early = [name for name in status if name != "ok"]
    if early:
        warnings.warn(
            f"{len(early)} of {len(status)} samples ended early ({', '.join(sorted(set(early)))}); raise nfe or the "
            "tolerance",
            stacklevel=2,
        )
