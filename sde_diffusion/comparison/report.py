"""Report of a comparison of solvers: a table, a figure, and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from sde_diffusion.comparison.result import Comparison
from sde_diffusion.files.writing import new_folder, write_file
from sde_diffusion.report.terminal_table import rich_table
from sde_diffusion.storage.atomic_folder import FORMAT, to_json

COMPARISON_KIND = "sdediff comparison"
ENOUGH = 20  # a reference is fit to measure errors that many times its own


def table(found: Comparison) -> Table:
    """The rows, grouped by NFE, best first."""
    return rich_table(found.table(), sections=[row.nfe for row in found.ranked()])


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
        found.plot(new.temporary / "compare.png")
        write_file(
            new.temporary / "compare.json",
            to_json({"format": FORMAT, "kind": COMPARISON_KIND, **about, **as_dict(found)}),
        )
    return new.path


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
