"""Solvers against their own claims, on targets whose solutions are known.

    order            deterministic: slope of the error on exact flows, within 0.15 of the order
    partial run      deterministic, of order 3 and more: the same from the middle, on equal steps
    weak             stochastic: slope of the errors of mean and variance, exact where possible
    strong           stochastic: slope of the distance on one Brownian path
    tolerance, cap   adaptive: error against tolerance; interval and NFE
    equation         the order on plain equations
    evaluations      network calls counted, against the declared formula, for NFE 1 to 50
    batch            a sample does not depend on its batch
    dtype, images    precision, device and shape are kept
    parametrization  noise, data, velocity or score: one result
    reuse            a solver object keeps nothing between runs
    refinement       10, 20 and 40 evaluations follow one Brownian path
    grids            a user's own times, down to the data or up to the noise
    few steps        1, 2 and 3 steps
    matrix           four paths x six NFE x four grids

``CHECKS`` is the table of them; the tests run every entry on every solver.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

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
from sde_diffusion.verify.declarations import declaration
from sde_diffusion.verify.result import Check, Report
from solvers import SOLVERS, ReverseProcess, Solver
from solvers.errors import InputError
from solvers.plugin import find_solver

CHECKS: Mapping[str, Callable[[Solver], Check | None]] = {
    "order": orders.order,
    "partial run": orders.partial_run,
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
"""Checks by name; each returns None for solvers to which it does not apply."""


def verify(solver: str | Solver, checks: Iterable[str] | None = None) -> Report:
    """The checks of a solver against its declarations: a ``Report``.

    Args:
        solver: a name in ``SOLVERS``, ``path/to/file.py:Name``, or a Solver.
        checks: names in ``CHECKS``; all by default.

    Raises:
        FileNotFoundError: see ``find_solver``.
        ValueError: the same, or the solver integrates no ReverseProcess.
        TypeError: see ``find_solver``.

    >>> report = verify("ddim", ["order", "evaluations"])
    >>> report.passed, report.checks[1].measured
    (True, 'equal for every NFE')
    """
    name, solver = find_solver(solver) if isinstance(solver, str) else (type(solver).__name__, solver)
    if ReverseProcess not in solver.needs:
        raise InputError(f"{name} takes no ReverseProcess, and the targets are reverse processes")
    began = time.perf_counter()
    done = [run_check(check, solver) for check in (CHECKS if checks is None else checks)]
    found = tuple(check for check in done if check is not None)
    return Report(name, declaration(solver), found, time.perf_counter() - began)


def verify_all(
    solvers: Iterable[str | Solver] | None = None,
    checks: Iterable[str] | None = None,
    jobs: int | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> list[Report]:
    """The checks of many solvers, run side by side: a ``Report`` for each.

    Args:
        solvers: as in ``verify``; every name in ``SOLVERS`` by default.
        checks: names in ``CHECKS``; all by default.
        jobs: number of processes, by default that of the cores; 1 stays in this one.
        on_report: called with each report as it comes, for progress.

    Returns:
        The reports, in the order of ``solvers``.

    >>> [report.passed for report in verify_all(["ddim"], ["evaluations"], jobs=1)]
    [True]
    """
    wanted = list(SOLVERS if solvers is None else solvers)
    jobs = min(jobs or os.cpu_count() or 1, len(wanted))
    reports = []
    one = partial(verify, checks=None if checks is None else tuple(checks))
    if jobs == 1:
        for solver in wanted:
            reports.append(one(solver))
            if on_report is not None:
                on_report(reports[-1])
        return reports
    # Fresh processes: a fork of a program with threads may hang. One thread each: the tensors are
    # small.
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for report in pool.map(one, wanted):
            reports.append(report)
            if on_report is not None:
                on_report(report)
    return reports


@torch.no_grad()
def run_check(name: str, solver: Solver) -> Check | None:
    """The result of one check of a solver, or None if it does not apply; an exception of the solver is a failure.

    >>> from solvers import SOLVERS
    >>> run_check("strong", SOLVERS["ddim"]) is None
    True
    """
    try:
        return CHECKS[name](solver)
    except Exception as error:  # of any kind: the report names it, and the other checks continue
        return Check(name, False, "a result", f"{type(error).__name__}: {error}")


__all__ = ["CHECKS", "Check", "Report", "find_solver", "run_check", "verify", "verify_all"]
