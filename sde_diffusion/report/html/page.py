"""The content of a report as data: facts, a gallery of samples, curves, time grids, a table and provenance.

A page knows nothing of models or solvers. ``comparison``, ``evaluation`` and ``tuning`` fill it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from solvers.display.result_table import ResultTable

BARS = (
    "Bars are 95 % intervals, each on its own; the table compares solvers with intervals that hold together where it "
    "says so."
)


@dataclass(frozen=True)
class Shown:
    """The samples of one solver at one NFE, with errors, times and paths.

    Attributes:
        solver: its name.
        nfe: network evaluations for each sample.
        x: samples (K, ...) in the units of the data.
        error: distance of each to the reference solution, RMS over entries (K,); None without a reference.
        times: the solver's times (T,), from 1 to 0; None where each sample has its own.
        deviation: distance of each sample to the reference solution at each time (T, K); None without.
        path: the states of points in 2-D at each time (T, K, 2); None of other data.
    """

    solver: str
    nfe: int
    x: Tensor
    error: Tensor | None = None
    times: Tensor | None = None
    deviation: Tensor | None = None
    path: Tensor | None = None


@dataclass(frozen=True)
class Gallery:
    """Samples of several solvers from the same initial noise.

    Attributes:
        noise: the initial noise (K, ...), of unit variance.
        reference: endpoints of the reference solution (K, ...), in the units of the data; None without.
        shown: one for each solver and NFE that could run.
        missing: the reason for each solver and NFE that could not.
        reference_path: states of the reference solution of points in 2-D, (T, K, 2).
    """

    noise: Tensor
    reference: Tensor | None
    shown: Sequence[Shown]
    missing: Mapping[tuple[str, int], str] = field(default_factory=dict)
    reference_path: Tensor | None = None

    @property
    def kind(self) -> str:
        """The kind of figure of the samples: image, signal, points or vector."""
        shape = self.noise.shape[1:]
        if len(shape) == 3 and shape[0] in (1, 3):
            return "image"
        if len(shape) == 1 and shape[0] > 1:
            return "points" if shape[0] == 2 else "vector"
        return "signal"


@dataclass(frozen=True)
class Curve:
    """A line with intervals: its name, x, y, and the ends of the intervals or None."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """Curves on logarithmic axes, with an optional level to compare them with, (name, value)."""

    title: str
    x_title: str
    y_title: str
    curves: Sequence[Curve]
    level: tuple[str, float] | None = None


@dataclass(frozen=True)
class TimeGrid:
    """The times of a solver at an NFE, and half the log-SNR at each; infinite ends are left out of the second."""

    solver: str
    nfe: int
    times: Sequence[float]
    half_log_snr: Sequence[float | None]


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        title: the heading.
        facts: what was measured and how, by name.
        command: the command or call that made it.
        table: the results.
        charts: figures against NFE.
        gallery: samples side by side.
        grids: the time grids.
        notes: remarks on the figures.
        bars: what the bars of the charts are.
        provenance: versions, hashes, settings: anything that JSON can hold.
    """

    title: str
    facts: Mapping[str, str]
    command: str
    table: ResultTable
    charts: Sequence[Chart] = ()
    gallery: Gallery | None = None
    grids: Sequence[TimeGrid] = ()
    notes: Sequence[str] = ()
    bars: str = BARS
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def solvers(self) -> list[str]:
        """The names of all solvers, in the order in which they first occur."""
        shown = [] if self.gallery is None else [s.solver for s in self.gallery.shown]
        curves = [curve.name for chart in self.charts for curve in chart.curves]
        return list(dict.fromkeys([*curves, *shown, *(grid.solver for grid in self.grids)]))
