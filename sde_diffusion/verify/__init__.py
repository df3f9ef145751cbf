"""Solvers against their own claims, on targets whose solutions are known.

    order            deterministic: slope of the error on exact flows, within 0.15 of the declared order
    weak             stochastic: slope of the errors of mean and variance, without Monte Carlo where possible
    strong           stochastic: slope of the distance on one Brownian path
    tolerance, cap   adaptive: error against tolerance; interval and budget
    equation         the order on plain equations
    evaluations      network calls counted, against the declared formula, for budgets 1 to 50
    batch            a sample does not depend on its batch
    dtype, images    precision, device and shape are kept
    parametrization  noise, data, velocity or score: one result
    reuse            a solver object keeps nothing between runs
    refinement       10, 20 and 40 evaluations follow one Brownian path
    grids            a user's own times, down to the data or up to the noise
    few steps        1, 2 and 3 steps
    matrix           four paths x six budgets x four grids

``CHECKS`` is the table of them; the tests run every entry on every solver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch

from sde_diffusion.verify import (
    adaptive,
    counting,
    independence,
    moments,
    orders,
    paths,
    representation,
    robust,
)
from sde_diffusion.verify.check import Check, Report
from sde_diffusion.verify.declared import declaration
from sde_diffusion.verify.plugin import find_solver
from solvers import ReverseProcess, Solver

CHECKS: Mapping[str, Callable[[Solver], Check | None]] = {
    "order": orders.order,
    "weak": moments.weak,
    "strong": paths.strong,
    "tolerance": adaptive.tolerance,
    "cap": adaptive.cap,
    "equation": orders.equation,
    "evaluations": counting.evaluations,
    "batch": independence.batch,
    "dtype": representation.dtype,
    "images": representation.images,
    "parametrization": representation.parametrization,
    "reuse": independence.reuse,
    "refinement": paths.refinement,
    "grids": robust.grids,
    "few steps": robust.few_steps,
    "matrix": robust.matrix,
}


def verify(solver: str | Solver, checks: Iterable[str] | None = None) -> Report:
    """Check a solver against what it declares.

    Args:
        solver: a name in ``SOLVERS``, ``path/to/file.py:Name``, or a Solver.
        checks: names in ``CHECKS``; all by default.

    Raises:
        FileNotFoundError, ValueError, TypeError: see ``find_solver``; ValueError also for a solver that integrates no
            ReverseProcess.

    >>> report = verify("ddim", ["order", "evaluations"])
    >>> report.passed, report.checks[1].measured
    (True, 'equal for every budget')
    """
    name, solver = find_solver(solver) if isinstance(solver, str) else (type(solver).__name__, solver)
    if ReverseProcess not in solver.needs:
        raise ValueError(f"{name} takes no ReverseProcess, and the targets are reverse processes")
    began = time.perf_counter()
    done = [run_check(check, solver) for check in (CHECKS if checks is None else checks)]
    found = tuple(check for check in done if check is not None)
    return Report(name, declaration(solver), found, time.perf_counter() - began)


@torch.no_grad()
def run_check(name: str, solver: Solver) -> Check | None:
    """One check of a solver; None if it does not apply. An exception of the solver is a failure.

    >>> from solvers import SOLVERS
    >>> run_check("strong", SOLVERS["ddim"]) is None
    True
    """
    try:
        return CHECKS[name](solver)
    except Exception as error:  # whatever a solver raises, the report says so and the other checks go on
        return Check(name, False, "a result", f"{type(error).__name__}: {error}")


__all__ = ["CHECKS", "Check", "Report", "find_solver", "run_check", "verify"]
