"""Results of a run: a ``Step`` after each step, and a ``Solution`` at the end."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from solvers.display.displayed import Displayed, finished
from solvers.display.figures import samples_figure
from solvers.display.result_table import ResultTable
from solvers.run.meter import Spent
from solvers.solver import LocalErrorEstimate

_SHOWN = 10  # samples in a notebook


class Status(IntEnum):
    """The status of a sample at the end of its run.

    ``diverged``: finite, but on the way the state was larger than its noise level and the values of the model explain,
    see ``solvers.run.meter.Sizes``; the result is no sample of the model.

    >>> Status(1).name
    'nfe_cap'
    """

    ok = 0
    nfe_cap = 1
    non_finite = 2
    dt_min = 3
    diverged = 4


class Step:
    """The state of a run after a step, as ``steps`` yields it.

    Attributes:
        index: number of the grid interval.
        t: the time reached: 0-d, or (B, 1, ..., 1) within an adaptive run.
        x: the batch there.
        spent: network evaluations so far, as the meter keeps them; see ``nfe``.
        status: ``Status`` codes so far, uint8 (B,).
        denoised: last value of the model: E[x_0 | x_t] of a reverse process, the drift of an Equation. In an
            adaptive run it is of the samples that were evaluated.
        estimate: the local error estimate that became known, if asked for and there is one.
        scales: after the last step, ``Solution.scales``.

    >>> from solvers import SOLVERS, Equation, steps
    >>> grid = torch.tensor([0.0, 0.5, 1.0])
    >>> [int(step.nfe) for step in steps(Equation(lambda x, t: -x), torch.ones(1, 1), grid, SOLVERS["heun"])]
    [2, 4]
    """

    __slots__ = ("denoised", "estimate", "index", "scales", "spent", "status", "t", "x")

    def __init__(
        self,
        index: int,
        t: Tensor,
        x: Tensor,
        spent: Spent,
        status: Tensor,
        denoised: Tensor | None = None,
        estimate: LocalErrorEstimate | None = None,
        scales: Tensor | None = None,
    ) -> None:
        self.index, self.t, self.x, self.spent, self.status = index, t, x, spent, status
        self.denoised, self.estimate, self.scales = denoised, estimate, scales

    @property
    def nfe(self) -> Tensor:
        """Network evaluations so far, int64 (B,)."""
        return self.spent.of_each(len(self.x))


@dataclass(frozen=True, repr=False)
class Solution(Displayed):
    """The result of a run: samples, evaluations and status; a table and a figure of itself.

    Attributes:
        x: (B, ...) at the last time.
        nfe: network evaluations of each sample, int64 (B,).
        codes: ``Status`` of each sample, uint8 (B,), on the device of x.
        failed_at: per sample the first time reached with x not finite, NaN where all is well, float64 (B,).
        times: the grid.
        trajectory: x at every time of the grid, or None.
        errors: local error estimates, or None: its fields t, s and error are (n, B) float64, one row
            for every step or round of attempts that left one; NaN where a sample made no step.
        scales: the scale of the data for which each sample ran, float64 (B,), where the solver looks for it as pf-ode
            does: 1, or what the first evaluations showed; None of other solvers.

    >>> from solvers import Equation, solve
    >>> out = solve(Equation(lambda x, t: -x), torch.ones(2, 1), solver="euler", grid=[0.0, 0.5, 1.0])
    >>> out
    Solution(2 samples (1,), 2 NFE, 2 intervals, t = 0 to 1, ok)
    >>> out.x.flatten(), out.nfe, out.status
    (tensor([0.2500, 0.2500]), tensor([2, 2]), ['ok', 'ok'])
    """

    x: Tensor
    nfe: Tensor
    codes: Tensor
    failed_at: Tensor
    times: Tensor
    trajectory: Tensor | None = None
    errors: LocalErrorEstimate | None = None
    scales: Tensor | None = None

    @property
    def status(self) -> list[str]:
        """Status of each sample: ok, nfe_cap, non_finite, dt_min or diverged."""
        return [Status(int(c)).name for c in self.codes.tolist()]

    def __repr__(self) -> str:
        least, most = int(self.nfe.min()), int(self.nfe.max())
        spent = f"{least}" if least == most else f"{least} to {most}"
        ended = ", ".join(name if n == len(self.x) else f"{n} {name}" for name, n in Counter(self.status).items())
        wide = 0 if self.scales is None else int((self.scales > 1).sum())
        ended += f", {wide} as wider data" if wide else ""
        return (
            f"Solution({len(self.x)} samples {tuple(self.x.shape[1:])}, {spent} NFE, "
            f"{len(self.times) - 1} intervals, t = {float(self.times[0]):.4g} to {float(self.times[-1]):.4g}, {ended})"
        )

    def table(self) -> ResultTable:
        """A row for each sample: network evaluations, status, RMS and range of its entries."""
        x = self.x.detach().flatten(1).double().cpu()
        columns = {
            "sample": list(range(len(x))),
            "nfe": self.nfe.tolist(),
            "status": self.status,
            "rms": x.square().mean(1).sqrt().tolist(),
            "least": x.amin(1).tolist(),
            "most": x.amax(1).tolist(),
        }
        records = tuple(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        rows = tuple(tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()) for r in records)
        return ResultTable(("sample", "NFE", "status", "RMS", "least", "most"), rows, records)

    def _repr_html_(self) -> str:
        """The first samples, for a notebook."""
        found = self.table()
        first = ResultTable(found.heads, found.rows[:_SHOWN], found.records[:_SHOWN], repr(self)[9:-1])
        return first.to_html() + (f"<p>{len(found.rows) - _SHOWN} more</p>" if len(found.rows) > _SHOWN else "")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The samples as a matplotlib figure: images, points in 2-D, signals, or a pair plot of vectors.

        Args:
            path: a .png, .svg or .pdf file to write it to as well.

        Raises:
            ValueError: samples of another shape, or another suffix.
        """
        return finished(samples_figure(self.x), path)


def updated_status(status: Tensor, x: Tensor) -> Tensor:
    """The codes (B,) after a step to x: ``non_finite`` where x is not finite.

    On the CPU the same tensor is returned if all entries are finite: their sum shows this at a tenth of the cost of
    asking each. On other devices nothing waits for the answer.
    """
    if x.is_cpu and math.isfinite(x.sum().item()):
        return status
    return torch.where(finite_samples(x), status, Status.non_finite)


def finite_samples(x: Tensor) -> Tensor:
    """Which samples are finite, bool (B,).

    >>> finite_samples(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]))
    tensor([ True, False])
    """
    # The largest magnitude is NaN where one entry is, and NaN is not below anything.
    return torch.linalg.vector_norm(x.flatten(1), math.inf, 1) <= torch.finfo(x.dtype).max


def failed_at(reached: list[tuple[Tensor, Tensor]]) -> Tensor:
    """From the times and codes after each step, the first time at which a sample was not finite; NaN without.

    Args:
        reached: (t, status) after each step, t 0-d or one for each sample.
    """
    first = reached[0][1]
    if all(status is first for _, status in reached):
        return torch.full_like(first, torch.nan, dtype=torch.float64)
    failed = torch.stack([status for _, status in reached]) == Status.non_finite
    filled = torch.zeros_like(failed[0], dtype=torch.float64)
    # Times of the whole batch are on the CPU; filling in a number does not wait for a device, as a copy would.
    times = torch.stack([filled + float(t) if t.ndim == 0 else t.reshape(-1).double() for t, _ in reached])
    found = times.gather(0, failed.to(torch.uint8).argmax(0, keepdim=True))[0]
    return found.masked_fill(~failed.any(0), torch.nan)


def stacked(estimates: list[LocalErrorEstimate], x: Tensor) -> LocalErrorEstimate:
    """All estimates of a run as one, with fields (n, B)."""
    batch = len(x)
    if not estimates:
        return LocalErrorEstimate(*(torch.empty(0, batch, dtype=torch.float64, device=x.device) for _ in range(3)))
    rows = [[c.to(x.device, torch.float64).reshape(-1).expand(batch) for c in e] for e in estimates]
    return LocalErrorEstimate(*(torch.stack(column) for column in zip(*rows, strict=True)))
