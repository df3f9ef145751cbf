"""diffusers: its multistep, single-step and Heun schedulers, on each of their sigma grids.

Their tables of a thousand steps are filled with the log-SNRs of the model's own path, so that they
start where we start, and the model is evaluated at the sigma that the scheduler works with. Three
scalings of x occur:

    "vp"    x = z / sqrt(1 + sigma^2)       DPM-Solver, UniPC, DEIS, SA-Solver, DDIM, PNDM, IPNDM
    "ve"    x = z                           Euler, Heun, LMS, DPM-2, EDM
    "flow"  x = (1 - s) z, s = sigma / (1 + sigma)

Left out: spacing "leading" and flow sigmas within DPM-Solver and UniPC, which start at another
log-SNR, and schedulers that need noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import STEPS, Config, Task
from sde_diffusion import SDE

# Their names for the grids.
_SPACING: dict[str, dict[str, Any]] = {"uniform": {}, "trailing": {"timestep_spacing": "trailing"}}
_SIGMAS: dict[str, dict[str, Any]] = {g: {f"use_{g}_sigmas": True} for g in ("karras", "exponential", "beta")}
_ENDS = ("zero", "sigma_min")


@lru_cache(maxsize=8)
def _betas(sde: SDE, rho_max: float) -> Any:
    """The betas of a discrete-time model on the model's path: rho at t = 1/1000, 2/1000, ..., 1."""
    alpha, sigma = sde(torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS)[:2]
    cumulative = 1 / (1 + (sigma / alpha).clamp(max=rho_max) ** 2)
    return (1 - cumulative / torch.cat([cumulative.new_ones(1), cumulative[:-1]])).numpy()


def _largest(make: Callable[[], Any], nfe: int, most: int | None = None) -> Any | None:
    """The scheduler with the most steps that takes at most nfe evaluations."""
    for n in range(nfe if most is None else most, 0, -1):
        scheduler = make()
        try:
            scheduler.set_timesteps(n)
        except (IndexError, ValueError):
            return None
        if len(scheduler.timesteps) <= nfe:
            return scheduler
    return None


def _level(scheduler: Any, i: int) -> float:
    """The sigma at which evaluation i belongs."""
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        return float(scheduler.sigmas_interpol[i])
    return float(scheduler.sigmas[i])


def _walk(scheduler: Any, task: Task, scaling: str, level: Callable[[Any, int], float]) -> Tensor:
    """The loop of a pipeline."""

    def scale(rho: float) -> float:
        return {"vp": 1 / math.sqrt(1 + rho**2), "ve": 1.0, "flow": 1 / (1 + rho)}[scaling]

    if hasattr(scheduler, "set_begin_index"):
        # Else two equal first times make it start at the second.
        scheduler.set_begin_index(0)
    x = task.z1 * scale(task.rho_max)
    for i, t in enumerate(scheduler.timesteps):
        rho = level(scheduler, i)
        scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
        x0 = task.denoise(x / scale(rho), rho)
        if scaling == "flow":
            s = rho / (1 + rho)
            output = (x - x0) / s
        elif hasattr(scheduler, "precondition_outputs"):
            d = scheduler.config.sigma_data
            output = (x0 - x * d**2 / (rho**2 + d**2)) * (math.hypot(rho, d) / (rho * d))
        elif type(scheduler).__name__ == "IPNDMScheduler":
            a = scale(rho)
            output = (x - a * x0) / rho - a * rho * x0
        else:
            output = (x / scale(rho) - x0) / rho
        x = scheduler.step(output, t, x, return_dict=False)[0]
    end = float(scheduler.sigmas[-1]) if hasattr(scheduler, "sigmas") else 0.0
    return (x / scale(end)).to(task.z1.dtype)


def _table(name: str, settings: dict[str, Any], scaling: str, task: Task, nfe: int) -> Tensor | None:
    """A scheduler with a table of sigmas."""
    import diffusers

    betas = _betas(task.model.sde, task.rho_max)
    make = partial(getattr(diffusers, f"{name}Scheduler"), trained_betas=betas, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # n steps of these take 2 n - 1 evaluations.
        most = (nfe + 1) // 2 if name in ("HeunDiscrete", "KDPM2Discrete") else None
        scheduler = _largest(make, nfe, most)
        return None if scheduler is None else _walk(scheduler, task, scaling, _level)


def _discrete(name: str, settings: dict[str, Any], task: Task, nfe: int) -> Tensor | None:
    """DDIM and PNDM: integer times and no sigmas."""
    import diffusers

    make = partial(
        getattr(diffusers, f"{name}Scheduler"),
        trained_betas=_betas(task.model.sde, task.rho_max),
        set_alpha_to_one=True,
        **settings,
    )
    scheduler = _largest(make, nfe)

    def level(scheduler: Any, i: int) -> float:
        a = float(scheduler.alphas_cumprod[scheduler.timesteps[i]])
        return math.sqrt((1 - a) / a)

    return None if scheduler is None else _walk(scheduler, task, "vp", level)


def _edm(name: str, settings: dict[str, Any], task: Task, nfe: int) -> Tensor:
    """Schedulers with EDM preconditioning."""
    import diffusers

    kind = getattr(diffusers, f"{name}Scheduler")
    scheduler = kind(sigma_min=task.rho_min, sigma_max=task.rho_max, **settings)
    scheduler.set_timesteps(nfe)
    return _walk(scheduler, task, "ve", _level)


def _ipndm(grid: str, task: Task, nfe: int) -> Tensor:
    """IPNDMScheduler on its own grid, sigma = sin^2 from the log-SNR of the start, or another."""
    import diffusers

    u = torch.linspace(1, 0, nfe + 1, dtype=torch.float64)
    top = math.atan(task.rho_max)
    if grid == "own":
        v = torch.asin(torch.tensor(math.sqrt(math.sin(top)), dtype=torch.float64))
        sigma = torch.sin(u * v) ** 2
    elif grid == "angle":
        sigma = torch.sin(u * top)
    else:
        low, high = task.rho_min ** (1 / 7), task.rho_max ** (1 / 7)
        ramp = torch.linspace(0, 1, nfe, dtype=torch.float64)
        rho = torch.cat([(high + ramp * (low - high)) ** 7, u.new_zeros(1)])
        sigma = rho / (1 + rho**2).sqrt()
    scheduler = diffusers.IPNDMScheduler(trained_betas=sigma.tolist())
    scheduler.set_timesteps(nfe)
    # In float32 sqrt(1 - sigma^2) loses the start.
    alpha = (1 - sigma**2).sqrt()
    alpha[0] = math.cos(top)
    scheduler.betas, scheduler.alphas = sigma, alpha
    return _walk(scheduler, task, "vp", lambda s, i: float(s.betas[i] / s.alphas[i]))


def _flow(name: str, task: Task, nfe: int) -> Tensor | None:
    """Schedulers of flow matching: uniform in s."""
    import diffusers

    top, low = (rho / (1 + rho) for rho in (task.rho_max, task.rho_min))
    if name == "FlowMatchEulerDiscrete":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=torch.linspace(top, top / nfe, nfe, dtype=torch.float64).tolist())
    else:
        scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
        scheduler.sigma_max, scheduler.sigma_min = top, low
        scheduler.set_timesteps((nfe + 1) // 2)

    def level(scheduler: Any, i: int) -> float:
        s = min(float(scheduler.sigmas[i]), top)
        return s / (1 - s)

    return _walk(scheduler, task, "flow", level)


def _tables() -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """(class, label, settings, scaling) of every scheduler with a table of sigmas."""
    grids = {**_SPACING, **_SIGMAS}
    multistep = {**grids, "lu": {"use_lu_lambdas": True}}
    # A step of the noise form to sigma = 0 does not exist.
    plus: dict[str, dict[str, Any]] = {
        "++2M midpoint": {"solver_order": 2},
        "++2M heun": {"solver_order": 2, "solver_type": "heun"},
        "++3M": {"solver_order": 3},
    }
    noise: dict[str, dict[str, Any]] = {f"-{n}": {"solver_order": n, "algorithm_type": "dpmsolver"} for n in (2, 3)}
    for (kind, settings), (grid, how), end in product(plus.items(), multistep.items(), _ENDS):
        final = {"final_sigmas_type": end}
        yield "DPMSolverMultistep", f"{kind} {grid} {end}", {**settings, **how, **final}, "vp"
    for (kind, settings), (grid, how) in product(noise.items(), multistep.items()):
        final = {"final_sigmas_type": "sigma_min"}
        yield "DPMSolverMultistep", f"{kind} {grid}", {**settings, **how, **final}, "vp"
    singlestep: dict[str, dict[str, Any]] = {"uniform": {}, **_SIGMAS}
    for n, (grid, how), end in product((2, 3), singlestep.items(), _ENDS):
        settings = {"solver_order": n, "lower_order_final": True, "final_sigmas_type": end, **how}
        yield "DPMSolverSinglestep", f"++{n}S {grid} {end}", settings, "vp"
    for (kind, settings), (grid, how) in product(noise.items(), singlestep.items()):
        final = {"lower_order_final": True, "final_sigmas_type": "sigma_min"}
        yield "DPMSolverSinglestep", f"{kind} {grid}", {**settings, **how, **final}, "vp"
    unipc: dict[str, dict[str, Any]] = {
        f"-{n} {b}": {"solver_order": n, "solver_type": b} for n, b in ((2, "bh1"), (2, "bh2"), (3, "bh2"))
    }
    for (kind, settings), (grid, how), end in product(unipc.items(), grids.items(), _ENDS):
        yield (
            "UniPCMultistep",
            f"{kind} {grid} {end}",
            {**settings, **how, "final_sigmas_type": end},
            "vp",
        )
    for n, (grid, how) in product((2, 3), grids.items()):
        yield "DEISMultistep", f"-{n} {grid}", {"solver_order": n, **how}, "vp"
    for (p, c), (grid, how) in product(((2, 2), (3, 3), (3, 4)), grids.items()):
        settings = {"predictor_order": p, "corrector_order": c, "tau_func": _no_noise, **how}
        yield "SASolver", f"-{p}{c} {grid}", settings, "vp"
    for name, (grid, how) in product(("HeunDiscrete", "KDPM2Discrete", "LMSDiscrete", "EulerDiscrete"), grids.items()):
        yield name, grid, how, "ve"


def _no_noise(t: Any) -> float:
    return 0.0


def configs() -> list[Config]:
    """All of them.

    Raises:
        ImportError: diffusers is not installed.
    """
    import diffusers

    diffusers.logging.set_verbosity_error()
    out = [
        Config(
            "diffusers",
            f"{name}{label if label[0] in '-+' else ' ' + label}",
            partial(_table, name, how, scaling),
        )
        for name, label, how, scaling in _tables()
    ]
    run: Callable[[Task, int], Tensor | None]
    for spacing in ("trailing", "linspace"):
        how: dict[str, Any] = {"timestep_spacing": spacing}
        out.append(
            Config(
                "diffusers",
                f"DDIM {spacing}",
                partial(_discrete, "DDIM", {**how, "clip_sample": False}),
            )
        )
        for skip in (True, False):
            run = partial(_discrete, "PNDM", {**how, "skip_prk_steps": skip})
            out.append(Config("diffusers", f"PNDM {spacing}{'' if skip else ' prk'}", run))
    for grid, end in product(("karras", "exponential"), _ENDS):
        how = {"sigma_schedule": grid, "final_sigmas_type": end}
        for n in (2, 3):
            run = partial(_edm, "EDMDPMSolverMultistep", {**how, "solver_order": n})
            out.append(Config("diffusers", f"EDMDPMSolverMultistep++{n}M {grid} {end}", run))
        out.append(Config("diffusers", f"EDMEuler {grid} {end}", partial(_edm, "EDMEuler", how)))
    for grid in ("own", "angle", "karras"):
        out.append(Config("diffusers", f"IPNDM {grid}", partial(_ipndm, grid)))
    for name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"):
        out.append(Config("diffusers", name, partial(_flow, name)))
    return out
