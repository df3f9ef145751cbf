"""Reports as tables: one line for each solver, or one line for each check of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from sde_diffusion.verify.check import Check, Report, jsonable
from solvers import Solver

_ORDERS = ("order", "weak", "tolerance")


def overview(reports: Sequence[Report]) -> Table:
    """One line for each solver: fitted orders and the checks that failed."""
    table = Table(title="Solvers on exact targets", caption="float64, CPU; see docs/verify.md")
    for title in ("solver", "declared", "fitted", "strong", "evaluations", "checks", "seconds"):
        table.add_column(title, no_wrap=title == "solver", justify="right" if title == "seconds" else "left")
    for report in reports:
        good = len(report.checks) - len(report.failures)
        verdict = f"[green]{good} passed[/green]"
        if not report.passed:
            names = ", ".join(check.name for check in report.failures)
            verdict = f"[red]failed: {names}[/red]"
        table.add_row(
            report.solver,
            _declared(report.declared),
            next((c.measured for c in report.checks if c.name in _ORDERS), ""),
            next((c.measured for c in report.checks if c.name == "strong"), ""),
            str(report.declared["evaluations"]),
            verdict,
            f"{report.seconds:.1f}",
        )
    return table


def details(report: Report) -> Table:
    """One line for each check of a solver."""
    table = Table(title=f"{report.solver}: {report.declared['source']}")
    for title in ("check", "expected", "measured", ""):
        table.add_column(title)
    for check in report.checks:
        table.add_row(check.name, check.expected, check.measured, _mark(check))
    return table


def catalogue(solvers: dict[str, Solver]) -> Table:
    """What every solver declares."""
    from sde_diffusion.verify.declared import declaration

    table = Table(title="Solvers", caption="N is the number of steps; the last one ends at the data")
    for title in ("name", "order", "kind", "evaluations", "least", "grid", "source"):
        table.add_column(title, no_wrap=title == "name")
    for name, solver in solvers.items():
        said = declaration(solver)
        kind = "SDE" if solver.stochastic else "ODE"
        table.add_row(
            name,
            _declared(said),
            f"{kind}, adaptive" if solver.adaptive else kind,
            said["evaluations"],
            str(said["minimum"]),
            said["grid"],
            said["source"],
        )
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


def _mark(check: Check) -> str:
    return "[green]passed[/green]" if check.passed else "[red]failed[/red]"
