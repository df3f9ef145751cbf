"""The result of a comparison of solvers: its rows, their verdicts, and how they are shown."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from sde_diffusion.comparison.simultaneous import critical_value, studentised
from sde_diffusion.evaluation.metrics import Estimate
from sde_diffusion.evaluation.result import show
from solvers.display.displayed import Displayed, finished
from solvers.display.figures import new_figure
from solvers.display.result_table import ResultTable

TIE = "no evidence of a difference"


@dataclass(frozen=True)
class ComparisonRow:
    """One solver at one NFE.

    Attributes:
        solver: its name.
        nfe: network evaluations for each sample.
        used: network evaluations of a sample, mean; NaN where it could not run.
        errors: paired error of each followed noise; None for stochastic solvers and those that failed.
        frechet: squared Frechet distance to the data, in squared units of x, without the bias of n samples; None where
            there is none.
        sliced: sliced Wasserstein distance to the data, in units of x.
        seconds: for all samples.
        note: reason why it did not run, or a remark.
    """

    solver: str
    nfe: int
    used: float
    errors: Tensor | None
    frechet: Estimate | None
    sliced: float | None
    seconds: float
    note: str = ""

    @property
    def error(self) -> float | None:
        """The mean paired error."""
        return None if self.errors is None else float(self.errors.mean())

    @property
    def error_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean paired error, of this row on its own."""
        return None if self.errors is None else mean_interval(self.errors)


@dataclass(frozen=True)
class Verdict:
    """A row against the best of its NFE, which was chosen on the same samples.

    Attributes:
        best: the name of the solver with the smallest mean error at the NFE.
        low: lower end of the interval of the mean of (its error - the best's), sample by sample; all intervals of a
            comparison hold at once with 95 %, the choice of the best included.
        high: upper end.
        rivals: number of other solvers at this NFE that are not separated from the best.
    """

    best: str
    low: float
    high: float
    rivals: int = 0

    @property
    def tie(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """The rows of a comparison and its settings; a table and a figure of itself.

    Attributes:
        rows: in the order of solvers, then NFE.
        n: samples of each row.
        paired: number of samples that are compared with the reference solution.
        seed: seed of the initial noise.
        reference_error: an upper bound of the mean error of the endpoints; None where all solvers are stochastic.
    """

    rows: list[ComparisonRow]
    n: int
    paired: int
    seed: int
    reference_error: float | None

    def verdict(self, row: ComparisonRow) -> Verdict | None:
        """The row against the best at its NFE; None without a paired error."""
        return self._verdicts.get((row.solver, row.nfe))

    @cached_property
    def _verdicts(self) -> dict[tuple[str, int], Verdict]:
        budgets = list(dict.fromkeys(row.nfe for row in self.rows))
        families = [[row for row in self.rows if row.nfe == nfe and row.errors is not None] for nfe in budgets]
        families = [rows for rows in families if rows]
        if not families:
            return {}
        errors = [torch.stack([row.errors for row in rows if row.errors is not None], 1).numpy() for rows in families]
        c = critical_value(errors)
        out: dict[tuple[str, int], Verdict] = {}
        for rows, values in zip(families, errors, strict=True):
            best, d, s = studentised(values)
            # A best solver without a rival has the interval 0 for every c.
            half = [c * error if error > 0 else 0.0 for error in s.tolist()]
            ends = [(gap - reach, gap + reach) for gap, reach in zip(d.tolist(), half, strict=True)]
            name = rows[int(best)].solver
            rivals = sum(low <= 0 for low, _ in ends) - 1
            out |= {(row.solver, row.nfe): Verdict(name, *end, rivals) for row, end in zip(rows, ends, strict=True)}
        return out

    def __repr__(self) -> str:
        names = list(dict.fromkeys(row.solver for row in self.rows))
        budgets = sorted({row.nfe for row in self.rows})
        return (
            f"Comparison({', '.join(names)} at {', '.join(map(str, budgets))} NFE, {self.n} samples of seed "
            f"{self.seed}, {self.paired} paired)"
        )

    def ranked(self) -> list[ComparisonRow]:
        """The rows grouped by NFE, best first."""
        return sorted(self.rows, key=lambda row: (row.nfe, row.error is None, row.error or row.sliced or math.inf))

    def table(self) -> ResultTable:
        """The rows, grouped by NFE, best first; the records have intervals and bias too."""
        distances = any(row.sliced is not None for row in self.rows)
        heads = [
            "NFE",
            "solver",
            "error",
            "against the best",
            *(["Frechet", "sliced W"] if distances else []),
            "seconds",
        ]
        rows, records = [], []
        for row in self.ranked():
            used = f"{row.used:.4g}" if row.used == row.used else ""
            distance = ["" if row.frechet is None else show(row.frechet), _number(row.sliced)] if distances else []
            rows.append((used, row.solver, _number(row.error), against(self, row), *distance, f"{row.seconds:.2f}"))
            records.append(self._record(row))
        return ResultTable(tuple(heads), tuple(rows), tuple(records))

    def _record(self, row: ComparisonRow) -> dict[str, Any]:
        verdict, interval = self.verdict(row), row.error_interval
        frechet = row.frechet
        return {
            "solver": row.solver,
            "nfe": row.nfe,
            "used": row.used if math.isfinite(row.used) else None,
            "error": row.error,
            "error_low": None if interval is None else interval[0],
            "error_high": None if interval is None else interval[1],
            "best": None if verdict is None else verdict.best,
            "difference_low": None if verdict is None else verdict.low,
            "difference_high": None if verdict is None else verdict.high,
            "frechet": None if frechet is None else frechet.value,
            "frechet_low": None if frechet is None else frechet.interval[0],
            "frechet_high": None if frechet is None else frechet.interval[1],
            "frechet_bias": None if frechet is None else frechet.bias,
            "sliced_wasserstein": row.sliced,
            "seconds": row.seconds,
            "note": row.note,
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Paired error, and distance to the data where it is known, against NFE with 95 % intervals, each on its own.

        Args:
            path: a .png, .svg or .pdf file to write it to as well.

        Raises:
            ValueError: another suffix.
            OSError: the file cannot be written.
        """
        panels = [k for k in ("error", self.distance) if any(getattr(row, k) is not None for row in self.rows)]
        figure = new_figure(5.4 * max(len(panels), 1), 4.4)
        for k, panel in enumerate(panels):
            self._panel(figure.add_subplot(1, len(panels), k + 1), panel)
        return finished(figure, path)

    @property
    def distance(self) -> str:
        """The distance to the data that a figure shows: frechet, or sliced where there is none."""
        return "frechet" if any(row.frechet is not None for row in self.rows) else "sliced"

    def _panel(self, axes: Any, panel: str) -> None:
        for colour, (name, points) in enumerate(self.curves(panel).items()):
            if not points:
                continue
            nfe, value, low, high = zip(*points, strict=True)
            bars = [[v - w for v, w in zip(value, low, strict=True)], [w - v for v, w in zip(value, high, strict=True)]]
            axes.errorbar(nfe, value, bars, marker="o", ms=4, capsize=3, color=f"C{colour}", label=name)
        if panel == "error" and self.reference_error:
            axes.axhline(self.reference_error, color="0.6", ls=":", label="the reference solution's own error")
        # A distance without its bias may be below 0 where the laws nearly agree.
        least = min(value for points in self.curves(panel).values() for _, value, _, _ in points)
        axes.set(xscale="log", xlabel="network evaluations", ylabel=WHAT[panel])
        if least > 0:
            axes.set_yscale("log", nonpositive="clip")
        ticks = sorted({row.nfe for row in self.rows})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.xaxis.minorticks_off()
        axes.legend(fontsize=8)

    def curves(self, panel: str) -> dict[str, list[tuple[float, float, float, float]]]:
        """Of each solver (NFE, value, low, high) of its points, by NFE.

        Args:
            panel: error, frechet or sliced; the last has no interval: low and high are the value.
        """
        found: dict[str, list[tuple[float, float, float, float]]] = {row.solver: [] for row in self.rows}
        for row in self.rows:
            figure = getattr(row, panel)
            if figure is None:
                continue
            value = figure.value if isinstance(figure, Estimate) else figure
            interval = {"error": row.error_interval, "frechet": getattr(figure, "interval", None)}.get(panel)
            found[row.solver].append((row.used, value, *(interval or (value, value))))
        return {name: sorted(points) for name, points in found.items()}


WHAT = {
    "error": "distance to the reference solution (RMS)",
    "frechet": "squared Frechet distance to the data",
    "sliced": "sliced Wasserstein distance to the data",
}


def against(found: Comparison, row: ComparisonRow) -> str:
    """The comparison of a row with the best at its NFE, in words."""
    verdict = found.verdict(row)
    if verdict is None:
        return row.note or "stochastic: no paired error"
    if verdict.best == row.solver:
        word = "best" if verdict.rivals == 0 else f"smallest error, {verdict.rivals} not separated from it"
        return f"{word}; {row.note}" if row.note else word
    shown = f"{verdict.low:+.2g} to {verdict.high:+.2g}"
    return "; ".join(filter(None, [f"{TIE} ({shown})" if verdict.tie else shown, row.note]))


def mean_interval(values: Sequence[float] | Tensor) -> tuple[float, float] | None:
    """The 95 % interval of a mean by the t distribution; None for fewer than 2 values.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    x = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if len(x) < 2:
        return None
    mean, reach = float(x.mean()), float(stdtrit(len(x) - 1, 0.975)) * float(x.std()) / math.sqrt(len(x))
    return mean - reach, mean + reach


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
