"""Cost of a step with an empty network: our solvers, k-diffusion and diffusers in turn.

    python -m benchmarks.overhead --empty [--steps 20] [--rounds 200] [--json FILE]

The network returns its input. A batch of 64 samples of 64 values is integrated on one thread, all samplers in turn in
every round, and the result is the median CPU time of a run over its steps. Our solvers run ``solve``, including
planning, on a ``ScoreModel`` that predicts the data; k-diffusion's ``dpmpp_2m`` and the scheduler loop of diffusers
(``DPMSolverMultistepScheduler``) call the same function. Most of the cost of ``sde`` is noise that belongs to a sample
and refines with the grid, so it is also compared with k-diffusion's ``dpmpp_2m_sde`` and its default noise, a Brownian
tree of torchsde.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peers.k_diffusion_peer import _sampling
from sde_diffusion import VPSDE, ScoreModel
from solvers import SOLVERS, solve

OURS = {"ddim": 1.2, "dpm++2m": 1.2, "unipc": 1.2, "pf-ode": 2.5, "sde": 2.5}
"""Solvers, and the limit of each on the ratio to the cost of k-diffusion's step."""
BASE = "k-diffusion dpmpp_2m"
STOCHASTIC = "k-diffusion dpmpp_2m_sde"


def _network(x: Tensor, t: Tensor) -> Tensor:
    return x


def _ours(name: str, x1: Tensor, steps: int) -> Callable[[], object]:
    model = ScoreModel(_network, VPSDE(), "data", shape=tuple(x1.shape[1:]))
    process = model.sde.reverse(model, float(SOLVERS[name].stochastic))
    return lambda: solve(process, x1, solver=name, nfe=steps)


def _k_diffusion(x1: Tensor, steps: int) -> Callable[[], object]:
    sampling = _sampling()
    sigmas = sampling.get_sigmas_karras(steps, 0.03, 80.0)

    return lambda: sampling.sample_dpmpp_2m(_denoise, x1 * 80, sigmas, disable=True)


def _k_diffusion_sde(x1: Tensor, steps: int) -> Callable[[], object]:
    sampling = _sampling()
    sigmas = sampling.get_sigmas_karras(steps, 0.03, 80.0)
    return lambda: sampling.sample_dpmpp_2m_sde(_denoise, x1 * 80, sigmas, disable=True)


def _denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return _network(x, sigma)


def _diffusers(x1: Tensor, steps: int) -> Callable[[], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DPMSolverMultistepScheduler

    def run() -> object:
        scheduler: Any = DPMSolverMultistepScheduler(prediction_type="sample")
        scheduler.set_timesteps(steps)
        x = x1
        for t in scheduler.timesteps:
            x = scheduler.step(_network(x, t.expand(len(x))), t, x, return_dict=False)[0]
        return x

    return run


@torch.no_grad()
def step_times(steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of a step of each sampler, and its ratios to k-diffusion's: medians over the rounds."""
    x1 = VPSDE().prior((64, 64))
    runs = {name: _ours(name, x1, steps) for name in OURS}
    runs |= {BASE: _k_diffusion(x1, steps), STOCHASTIC: _k_diffusion_sde(x1, steps)}
    runs |= {"diffusers DPM-Solver++ 2M": _diffusers(x1, steps)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchsde")  # on the rounding of k-diffusion's last sigma
            for _ in range(rounds + 3):  # the first rounds warm up
                for name, run in runs.items():
                    begin = time.thread_time()
                    run()
                    seconds[name].append(time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    rows = {}
    for name in runs:
        ratios = [a / b for a, b in zip(seconds[name][3:], seconds[BASE][3:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        micro = 1e6 * statistics.median(seconds[name][3:]) / steps
        rows[name] = {"us_per_step": micro, "ratio": middle, "quartile_low": low, "quartile_high": high}
        if name in OURS:
            rows[name]["goal"] = OURS[name]
        if name in SOLVERS and SOLVERS[name].stochastic:
            fair = [a / b for a, b in zip(seconds[name][3:], seconds[STOCHASTIC][3:], strict=True)]
            rows[name]["ratio_stochastic"] = statistics.median(fair)
    return rows


def report(steps: int, rounds: int, path: Path | None) -> None:
    """Measure, print, and write JSON if a path is given."""
    rows = step_times(steps, rounds)
    table = Table("a step of", "us", f"times {BASE}", "quartiles", "goal", f"times {STOCHASTIC}", box=SIMPLE_HEAD)
    for name, row in rows.items():
        spread = f"{row['quartile_low']:.2f} to {row['quartile_high']:.2f}"
        goal = f"{row['goal']:g}" if "goal" in row else ""
        fair = f"{row['ratio_stochastic']:.2f}" if "ratio_stochastic" in row else ""
        table.add_row(name, f"{row['us_per_step']:.1f}", f"{row['ratio']:.2f}", spread, goal, fair)
    Console(width=120).print(table)
    if path is not None:
        about = {"torch": torch.__version__, "threads": 1, "steps": steps, "rounds": rounds, "shape": [64, 64]}
        path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
