"""Quality against network evaluations: the same metrics for several solvers and NFE, and their plot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sde_diffusion.evaluation.feature_sampler import FeatureSampler
from sde_diffusion.evaluation.metrics import Estimate
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import DEFAULT_METRICS, evaluate
from sde_diffusion.report.pictures import save_figure
from sde_diffusion.sampling.settings import SamplingSettings
from solvers.errors import InputError


@dataclass(frozen=True)
class CurvePoint:
    """The metrics of one solver at one NFE.

    Attributes:
        drawing: settings of the sampling.
        n: number of samples.
        nfe: network evaluations of a sample, mean.
        figures: by name.
        seconds: to draw them.
    """

    drawing: SamplingSettings
    n: int
    nfe: float
    figures: dict[str, Estimate]
    seconds: float

    @property
    def solver(self) -> str:
        """The solver's name."""
        return self.drawing.called

    def as_dict(self) -> dict[str, Any]:
        """The point as JSON can hold it."""
        how = self.drawing
        return {
            "solver": self.solver,
            "asked": {"nfe": how.nfe, "steps": how.steps, "grid": how.grid, "eta": how.eta},
            "seed": how.seed,
            "n": self.n,
            "nfe": self.nfe,
            "figures": as_dict(self.figures),
            "seconds": round(self.seconds, 2),
        }


def as_dict(figures: dict[str, Estimate]) -> dict[str, Any]:
    """Figures as JSON can hold them.

    >>> as_dict({"kid": Estimate(1.0, 0.0)})
    {'kid': {'value': 1.0, 'standard_error': 0.0, 'interval': [1.0, 1.0], 'bias': 0.0}}
    """
    return {
        name: {
            "value": f.value,
            "standard_error": f.standard_error,
            "interval": list(f.interval),
            "bias": f.bias,
        }
        for name, f in figures.items()
    }


def quality(
    sampler: FeatureSampler,
    drawings: Sequence[SamplingSettings],
    n: int,
    reference: FeatureStatistics,
    *,
    metrics: Iterable[str] = DEFAULT_METRICS,
    draws: int = 40,
    on_share: Callable[[float], None] | None = None,
) -> list[CurvePoint]:
    """The metrics of n samples of each setting: a ``CurvePoint`` for each.

    Args:
        sampler: with the model, and the extractor of the reference.
        drawings: the ways; with one seed they share their noise, and differences of figures have less spread.
        n: number of samples.
        reference: the reference.
        metrics: names in ``METRICS``.
        draws: half-samples for standard errors.
        on_share: called with the share of the work that is done.

    Raises:
        ValueError, FloatingPointError: as ``sample`` and ``evaluate``.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.data import as_data
    >>> from sde_diffusion.evaluation.features import make_extractor
    >>> model = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
    >>> extractor = make_extractor("pixels")
    >>> reference = FeatureStatistics.of(as_data(torch.randn(500, 2)), extractor)
    >>> ways = [SamplingSettings("ddim", nfe=nfe) for nfe in (5, 10)]
    >>> points = quality(FeatureSampler(model, extractor), ways, 100, reference, metrics=["frechet"])
    >>> [(point.nfe, list(point.figures)) for point in points]
    [(5.0, ['frechet']), (10.0, ['frechet'])]
    """
    metrics, points = list(metrics), []
    for k, drawing in enumerate(drawings):
        start = time.perf_counter()

        def progress(share: float, k: int = k) -> None:
            if on_share is not None:
                on_share((k + share) / len(drawings))

        drawn = sampler.draw(drawing, n, progress=progress)
        took = time.perf_counter() - start
        figures = evaluate(
            drawn, reference, extractor=sampler.extractor, metrics=metrics, draws=draws, seed=drawing.seed
        )
        points.append(CurvePoint(drawing, n, float(drawn.nfe.double().mean()), figures, took))
    return points


def plot(path: str | os.PathLike[str], points: Sequence[CurvePoint], figure: str) -> None:
    """Draw a metric against NFE as PNG, with 95 % intervals and one line for each solver.

    Raises:
        ValueError: the points do not have the figure.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    if missing := [p.solver for p in points if figure not in p.figures]:
        raise InputError(f"no figure '{figure}' for {', '.join(missing)}; there are {', '.join(points[0].figures)}")
    canvas = Figure(figsize=(6.4, 4.8), layout="tight")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for solver in dict.fromkeys(p.solver for p in points):
        line = sorted((p.nfe, p.figures[figure]) for p in points if p.solver == solver)
        values = [e.value for _, e in line]
        bars = [[abs(end - e.value) for _, e in line for end in e.interval[k : k + 1]] for k in (0, 1)]
        axes.errorbar([nfe for nfe, _ in line], values, bars, label=solver, marker="o", capsize=3)
    ticks = sorted({p.nfe for p in points})
    axes.set(xscale="log", xlabel="network evaluations", ylabel=f"{figure}, {points[0].n:,} samples")
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    if min(p.figures[figure].value for p in points) > 0:
        axes.set_yscale("log")
    axes.legend()
    save_figure(path, canvas, dpi=120)
