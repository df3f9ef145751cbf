"""The HTML report of tuning: the tuned solvers beside the default, from the same initial noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.html import Chart, Curve, Page, write_page
from sde_diffusion.sampling.shown.same_noise import same_noise_gallery, time_grids
from sde_diffusion.storage.tuned_solver import NAME, Tuned
from sde_diffusion.tuning.stochastic.decision import words_on_noise
from solvers import SOLVERS
from solvers.display.result_table import ResultTable

DEFAULT = "pf-ode"


def write_tuning_page(
    path: str | os.PathLike[str],
    found: Sequence[Tuned],
    model: ScoreModel,
    *,
    title: str = "Tuned solvers",
    command: str = "",
    seed: int = 0,
    condition: Mapping[str, Any] | None = None,
    rows: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    shown: int | None = None,
    on_share: Callable[[float], None] | None = None,
) -> None:
    """Write the result of ``tuned_each`` as one HTML file that opens from disk.

    Args:
        path: the file.
        found: a tuned solver for each NFE.
        model: the model that they were tuned for.
        title: the heading.
        command: the command or call that made it.
        seed: seed of the samples shown, whose noise is none of that which the solvers were fitted on.
        condition: conditions of the network.
        rows: rows of the condition.
        provenance: versions, hashes and settings, which JSON can hold.
        shown: samples side by side; 12 images or signals, 240 points or vectors by default.
        on_share: called with the share done of the samples that are drawn for the report.

    Raises:
        OSError: the file cannot be written.
    """
    ways = {(DEFAULT, made.nfe): SOLVERS[DEFAULT] for made in found} | {(NAME, made.nfe): made.table for made in found}
    gallery = same_noise_gallery(model, ways, n=shown, seed=seed, rows=rows, condition=condition, on_share=on_share)
    first = found[0]
    of = f"of the features {first.loss['extractor']['name']} " if "extractor" in first.loss else ""
    page = Page(
        title=title,
        facts={
            "Model": repr(model),
            "Loss": f"distance {of}to the reference solution",
            "Fitted on": f"{first.noise_samples} initial noise samples",
            "Compared on": f"{first.held_out} others, which chose the result",
        },
        command=command,
        table=tuning_table(found),
        charts=tuning_charts(found),
        gallery=gallery,
        grids=time_grids(model, ways),
        notes=[
            f"error: root mean square distance {of}to the reference solution from the same noise, mean over the "
            "held-out samples; they chose the tuned solver, so its error on them is a little too small",
            f"the reference solution's own error is about {max(made.teacher_error for made in found):.2g}",
            *(
                f"{made.nfe} evaluations: the errors are those without noise; {words_on_noise(made)}"
                for made in found
                if made.noise is not None
            ),
        ],
        provenance=provenance or {},
    )
    write_page(Path(path), page)


def tuning_table(found: Sequence[Tuned]) -> ResultTable:
    """A row for each NFE: the errors of the default, of the tuned solver, and of the best of each stage."""
    stages = list(dict.fromkeys(name for made in found for name in made.stages if name != "default"))
    rows, records = [], []
    for made in found:
        each = [f"{made.stages[name]:.4g}" if name in made.stages else "" for name in stages]
        rows.append((str(made.nfe), f"{made.default_error:.4g}", f"{made.error:.4g}", f"{made.gain:.2f}", *each))
        record: dict[str, Any] = {"nfe": made.nfe, "default": made.default_error, "tuned": made.error}
        records.append(record | {"ratio": made.gain} | {name: made.stages.get(name) for name in stages})
    return ResultTable(("NFE", DEFAULT, NAME, "ratio", *stages), tuple(rows), tuple(records))


def tuning_charts(found: Sequence[Tuned]) -> list[Chart]:
    """The errors of the default and of the tuned solver against NFE."""
    made = sorted(found, key=lambda one: one.nfe)
    nfe = [one.nfe for one in made]
    curves = [
        Curve(DEFAULT, nfe, [one.default_error for one in made]),
        Curve(NAME, nfe, [one.error for one in made]),
    ]
    return [Chart("Distance to the reference solution (RMS) on held-out noise", "NFE", "error", curves)]
