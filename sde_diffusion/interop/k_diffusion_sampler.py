r"""Solvers of this package as sampling functions of k-diffusion and ComfyUI.

Both call ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None)`` with a denoiser model(x, sigma,
**extra) and x = x_0 + sigma_0 eps. The path is alpha = 1, sigma = sigma_0 t. ComfyUI's flow models are called with the
same signature on x = (1 - sigma) x_0 + sigma eps: for them the path is the straight one.

The sigmas of the user are kept (``times="sigmas"``), or only their first and their number (``times="solver"``), which
leaves the levels between to the solver: tables such as those of ``tune`` and of ``pf-ode`` have their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.sde import EDM, SDE, Flow
from solvers import Solver, Step, find, solve
from solvers.errors import InputError, choose
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.noisy_table import NoisyTable
from solvers.fitted.table import FixedGridSolver, Table
from solvers.problem import ReverseProcess

Sampler = Callable[..., Tensor]


def _is_flow(model: Any) -> bool:
    """Whether ComfyUI says that the model is one of the straight path (its sampling class CONST)."""
    inner = getattr(model, "inner_model", model)
    inner = getattr(inner, "inner_model", inner)
    sampling = getattr(inner, "model_sampling", None)
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)


def sampler(solver: str | Solver = "pf-ode", times: str = "sigmas", eta: float | None = None) -> Sampler:
    """A sampling function of k-diffusion and ComfyUI.

    Args:
        solver: a name in ``SOLVERS`` or a Solver.
        times: "sigmas" keeps the levels that the user gives; "solver" keeps their number as the number of evaluations,
            and the first, and leaves the others to the solver; a run that does not end at 0 keeps its sigmas.
        eta: noise level; 1 for stochastic solvers and 0 for the others by default.

    Raises:
        ValueError: an unknown solver, or another word for times; when it is called, a table for another range.

    >>> denoiser = lambda x, sigma: x / (1 + sigma[:, None] ** 2)  # data of variance 1
    >>> sample = sampler("dpm++2m")
    >>> sample(denoiser, 10 * torch.ones(1, 1), torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])).shape
    torch.Size([1, 1])
    """
    found = find(solver)
    keeps = choose(times, {"sigmas": True, "solver": False}, "choice of times")
    level = float(found.stochastic) if eta is None else eta

    @torch.no_grad()
    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        levels = torch.as_tensor(sigmas).double().cpu()
        sde, flow = _path(levels, _is_flow(model))
        top = 1.0 if flow else float(levels[0])
        last: dict[str, Tensor] = {}

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            sigma = (top * t).to(device=x.device, dtype=x.dtype)
            last.update(x=x, sigma=sigma[0], denoised=model(x, sigma, **(extra_args or {})))
            return last["denoised"]

        def tell(step: Step) -> None:
            if callback is not None:
                callback({"i": step.index, "sigma_hat": last["sigma"], **last})

        seeds = _seeds_for(x, options.get("seed", (extra_args or {}).get("seed"))) if found.stochastic else None
        if isinstance(found, FixedGridSolver):
            _check_table(found, sde, levels, kept=keeps)
        grid = levels / top
        kept = keeps or float(levels[-1]) > 0 or (flow and float(levels[0]) < 1)  # a part of the way has no other times
        out = solve(
            ReverseProcess(denoise, sde, level),
            x.to(torch.promote_types(x.dtype, torch.float32)),
            solver=found,
            nfe=None if kept else len(levels) - 1,
            grid=grid if kept else None,
            seeds=seeds,
            on_step=tell,
        )
        return out.x.to(x.dtype)

    sample.__name__ = f"sample_sdediff_{type(found).__name__.lower()}"
    return sample


def _path(levels: Tensor, flow: bool) -> tuple[SDE, bool]:
    """The path of a run, and whether it is the straight one."""
    if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()) or float(levels[-1]) < 0:
        raise InputError(f"sigmas decrease from the first to the last, which is 0 or more; got {levels.tolist()}")
    if flow and float(levels[0]) > 1:
        raise InputError(f"the sigmas of a flow model are at most 1; got {float(levels[0]):g}")
    return (Flow(), True) if flow else (EDM(float(levels[0])), False)


def _check_table(solver: FixedGridSolver, sde: SDE, levels: Tensor, kept: bool) -> None:
    """Refuse a table with other sigmas than the user's, from another first sigma, or of another path.

    Raises:
        ValueError: see above; the message has the first sigma of the table where it has one.
    """
    table: object = solver.tables[0] if isinstance(solver, MixtureOfTables) else solver
    if isinstance(table, NoisyTable):
        table = table.table
    if isinstance(table, MeanStart):
        table = table.table
    if not isinstance(table, Table):
        return
    if kept:
        raise InputError("a table has its own sigmas; pass times='solver', which keeps only the first and the number")
    solver.steps_for(len(levels) - 1)
    own, here = table.rho, table.on(sde).rho
    if not own or all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(own, here, strict=True)):
        return
    starts = [rho / t for rho, t in zip(own, table.times[1:-1], strict=True)]
    if max(starts) - min(starts) < 1e-4 * max(starts):
        raise InputError(
            f"this table was made for sigmas from {starts[0]:.4g}, and these start at {float(levels[0]):.4g}; start "
            f"them at {starts[0]:.4g}, or tune for this range"
        )
    raise InputError(
        "this table was made for another path than sigma = sigma_max t; tune for the model as from_denoiser(model, "
        f"sigma_min, {float(levels[0]):.4g}) reads it"
    )


def _seeds_for(x: Tensor, seed: Any) -> Tensor:
    """One seed for each sample: seed + k; drawn from torch's generator without one."""
    first = int(torch.randint(2**40, ())) if seed is None else int(seed)
    return first + torch.arange(len(x))
