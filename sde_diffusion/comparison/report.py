"""Report of a comparison of solvers: a table, a figure, and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sde_diffusion.comparison.comparison import TIE, Comparison, ComparisonRow
from sde_diffusion.evaluation.metrics import Estimate
from sde_diffusion.evaluation.report import show
from sde_diffusion.files.writing import new_folder, write_file
from sde_diffusion.report.pictures import save_figure
from sde_diffusion.storage.atomic_folder import FORMAT, to_json

COMPARISON_KIND = "sdediff comparison"
ENOUGH = 20  # a reference is fit to measure errors that many times its own


def table(found: Comparison) -> Table:
    """The rows, grouped by NFE, best first."""
    distances = any(row.sliced is not None for row in found.rows)
    heads = ["NFE", "solver", "error", "against the best", *(["Frechet", "sliced W"] if distances else []), "seconds"]
    out = Table(*heads, box=SIMPLE_HEAD, pad_edge=False)
    for nfe in sorted({row.nfe for row in found.rows}):
        for row in sorted((r for r in found.rows if r.nfe == nfe), key=_rank):
            used = f"{row.used:.4g}" if row.used == row.used else ""
            distance = ["" if row.frechet is None else show(row.frechet), _number(row.sliced)] if distances else []
            out.add_row(used, row.solver, _number(row.error), against(found, row), *distance, f"{row.seconds:.2f}")
        out.add_section()
    return out


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


def summary(found: Comparison) -> list[str]:
    """Remarks below the table."""
    lines = [f"{found.n} samples of seed {found.seed} for every solver and NFE"]
    if found.reference_error is not None:
        lines.append(
            f"error: root mean square distance to the model's reference solution from the same noise, mean over "
            f"{found.paired} samples; against the best: intervals of the difference that hold with 95 % for the whole "
            "table, the choice of the best on these samples included"
        )
        lines.append(f"the flow's own error is at most {found.reference_error:.2g}")
        smallest = min((row.error for row in found.rows if row.error is not None), default=math.inf)
        if smallest < ENOUGH * found.reference_error:
            lines.append(
                f"that is more than 1/{ENOUGH} of the smallest error, {smallest:.2g}: take more --reference-steps, or "
                "more samples if some of them end in another mode"
            )
    if any(row.sliced is not None for row in found.rows):
        lines.append(
            "Frechet (squared, the bias of n samples subtracted, +- its standard error) and sliced W: distances of the "
            "samples to the data"
        )
        if all(row.frechet is None for row in found.rows):
            lines.append("no Frechet distance: it takes at least as many samples as a sample has entries; see --n")
    return lines


def as_dict(found: Comparison) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    rows = []
    for row in found.rows:
        verdict = found.verdict(row)
        rows.append(
            {
                "solver": row.solver,
                "nfe": row.nfe,
                "used": row.used if math.isfinite(row.used) else None,
                "error": row.error,
                "errors": None if row.errors is None else [float(f"{e:.6g}") for e in row.errors.tolist()],
                "best": None if verdict is None else verdict.best,
                "difference": None if verdict is None else [_finite(verdict.low), _finite(verdict.high)],
                "frechet": None if row.frechet is None else row.frechet.value,
                "frechet_interval": None if row.frechet is None else list(row.frechet.interval),
                "frechet_bias": None if row.frechet is None else row.frechet.bias,
                "sliced_wasserstein": row.sliced,
                "seconds": round(row.seconds, 4),
                "note": row.note,
            }
        )
    return {
        "n": found.n,
        "paired": found.paired,
        "seed": found.seed,
        "reference_error": found.reference_error,
        "rows": rows,
    }


def save_comparison(found: Comparison, folder: Path, about: Mapping[str, Any]) -> Path:
    """Write compare.json and compare.png into a new folder, all or nothing.

    Args:
        found: the comparison.
        folder: new or empty.
        about: further entries of the JSON: checkpoint, versions.

    Returns:
        The folder, or the next free name if another process took its own meanwhile.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it could not be written; nothing is left behind.
    """
    with new_folder(folder, taken="next") as new:
        plot(found, new.temporary / "compare.png")
        write_file(
            new.temporary / "compare.json",
            to_json({"format": FORMAT, "kind": COMPARISON_KIND, **about, **as_dict(found)}),
        )
    return new.path


def plot(found: Comparison, path: Path) -> None:
    """Paired error, and distance to the data if known, against evaluations; log-log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; needs no display
    from matplotlib.figure import Figure

    distance = "frechet" if any(row.frechet is not None for row in found.rows) else "sliced"
    what = {
        "error": "distance to the reference solution (RMS)",
        "frechet": "squared Frechet distance to the data",
        "sliced": "sliced Wasserstein distance to the data",
    }
    panels = [k for k in ("error", distance) if any(getattr(row, k) is not None for row in found.rows)]
    figure = Figure(figsize=(5.4 * max(len(panels), 1), 4.4), layout="tight")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row.solver for row in found.rows))
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), k + 1)
        for colour, name in enumerate(names):
            points = sorted(
                (row.used, value)
                for row in found.rows
                if row.solver == name and (value := _value(getattr(row, panel))) is not None
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=f"C{colour}", label=name)
        if panel == "error" and found.reference_error:
            axes.axhline(found.reference_error, color="0.6", ls=":", label="the flow's own error")
        # A distance without its bias may be below 0 where the laws nearly agree.
        values = [v for row in found.rows if (v := _value(getattr(row, panel))) is not None]
        scale = "log" if min(values) > 0 else "linear"
        axes.set(xscale="log", yscale=scale, xlabel="network evaluations", ylabel=what[panel])
        ticks = sorted({row.nfe for row in found.rows})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.xaxis.minorticks_off()
        axes.legend(fontsize=8)
    save_figure(path, figure, dpi=120)


def _rank(row: ComparisonRow) -> tuple[bool, float]:
    return row.error is None, row.error or row.sliced or math.inf


def _value(figure: float | Estimate | None) -> float | None:
    return figure.value if isinstance(figure, Estimate) else figure


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
