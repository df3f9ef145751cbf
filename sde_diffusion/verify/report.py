"""Reports as tables: one line for each solver, or one line for each check of a solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sde_diffusion.verify.declarations import declaration
from sde_diffusion.verify.result import Check, Report, jsonable
from solvers import Solver


def overview(reports: Sequence[Report]) -> Table:
    """One line for each solver: fitted orders, and how many checks passed."""
    table = Table(title="Solvers on exact targets", caption="what each check is: docs/verify.md")
    for title in ("solver", "declared", "fitted", "evaluations", "checks"):
        table.add_column(title, no_wrap=title == "solver")
    table.add_column("seconds", justify="right")
    for report in reports:
        verdict = f"[green]{len(report.checks)} passed[/green]"
        if not report.passed:
            names = ", ".join(check.name for check in report.failures)
            verdict = f"[red]failed: {names}[/red]"
        table.add_row(
            report.solver,
            _declared(report.declared),
            _fitted({check.name: check for check in report.checks}),
            str(report.declared["evaluations"]),
            verdict,
            f"{report.seconds:.1f}",
        )
    return table


def failures(reports: Sequence[Report]) -> Table:
    """One line for each check that failed."""
    table = Table(title="Failed")
    for title in ("solver", "check", "expected", "measured"):
        table.add_column(title)
    for report in reports:
        for check in report.failures:
            table.add_row(report.solver, check.name, check.expected, escape(check.measured))
    return table


def details(report: Report) -> Table:
    """One line for each check of a solver."""
    table = Table(title=escape(f"{report.solver}: {report.declared['source']}"))
    for title in ("check", "expected", "measured", ""):
        table.add_column(title)
    for check in report.checks:
        mark = "[green]passed[/green]" if check.passed else "[red]failed[/red]"
        table.add_row(check.name, check.expected, escape(check.measured), mark)
    return table


def catalogue(solvers: dict[str, Solver], width: int = 80) -> Table:
    """What every solver declares, one line each; with the sources where there is room for them."""
    caption = "order: weak for SDEs; N: steps, the last one to sigma = 0; least: smallest budget"
    table = Table(title="Solvers", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("name", "kind", "order", "strong", "evaluations", "least", "grid"):
        table.add_column(title, no_wrap=True)
    if width > 110:
        table.add_column("source", no_wrap=True, overflow="ellipsis")
    for name, solver in solvers.items():
        said = declaration(solver)
        kind = "SDE" if solver.stochastic else "ODE"
        strong = "" if solver.strong_order is None else f"{solver.strong_order:g}"
        counts = (said["evaluations"], str(said["minimum"]))
        row = (name, kind, str(solver.order), strong, *counts, said["grid"], said["source"])
        table.add_row(*row[: len(table.columns)])
    return table


def as_dict(report: Report) -> dict[str, Any]:
    """A report for ``--json``."""
    return {
        "solver": report.solver,
        "passed": report.passed,
        "declared": jsonable(report.declared),
        "seconds": round(report.seconds, 3),
        "checks": [
            {
                "name": check.name,
                "passed": check.passed,
                "expected": check.expected,
                "measured": check.measured,
                "figures": jsonable(check.figures),
            }
            for check in report.checks
        ],
    }


def _declared(said: Any) -> str:
    if not said["stochastic"]:
        return str(said["order"])
    strong = "" if said["strong_order"] is None else f", strong {said['strong_order']:g}"
    return f"weak {said['order']}{strong}"


def _fitted(checks: Mapping[str, Check]) -> str:
    """The measured orders in short."""
    words = []
    for name, unit in (
        ("order", ""),
        ("weak", "weak "),
        ("strong", "strong "),
        ("tolerance", "tolerance^"),
    ):
        if name in checks:
            fitted = checks[name].figures.get("fitted")
            words.append(f"{unit}{fitted:.2f}" if isinstance(fitted, float) else checks[name].measured)
    return ", ".join(words)
