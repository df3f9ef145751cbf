"""Adaptive solvers: error against tolerance, no time outside the interval, the cap respected."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.verify.declarations import minimum
from sde_diffusion.verify.result import Check, refuses
from sde_diffusion.verify.slopes import fit
from sde_diffusion.verify.targets import (
    DTYPE,
    T_END,
    VP,
    flows,
    mixture,
    process,
    run,
    start,
)
from solvers import ReverseProcess, Solver, solve

_BATCH = 16
_TOLERANCES = tuple(10 ** (-k / 2) for k in range(8, 17))
_CAPS = (1, 2, 3, 7, 20, 50)
_FIELDS = ("rtol", "atol", "tolerance")


def tolerance(solver: Solver) -> Check | None:
    """The error of a deterministic solver is proportional to the tolerance: slope 0.7 to 1.3."""
    fields = tolerance_fields(solver)
    if not solver.adaptive or solver.stochastic or not fields:
        return None
    x = start(_BATCH)
    times = torch.tensor([1.0, T_END], dtype=DTYPE)
    errors = {}
    for name, (model, exact, _) in flows(_BATCH).items():
        flow = VP.probability_flow(model)
        errors[name] = [float((run(with_tolerance(solver, tol), flow, x, times) - exact).norm()) for tol in _TOLERANCES]
    counts = [1 / tol for tol in _TOLERANCES]
    slopes = {name: fit(counts, e, floor=1e-11, points=len(counts)).slope for name, e in errors.items()}
    return Check(
        "tolerance",
        all(0.7 <= slope <= 1.3 for slope in slopes.values()),
        "error ~ tolerance^(0.7 to 1.3)",
        ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()),
        {
            "fitted": max(slopes.values(), key=lambda slope: abs(slope - 1)),
            "tolerances": _TOLERANCES,
            **{f"slope_{name}": slope for name, slope in slopes.items()},
            **{f"errors_{name}": e for name, e in errors.items()},
        },
    )


def tolerance_fields(solver: Solver) -> tuple[str, ...]:
    """The settings of a solver that are tolerances."""
    return tuple(f.name for f in dataclasses.fields(solver) if f.name in _FIELDS)


def tolerance_of(solver: Solver) -> float:
    """The largest tolerance of a solver; 1e-3 if it has none."""
    values = (getattr(solver, name) for name in tolerance_fields(solver))
    return max((float(value) for value in values if value is not None), default=1e-3)


def with_tolerance(solver: Solver, value: float) -> Solver:
    """The solver at another tolerance."""
    return dataclasses.replace(solver, **dict.fromkeys(tolerance_fields(solver), value))


def cap(solver: Solver) -> Check | None:
    """No evaluation outside the interval, never more than ``nfe``, and ``ok`` without a cap."""
    if not solver.adaptive:
        return None
    seen: list[Tensor] = []
    exact = process(mixture(), solver)

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return exact.denoise(x, t)

    problem = ReverseProcess(model, exact.path, exact.eta)
    x, least = start(_BATCH), minimum(solver)
    wrong, most = [], []
    for limit in (*_CAPS, None):
        if limit is not None and limit < least:
            if not refuses(partial(solve, problem, x, solver=solver, nfe=limit)):
                wrong.append(f"nfe={limit} accepted, though {least} are needed")
            continue
        out = solve(problem, x, solver=solver, nfe=limit)
        most.append(int(out.nfe.max()))
        if limit is not None and most[-1] > limit:
            wrong.append(f"{most[-1]} evaluations for nfe={limit}")
        if limit is None and set(out.status) != {"ok"}:
            wrong.append(f"status {sorted(set(out.status))} without a cap")
        if not bool(out.x.isfinite().all()):
            wrong.append(f"not finite for nfe={limit}")
    times = torch.cat(seen)
    if float(times.min()) < 0 or float(times.max()) > 1:
        wrong.append(f"evaluated at t = {float(times.min()):.3g} to {float(times.max()):.3g}")
    return Check(
        "cap",
        not wrong,
        "within nfe and within [0, 1]",
        "; ".join(wrong) or f"{most[-1]} evaluations without a cap",
        {"caps": _CAPS, "most": most[:-1], "uncapped": most[-1]},
    )
