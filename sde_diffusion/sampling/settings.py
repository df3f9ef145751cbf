"""The settings of a sampling run, as one object."""

from __future__ import annotations

from dataclasses import dataclass

from solvers import Solver


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling: the fields are the arguments of ``sample``, and ``name`` is the solver's name."""

    solver: str | Solver = "pf-ode"
    nfe: int | None = None
    steps: int | None = None
    grid: str | tuple[float, ...] | None = None
    eta: float | None = None
    seed: int = 0
    batch_size: int = 250
    name: str | None = None
