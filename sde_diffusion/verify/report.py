"""Reports as tables: one line for each solver, or one line for each check of a solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from sde_diffusion.verify.result import Check, Report, jsonable


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
        even = "" if said["partial_order"] == said["order"] else f", {said['partial_order']} in partial runs"
        return f"{said['order']}{even}"
    strong = "" if said["strong_order"] is None else f", strong {said['strong_order']:g}"
    return f"weak {said['order']}{strong}"


def _fitted(checks: Mapping[str, Check]) -> str:
    """The measured orders in short."""
    words = []
    for name, unit in (
        ("order", ""),
        ("partial run", "partial "),
        ("weak", "weak "),
        ("strong", "strong "),
        ("tolerance", "tolerance^"),
    ):
        if name in checks:
            fitted = checks[name].figures.get("fitted")
            words.append(f"{unit}{fitted:.2f}" if isinstance(fitted, float) else checks[name].measured)
    return ", ".join(words)
