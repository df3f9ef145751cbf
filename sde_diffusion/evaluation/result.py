"""The result of an evaluation: figures by name, and how they are shown."""

from __future__ import annotations

import os
from typing import Any

from sde_diffusion.evaluation.metrics import METRICS, Estimate
from solvers.display.displayed import Displayed, finished
from solvers.display.figures import new_figure
from solvers.display.result_table import ResultTable

BEST = {figure: best for metric in METRICS.values() for figure, best in zip(metric.figures, metric.best, strict=True)}


def show(estimate: Estimate) -> str:
    """A figure and its standard error, with as many digits as that deserves.

    >>> show(Estimate(0.31201, 0.1156)), show(Estimate(12345.6, 170.0)), show(Estimate(4.0, 0.0))
    ('0.31 +- 0.12', '12350 +- 170', '4 +- 0')
    """
    value, error = estimate.value, estimate.standard_error
    if not error > 0:
        return f"{value:.4g} +- {error:.2g}"
    digits = 1 - int(f"{error:e}".rpartition("e")[2])
    if digits > 0:
        return f"{value:.{digits}f} +- {error:.{digits}f}"
    return f"{round(value, digits):.0f} +- {round(error, digits):.0f}"


class Evaluation(Displayed, dict[str, Estimate]):
    """Metrics by name, each an ``Estimate``: a dictionary with a table and a figure of itself.

    >>> Evaluation({"frechet": Estimate(0.31201, 0.1156)})
    Evaluation(frechet 0.31 +- 0.12)
    """

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(f'{name} {show(estimate)}' for name, estimate in self.items())})"

    def table(self) -> ResultTable:
        """A row for each figure; the records have the 95 % interval and the bias that was subtracted."""
        rows = tuple((name, show(e), BEST.get(name, "")) for name, e in self.items())
        records = tuple(
            {
                "figure": name,
                "value": e.value,
                "standard_error": e.standard_error,
                "low": e.interval[0],
                "high": e.interval[1],
                "bias": e.bias,
            }
            for name, e in self.items()
        )
        return ResultTable(("figure", "value", "best"), rows, records)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The figures with their 95 % intervals, each on its own axis.

        Args:
            path: a .png, .svg or .pdf file to write it to as well.

        Raises:
            ValueError: another suffix.
        """
        figure = new_figure(5.0, 0.9 * max(len(self), 1) + 0.2)
        panels = figure.subplots(max(len(self), 1), 1, squeeze=False)[:, 0]
        for axes, (name, e) in zip(panels, self.items(), strict=False):
            axes.errorbar([e.value], [0], xerr=[1.96 * e.standard_error], marker="o", capsize=3)
            axes.set_yticks([0], [name])
        return finished(figure, path)
