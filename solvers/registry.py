"""The table of solvers by name; ``solvers/__init__.py`` fills it."""

from __future__ import annotations

from solvers.errors import InputTypeError, choose
from solvers.solver import Solver

SOLVERS: dict[str, Solver] = {}
"""Every solver by its name; a new entry is checked by `sdediff verify` and accepted by every command."""


def find(solver: str | Solver) -> Solver:
    """The solver of this name in ``SOLVERS``; a Solver is returned unchanged.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a Solver.

    >>> find("ddim")
    DDIM()
    """
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise InputTypeError(f"solver must be a name in SOLVERS or a Solver; got {type(solver).__name__}")
    return choose(solver, SOLVERS, "solver")
