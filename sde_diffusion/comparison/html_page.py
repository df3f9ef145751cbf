"""The HTML report of a comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.comparison.report import summary
from sde_diffusion.comparison.result import WHAT, Comparison
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.html import Chart, Curve, Page, write_page
from sde_diffusion.sampling.shown.same_noise import same_noise_gallery, time_grids
from solvers import Solver


def write_comparison_page(
    path: str | os.PathLike[str],
    found: Comparison,
    model: ScoreModel,
    solvers: Mapping[str, Solver | Mapping[int, Solver]],
    *,
    title: str = "Comparison of solvers",
    command: str = "",
    condition: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    shown: int | None = None,
    on_share: Callable[[float], None] | None = None,
) -> None:
    """Write a comparison as one HTML file that opens from disk: samples side by side, curves, time grids, table.

    Args:
        path: the file.
        found: result of ``compare``.
        model: the model that was compared on.
        solvers: as in ``compare``.
        title: the heading.
        command: the command or call that made the comparison.
        condition: as in ``compare``, with a row for each of its samples.
        provenance: versions, hashes and settings, which JSON can hold.
        shown: samples side by side; 12 images or signals, 240 points or vectors by default.
        on_share: called with the share done of the samples that are drawn for the report.

    Raises:
        OSError: the file cannot be written.
    """
    ways = {
        (row.solver, row.nfe): solver if isinstance(solver, Solver) else solver[row.nfe]
        for row in found.rows
        for solver in [solvers[row.solver]]
    }
    gallery = same_noise_gallery(
        model, ways, n=shown, seed=found.seed, rows=found.n, condition=condition, on_share=on_share
    )
    facts = {
        "Model": repr(model),
        "Samples": f"{found.n} for each solver and NFE, seed {found.seed}",
        "Paired": f"{found.paired} with the reference solution",
    }
    page = Page(
        title=title,
        facts=facts,
        command=command,
        table=found.table(),
        charts=comparison_charts(found),
        gallery=gallery,
        grids=time_grids(model, ways),
        notes=summary(found),
        provenance=provenance or {},
    )
    write_page(Path(path), page)


AXES = {"error": "error (RMS)", "frechet": "squared Frechet distance", "sliced": "sliced Wasserstein"}


def comparison_charts(found: Comparison) -> list[Chart]:
    """Error and distances against NFE, with their 95 % intervals."""
    charts = []
    for panel in ("error", "frechet", "sliced"):
        curves = [
            Curve(name, *(list(column) for column in zip(*points, strict=True)))
            for name, points in found.curves(panel).items()
            if points
        ]
        if panel == "sliced":
            curves = [Curve(curve.name, curve.x, curve.y) for curve in curves]
        if curves:
            level = ("the reference's own error", found.reference_error) if found.reference_error else None
            title = WHAT[panel][0].upper() + WHAT[panel][1:]
            charts.append(Chart(title, "NFE", AXES[panel], curves, level if panel == "error" else None))
    return charts
