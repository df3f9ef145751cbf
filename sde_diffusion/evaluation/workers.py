"""Samples and their features, made by several processes that share the work and give the same number.

The run is cut into batches whatever the number of processes; a batch is made by one process on one thread, from the
seeds of its samples, and the features are put together in the order of the samples. So figures do not depend on who
made which batch, to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.evaluation.features import Extractor
from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.sampler import check_status, noise_for
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from solvers import solve
from solvers.conditions import cut
from solvers.errors import InputError, require_whole


class Drawn(NamedTuple):
    """Features (n, d), class probabilities (n, classes) or None, and network evaluations (n,) of samples."""

    features: Tensor
    probabilities: Tensor | None
    nfe: Tensor


class _Part(NamedTuple):
    # Arrays, because tensors would cross between processes as shared memory, a file handle each.
    features: np.ndarray
    probabilities: np.ndarray | None
    nfe: np.ndarray


@torch.no_grad()
def _make(
    model: ScoreModel,
    extractor: Extractor,
    drawing: SamplingSettings,
    start: int,
    size: int,
    x0: np.ndarray | None,
    condition: dict[str, Any],
) -> _Part:
    """Samples start to start + size - 1 of a run; from noised x0 instead of the prior where it is given."""
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample")
    run = drawing.resolve(model, model.shape)
    seeds = seeds_of(drawing.seed, size, start)
    x1 = noise_for(model, model.shape, seeds)
    if x0 is not None:
        z0 = model.units.to_model(torch.from_numpy(x0).to(x1))
        x1 = model.sde.perturb(z0, 1.0, x1 / model.sde.prior_std())
    given = cut(_changed(condition, np.ndarray, torch.from_numpy), size, torch.arange(size), x1.device)
    out = solve(run.process(model, given), x1, solver=run.solver, nfe=run.nfe, grid=run.times, seeds=seeds)
    check_status(out, start)
    found = extractor(model.units.to_data(out.x).float())
    p = found.probabilities
    return _Part(found.features.cpu().numpy(), None if p is None else p.cpu().numpy(), out.nfe.numpy())


def _changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A condition with all arrays as tensors, or the reverse; dicts, lists and tuples are entered."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(entry, kind, change) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_changed(entry, kind, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


_own: tuple[ScoreModel, Extractor] | None = None


def _begin(model: ScoreModel, extractor: Extractor) -> None:
    global _own
    torch.set_num_threads(1)
    _own = model, extractor


def _make_here(
    drawing: SamplingSettings, start: int, size: int, x0: np.ndarray | None, condition: dict[str, Any]
) -> _Part:
    assert _own is not None
    return _make(*_own, drawing, start, size, x0, condition)


class Workers:
    """Processes with a model and an extractor. Use as a context manager.

    Args:
        model: any ScoreModel with a shape, in evaluation mode.
        extractor: extractor of the features.
        processes: number of processes; 1 is this one. A model on a GPU takes 1.
        condition: what the network takes beside (x, t), by name; tensors have a row for each sample that is drawn.

    Raises:
        ValueError: fewer than 1 process, or more than 1 for a GPU.
    """

    def __init__(
        self,
        model: ScoreModel,
        extractor: Extractor,
        processes: int = 1,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        require_whole("processes", processes, 1, 1024)
        if processes > 1 and model.device.type != "cpu":
            raise InputError(f"expected 1 process or more, and 1 for a model on a GPU; got {processes}")
        self.model, self.extractor, self.processes = model, extractor, processes
        self.condition = conditions_for(Workers, model, {}, condition)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.processes > 1:
            own = (self.model, self.extractor)
            self._pool = ProcessPoolExecutor(self.processes, get_context("spawn"), _begin, own)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def draw(
        self,
        drawing: SamplingSettings,
        n: int,
        x0: Tensor | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Drawn:
        """The features of n samples.

        Args:
            drawing: settings of the sampling.
            n: number of samples.
            x0: data (n, ...) to start from, noised to t = 1, instead of the prior.
            progress: called with the share of the batches that are done.

        Raises:
            ValueError, FloatingPointError: as ``sample``.
        """
        if n < 1:
            raise InputError(f"n must be at least 1; got n={n}")
        size = drawing.batch_size
        starts = list(range(0, n, size))
        sizes = [min(size, n - start) for start in starts]
        for name, value in self.condition.items():
            if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != n):
                count = len(value) if value.ndim else "no"
                raise InputError(f"condition '{name}' has {count} entries for {n} samples; give one each")
        bound = self.model.bind(self.condition)
        rows = [torch.arange(start, start + k, device="cpu") for start, k in zip(starts, sizes, strict=True)]
        given = [_changed(cut(bound, n, r, torch.device("cpu")), Tensor, Tensor.numpy) for r in rows]
        data = [None if x0 is None else x0[start : start + size].numpy() for start in starts]
        parts: list[_Part] = []
        for part in self._parts([drawing] * len(starts), starts, sizes, data, given):
            parts.append(part)
            if progress is not None:
                progress(len(parts) / len(starts))
        p = [part.probabilities for part in parts if part.probabilities is not None]
        return Drawn(
            torch.from_numpy(np.concatenate([part.features for part in parts])),
            torch.from_numpy(np.concatenate(p)) if p else None,
            torch.from_numpy(np.concatenate([part.nfe for part in parts])),
        )

    def _parts(
        self,
        drawings: list[SamplingSettings],
        starts: list[int],
        sizes: list[int],
        data: list[np.ndarray | None],
        given: list[dict[str, Any]],
    ) -> Iterator[_Part]:
        if self._pool is not None:
            yield from self._pool.map(_make_here, drawings, starts, sizes, data, given)
            return
        for job in zip(drawings, starts, sizes, data, given, strict=True):
            with one_thread():
                yield _make(self.model, self.extractor, *job)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread, so that sums have one order for any number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def default_processes() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
