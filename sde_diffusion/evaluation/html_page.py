"""The HTML report of an evaluation: each figure against NFE, and samples side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_diffusion.evaluation.curve import CurvePoint
from sde_diffusion.evaluation.result import BEST, show
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.html import Chart, Curve, Page, write_page
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sampling.shown.same_noise import same_noise_gallery, time_grids
from solvers.display.result_table import ResultTable


def write_quality_page(
    path: str | os.PathLike[str],
    points: Sequence[CurvePoint],
    model: ScoreModel,
    *,
    title: str = "Sample quality",
    command: str = "",
    reference: str = "",
    condition: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    shown: int | None = None,
    on_share: Callable[[float], None] | None = None,
) -> None:
    """Write the result of ``quality`` as one HTML file that opens from disk.

    Args:
        path: the file.
        points: result of ``quality``.
        model: the model whose samples were measured.
        title: the heading.
        command: the command or call that made it.
        reference: what the samples were compared with.
        condition: conditions of the network, with a row for each sample.
        provenance: versions, hashes and settings, which JSON can hold.
        shown: samples side by side; 12 images or signals, 240 points or vectors by default.
        on_share: called with the share done of the samples that are drawn for the report.

    Raises:
        OSError: the file cannot be written.
    """
    ways = {(point.solver, point.drawing.nfe or round(point.nfe)): point.drawing for point in points}
    first = points[0]
    gallery = same_noise_gallery(
        model, ways, n=shown, seed=first.drawing.seed, rows=first.n, condition=condition, on_share=on_share
    )
    facts = {
        "Model": repr(model),
        "Samples": f"{first.n:,} for each solver and NFE, seed {first.drawing.seed}",
        "Reference": reference,
        **_own_settings(first.drawing),
    }
    page = Page(
        title=title,
        facts=facts,
        command=command,
        table=quality_table(points),
        charts=quality_charts(points),
        gallery=gallery,
        grids=time_grids(model, ways),
        notes=["Each figure has its standard error; where it has a bias of n samples, that is subtracted."],
        provenance=provenance or {},
    )
    write_page(Path(path), page)


def _own_settings(drawing: SamplingSettings) -> dict[str, str]:
    """The grid and the noise level, where they are not the solver's own."""
    grid = drawing.grid if drawing.grid is None or isinstance(drawing.grid, str) else ", ".join(map(str, drawing.grid))
    given = {"Time grid": grid, "eta": None if drawing.eta is None else f"{drawing.eta:g}"}
    return {name: value for name, value in given.items() if value is not None}


def quality_table(points: Sequence[CurvePoint]) -> ResultTable:
    """A row for each solver and NFE, a column for each figure with its standard error."""
    names = list(dict.fromkeys(name for point in points for name in point.figures))
    rows, records = [], []
    for point in sorted(points, key=lambda point: point.nfe):
        cells = [show(point.figures[name]) if name in point.figures else "" for name in names]
        rows.append((f"{point.nfe:g}", point.solver, *cells, f"{point.seconds:.2f}"))
        record: dict[str, Any] = {
            "solver": point.solver,
            "asked": point.drawing.nfe or round(point.nfe),
            "nfe": point.nfe,
        }
        for name, figure in point.figures.items():
            low, high = figure.interval
            record |= {name: figure.value, f"{name}_low": low, f"{name}_high": high, f"{name}_bias": figure.bias}
        records.append(record | {"n": point.n, "seconds": point.seconds})
    return ResultTable(("NFE", "solver", *names, "seconds"), tuple(rows), tuple(records))


def quality_charts(points: Sequence[CurvePoint]) -> list[Chart]:
    """Each figure against NFE with its 95 % intervals."""
    charts = []
    for name in dict.fromkeys(name for point in points for name in point.figures):
        curves = []
        for solver in dict.fromkeys(point.solver for point in points):
            line = sorted((p.nfe, p.figures[name]) for p in points if p.solver == solver and name in p.figures)
            low, high = zip(*(figure.interval for _, figure in line), strict=True)
            curves.append(Curve(solver, [nfe for nfe, _ in line], [f.value for _, f in line], low, high))
        best = BEST.get(name, "")
        charts.append(Chart(f"{name}{f', best {best}' if best else ''}", "NFE", name, curves))
    return charts
