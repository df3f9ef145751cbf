"""A tuning problem: a model, its initial noise and reference solutions, split for fitting and for selection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling.reference_solution import converged, reference_work
from sde_diffusion.sampling.reference_states import ReferencePath
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.tuning.effort import CHECKED, Effort
from sde_diffusion.tuning.fit import Denoise, TableFit, run
from sde_diffusion.tuning.path_times import PathTimes
from solvers import Solver
from solvers.conditions import cut
from solvers.errors import InputError
from solvers.fitted.compile import compile_table

# Seeds of tuning are at least 2^31, above the seeds of any sampling run.
FIRST_NOISE = 2**31
_LEAST_ROWS = 8
_MOST_MEAN = 2**16  # entries of a sample whose mean a solver holds
MOST_KEPT = 2**21  # entries of the samples whose reference states are kept, 1 GiB in all
_REFERENCE_BATCH = 64  # few, so that the reference solutions of some hundred samples can be shared


def rows_of(condition: Mapping[str, Any], expected: int | None) -> int | None:
    """The number of samples that conditions have rows for; None where nothing has a row for each sample.

    Args:
        condition: by name. A tensor has a row for each sample; within dicts and tuples the tensors of most rows have,
            and others are shared by all samples, as is anything else.
        expected: the number of samples, where it is known.

    Raises:
        InputError: tensors of another length or of several, or fewer than 8 rows.

    >>> rows_of({"label": torch.zeros(16), "strength": 0.5}, None), rows_of({"strength": 0.5}, None)
    (16, None)
    """
    sizes = set()
    for name, value in condition.items():
        if not isinstance(value, Tensor):
            continue
        if value.ndim == 0:
            raise InputError(
                f"condition '{name}' is a tensor without rows; give a row for each noise sample, or a number"
            )
        if expected is not None and len(value) != expected:
            raise InputError(f"condition '{name}' has {len(value)} entries for {expected} noise samples; give one each")
        sizes.add(len(value))
    if len(sizes) > 1 or (sizes and min(sizes) < _LEAST_ROWS):
        raise InputError(f"conditions have the same number of entries, 8 or more; got {sorted(sizes)}")
    if sizes:
        return sizes.pop()
    if expected is not None:
        return expected
    most = max((len(value) for value in _tensors(condition)), default=0)
    if 0 < most < _LEAST_ROWS:
        raise InputError(f"conditions have the same number of entries, 8 or more; got {most}")
    return most or None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors within, those that could have rows."""
    if isinstance(value, Tensor):
        if value.ndim > 0:
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


def place(model: ScoreModel) -> tuple[torch.device, torch.dtype]:
    """The device of a model, and the dtype of its states."""
    parameter = next(chain(model.parameters(), model.buffers()), None)
    if parameter is None:
        return torch.device("cpu"), torch.get_default_dtype()
    return parameter.device, torch.promote_types(parameter.dtype, torch.float32)


def work_of(model: ScoreModel, given: dict[str, Any], rows: int | None) -> dict[str, Callable[..., Any]]:
    """The work of a pool that tuning shares: network evaluations, and reference solutions.

    Args:
        model: any ScoreModel.
        given: conditions that are bound to the model, on its device.
        rows: number of samples that they have rows for; None for none.
    """
    device, _ = place(model)

    def denoise(x: Tensor, t: Tensor, samples: Tensor) -> Tensor:
        condition = given if rows is None else cut(given, rows, samples.to(device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and (x.requires_grad or t.requires_grad)):
            return model.denoise(x.to(device), t.to(device), **condition).to(x.device)

    return {"denoise": denoise, **reference_work(model, given, rows or -1)}


@dataclass(frozen=True)
class Task:
    """A model with the samples that solvers are fitted to, and those that select.

    Attributes:
        model: the model.
        fit: the fitting samples.
        held: the held-out samples.
        teacher_error: error of their reference solutions.
        effort: the planned work.
        path: states of the reference solutions; None without a time limit.
        mean: the mean of D at the start of the path, (...), where a first row may use it.
    """

    model: ScoreModel
    fit: TableFit
    held: TableFit
    teacher_error: float
    effort: Effort
    path: ReferencePath | None = None
    mean: Tensor | None = None

    @classmethod
    def prepare(
        cls,
        model: ScoreModel,
        shape: tuple[int, ...],
        seed: int,
        effort: Effort,
        batch_size: int,
        given: dict[str, Any],
        pool: Pool,
        seen: Callable[[Tensor], Tensor] | None = None,
        mean_start: bool = True,
    ) -> Task:
        """Draw the initial noise and compute its endpoints, on a pool with ``work_of`` the model and its conditions."""
        device, dtype = place(model)
        noise_samples, total = effort.noise_samples, effort.noise_samples + effort.held_out
        x1 = model.sde.prior((total, *shape), seeds=seeds_of(seed, total, FIRST_NOISE), device=device, dtype=dtype)
        # Its states are kept where the reference solution runs here, and memory suffices.
        path = None
        if effort.timed and pool.world == 1 and x1[0].numel() * total <= MOST_KEPT:
            path = ReferencePath(model, x1, effort.reference_steps)
        x0, error = converged(
            model,
            x1,
            steps=effort.reference_steps,
            batch_size=min(batch_size, _REFERENCE_BATCH),
            dtype=dtype if effort.timed else torch.float64,
            checked=CHECKED if effort.timed else None,
            pool=None if pool.world == 1 else pool,
            on_state=None if path is None else path.keep,
            **given,
        )

        def denoise(first: int) -> Denoise:
            def call(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
                apart = pool.world > 1 and len(x) > batch_size  # between processes travel tensors of the CPU
                x, rows = (x.cpu() if apart else x), rows.cpu() + first
                starts = range(0, len(x), batch_size)
                jobs = (tuple(column[k : k + batch_size] for column in (x, t, rows)) for k in starts)
                return torch.cat([part.to(device) for part in pool.map("denoise", jobs)])

            return call

        fit = TableFit(denoise(0), model.sde, x1[:noise_samples], x0[:noise_samples], seen)
        held = TableFit(denoise(noise_samples), model.sde, x1[noise_samples:], x0[noise_samples:], seen)
        mean = None
        if path is not None and mean_start and math.prod(shape) <= _MOST_MEAN:
            mean = path.kept(noise_samples)[1][0].mean(0).to(dtype)
        return cls(model, fit, held, error, effort, path, mean)

    @cached_property
    def path_times(self) -> PathTimes:
        """What the path says of times, for all numbers of steps."""
        assert self.path is not None
        return PathTimes.of(self.path, self.model.sde)

    def part(self, n: int, mean: Tensor | None = None) -> TableFit:
        """The problem with the first samples only, and with a mean for the first row."""
        return replace(self.fit, x1=self.fit.x1[:n], x0=self.fit.x0[:n], mean=mean)

    def endpoints(self, fit: TableFit, solver: Solver, times: Tensor) -> Tensor:
        """The endpoints of a solver from the initial noise of a fit."""
        return run(compile_table(solver, self.model.sde, len(times) - 1, times), fit)

    def error(self, fit: TableFit, solver: Solver, times: Tensor) -> float:
        """The mean error; infinite if a sample is not finite."""
        error = float(fit.errors(self.endpoints(fit, solver, times)).mean())
        return error if math.isfinite(error) else math.inf
