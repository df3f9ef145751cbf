"""Samples of a model and their features, batch by batch, on one process or on the processes of a pool.

The run is cut into batches by the index of the samples, whatever the number of processes, and the features are put
together in the order of the samples. So figures do not depend on who made which batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.evaluation.features import Extractor
from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling.sampler import check_status, noise_for
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from solvers import solve
from solvers.conditions import cut
from solvers.errors import InputError


class Drawn(NamedTuple):
    """The features (n, d) of samples, their class probabilities (n, classes) or None, and their evaluations (n,)."""

    features: Tensor
    probabilities: Tensor | None
    nfe: Tensor


@dataclass(frozen=True, eq=False)
class FeatureSampler:
    """Draws samples of a model and takes their features.

    Args:
        model: any ScoreModel with a shape, in evaluation mode.
        extractor: extractor of the features.
        condition: conditions of the network, by name; tensors have a row for each sample that is drawn.
        pool: a pool with the ``work`` of an equal sampler on every process; this process alone by default.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.evaluation.features import make_extractor
    >>> model = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
    >>> drawn = FeatureSampler(model, make_extractor("pixels")).draw(SamplingSettings("ddim", nfe=5), 100)
    >>> tuple(drawn.features.shape), int(drawn.nfe.sum())
    ((100, 2), 500)
    """

    model: ScoreModel
    extractor: Extractor
    condition: Mapping[str, Any] = field(default_factory=dict)
    pool: Pool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "condition", conditions_for(FeatureSampler, self.model, {}, self.condition))

    @property
    def work(self) -> dict[str, Callable[..., Any]]:
        """The work that a pool shares."""
        return {"features": self._batch}

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
        for name, value in self.condition.items():
            if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != n):
                count = len(value) if value.ndim else "no"
                raise InputError(f"condition '{name}' has {count} entries for {n} samples; give one each")
        size, done = drawing.batch_size, 0
        starts = range(0, n, size)
        jobs = ((drawing, start, n, None if x0 is None else x0[start : start + size]) for start in starts)
        columns: tuple[Tensor | None, ...] = ()
        for part in (self.pool or Pool(self.work)).map("features", jobs):
            if not columns:  # once, because a list of parts and their concatenation are twice the memory
                columns = tuple(None if c is None else torch.empty(n, *c.shape[1:], dtype=c.dtype) for c in part)
            for column, rows in zip(columns, part, strict=True):
                if column is not None:
                    column[done : done + len(rows)] = rows
            done += len(part.nfe)
            if progress is not None:
                progress(done / n)
        features, probabilities, nfe = columns
        assert features is not None and nfe is not None
        return Drawn(features, probabilities, nfe)

    @torch.no_grad()
    def _batch(self, drawing: SamplingSettings, start: int, n: int, x0: Tensor | None) -> Drawn:
        """A batch of samples from ``start`` on; from noised x0 instead of the prior where it is given."""
        model = self.model
        if model.shape is None:
            raise InputError("the model does not know the shape of a sample")
        run = drawing.resolve(model, model.shape)
        size = min(drawing.batch_size, n - start)
        seeds = seeds_of(drawing.seed, size, start)
        x1 = noise_for(model, model.shape, seeds)
        if x0 is not None:
            z0 = model.units.to_model(x0.to(x1))
            x1 = model.sde.perturb(z0, 1.0, x1 / model.sde.prior_std())
        given = cut(model.bind(dict(self.condition)), n, torch.arange(start, start + size, device="cpu"), x1.device)
        out = solve(run.process(model, given), x1, solver=run.solver, nfe=run.nfe, grid=run.times, seeds=seeds)
        check_status(out, start)
        found = self.extractor(model.to_samples(out.x).float())
        p = found.probabilities
        return Drawn(found.features.cpu(), None if p is None else p.cpu(), out.nfe.cpu())
