"""Declarations of solvers in words: the rows of ``sdediff solvers``."""

from __future__ import annotations

import json
from typing import Any

from solvers import SOLVERS, Solver


def formula(solver: Solver) -> str:
    """The number of evaluations of a run of N steps that ends at the data, read off the first six.

    >>> from solvers import SOLVERS
    >>> formula(SOLVERS["ddim"]), formula(SOLVERS["heun"])
    ('N', '2N - 1')
    """
    if solver.adaptive:
        return f"{solver.stages} per attempt"
    counts = [solver.evaluations(n) for n in range(1, 7)]
    # The first or last step may cost more or fewer evaluations: the slope is that of the others.
    slope = counts[-1] - counts[-2]
    offset = counts[-1] - 6 * slope
    regular = [slope * n + offset for n in range(1, 7)]
    first = next((k for k in range(6) if counts[k:] == regular[k:]), 6)
    if first >= 4:
        return ", ".join(str(c) for c in counts) + ", ... for N = 1, 2, ..."
    text = {0: "", 1: "N"}.get(slope, f"{slope}N")
    if offset:
        text = f"{text} {'+' if offset > 0 else '-'} {abs(offset)}" if text else str(offset)
    exceptions = "; ".join(f"{counts[k]} for N = {k + 1}" for k in range(first))
    return f"{text} ({exceptions})" if exceptions else text


def minimum(solver: Solver) -> int:
    """The minimum NFE: one step that ends at the data, after one attempt if the solver is adaptive."""
    return solver.evaluations(2 if solver.adaptive else 1)


def declaration(solver: Solver) -> dict[str, Any]:
    """Everything a solver declares.

    >>> from solvers import SOLVERS
    >>> declaration(SOLVERS["ddpm"])["strong_order"]
    1.0
    """
    return {
        "order": solver.order,
        "partial_order": solver.partial_order,
        "strong_order": solver.strong_order,
        "stochastic": solver.stochastic,
        "adaptive": solver.adaptive,
        "evaluations": formula(solver),
        "minimum": minimum(solver),
        "grid": solver.grid,
        "source": solver.source,
    }


def listing() -> str:
    """The declarations of all of ``SOLVERS``, as the text of `sde_diffusion/cli/commands/solvers.json`."""
    return json.dumps({name: declaration(solver) for name, solver in SOLVERS.items()}, indent=2) + "\n"
