"""JSON and tables of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sde_diffusion.evaluation.budget import Budget
from sde_diffusion.evaluation.curve import CurvePoint
from sde_diffusion.evaluation.curve import as_dict as figures_dict
from sde_diffusion.evaluation.metrics import Estimate
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.result import BEST, show
from sde_diffusion.storage.atomic_folder import FORMAT
from sde_diffusion.storage.evaluation_record import EVALUATION_KIND
from sde_diffusion.storage.provenance import versions
from sde_diffusion.storage.record_types import EvaluationRecord


def record(
    source: Mapping[str, Any], reference: FeatureStatistics, runs: Sequence[Mapping[str, Any]]
) -> EvaluationRecord:
    """An evaluation as JSON values, without its error budget."""
    return {
        "format": FORMAT,
        "kind": EVALUATION_KIND,
        "source": dict(source),
        "reference": dict(reference.data),
        "features": dict(reference.extractor),
        "runs": [dict(run) for run in runs],
        "versions": versions(),
    }


def table(runs: Sequence[tuple[str, Mapping[str, Estimate]]], n: int) -> Table:
    """A line for each metric and a column for each run, (its name, its metrics)."""
    out = Table("figure", "best", title=f"{n:,} samples, with standard errors", box=SIMPLE_HEAD, pad_edge=False)
    for what, _ in runs:
        out.add_column(what, justify="right")
    for name in runs[0][1]:
        out.add_row(name, BEST[name], *(show(figures[name]) for _, figures in runs))
        if any(figures[name].bias for _, figures in runs):
            plain = (f"{figures[name].value + figures[name].bias:.4g}" for _, figures in runs)
            out.add_row("  with the bias of n", "", *plain)
    return out


def columns(points: Sequence[CurvePoint]) -> list[tuple[str, Mapping[str, Estimate]]]:
    """The runs of a curve, for ``table``."""
    return [(f"{point.solver}\n{point.nfe:g} NFE", point.figures) for point in points]


def budget_dict(budget: Budget) -> dict[str, Any]:
    """An error budget as JSON values."""
    return {
        **figures_dict({"total": budget.total}),
        "terms": figures_dict(budget.terms),
        "prior_bound": {"kl_nats": budget.prior_kl, "w2": budget.prior_w2},
        "t_min": {"budget": budget.times[0], "fine": budget.times[1]},
        "held_out_loss": [{"t": t, "value": e.value, "standard_error": e.standard_error} for t, e in budget.loss],
    }


def budget_table(budget: Budget) -> Table:
    """The table of the terms of an error budget, and their sum."""
    out = Table("error", "squared Frechet distance", title="Error budget", box=SIMPLE_HEAD, pad_edge=False)
    for name, estimate in budget.terms.items():
        out.add_row(name, show(estimate))
    out.add_section()
    out.add_row("total", show(budget.total))
    return out


def loss_table(budget: Budget) -> Table:
    """The denoising loss by time."""
    out = Table("t", "||eps - eps_theta||^2 / d", title="Held-out denoising loss", box=SIMPLE_HEAD, pad_edge=False)
    for t, estimate in budget.loss:
        out.add_row(f"{t:g}", show(estimate))
    return out
