"""The figures of `sdediff show`, from a stored model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.data import load_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.film import film_frames
from sde_diffusion.report.process_figures import schedule_figure, score_figure, strip_figure, trajectory_figure
from sde_diffusion.report.solvers_side_by_side import solver_figure
from sde_diffusion.sampling.sampler import noise_for, seeds_of
from sde_diffusion.sde import make_sde
from sde_diffusion.storage.checkpoint import StoredModel, load
from solvers import Solution, find, solve
from solvers.errors import InputError
from solvers.noise import FORWARD, standard_normal

TIMES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
REFERENCE = 200  # evaluations of the reference solution of a figure
SCORE_TIMES = (0.05, 0.2, 0.5, 0.9)


def schedule(names: str) -> Any:
    """The schedules of processes, by names with commas between them."""
    return schedule_figure({name.strip(): make_sde(name.strip()) for name in names.split(",")})


def drawn(kind: str, stored: StoredModel, device: str, solver: str, nfe: int, n: int, seed: int) -> Any:
    """The figure of a stored model: forward, reverse, score or trajectories."""
    model = _loaded(stored, device)
    if kind == "forward":
        x0 = _data(stored, model, n)
        eps = standard_normal(seeds_of(seed, len(x0)), x0.shape[1:], FORWARD)
        return strip_figure({r"$x_t$": torch.stack([model.sde.perturb(x0, t, eps) for t in TIMES])}, TIMES)
    if kind == "score":
        return score_figure(model.score, model.sde, _data(stored, model, 2000), SCORE_TIMES)
    return _reverse(kind, model, solver, nfe, n, seed)


def _loaded(stored: StoredModel, device: str) -> ScoreModel:
    model = load(stored, device=device).eval()
    if model.shape is None:
        raise InputError(f"{stored.path} does not say the shape of a sample")
    return model


def _data(stored: StoredModel, model: ScoreModel, n: int) -> Tensor:
    name = stored.data.get("name")
    if not isinstance(name, str):
        raise InputError(f"{stored.path} does not say which data it was trained on; this figure needs some")
    data = load_data(name)
    if data.shape != model.shape:
        raise InputError(f"the data {name} has samples of shape {data.shape}, the model {model.shape}")
    return data.batch(slice(None, n)).float()


@torch.no_grad()
def _run(model: ScoreModel, solver: str, nfe: int, n: int, seed: int) -> tuple[Solution, Callable[[Tensor], Tensor]]:
    """A run with its trajectory, and E[x_0 | x_t] of the states at some of its indices."""
    method = find(solver)
    if method.adaptive:
        raise InputError(f"{solver} chooses its own steps, sample by sample; draw a fixed-step solver, such as ddim")
    assert model.shape is not None
    seeds = seeds_of(seed, n)
    process = model.sde.reverse(model, float(method.stochastic))
    run = solve(process, noise_for(model, model.shape, seeds), solver=method, nfe=nfe, seeds=seeds, trajectory=True)

    @torch.no_grad()
    def denoised(index: Tensor) -> Tensor:
        assert run.trajectory is not None
        found = []
        for x, t in zip(run.trajectory[index], run.times[index].tolist(), strict=True):
            at = torch.full((n,), t, dtype=torch.float64, device=x.device)
            found.append(model.denoise(x, at) if t > 0 else x)
        return torch.stack(found)

    return run, denoised


def _reverse(kind: str, model: ScoreModel, solver: str, nfe: int, n: int, seed: int) -> Any:
    run, denoised = _run(model, solver, nfe, n, seed)
    assert run.trajectory is not None
    if kind == "trajectories":
        return trajectory_figure(run.trajectory, run.times, f"{solver}, {int(run.nfe.max())} evaluations")
    kept = torch.linspace(0, len(run.times) - 1, min(len(run.times), 9), device="cpu").round().long()
    states = {r"$x_t$": run.trajectory[kept], r"$E[x_0\,|\,x_t]$": denoised(kept)}
    return strip_figure(states, run.times[kept].tolist())


@torch.no_grad()
def side_by_side(
    stored: StoredModel, device: str, solvers: Sequence[str], budgets: Sequence[int], n: int, seed: int
) -> Any:
    """The figure of solvers from the same initial noise, beside the reference solution."""
    model = _loaded(stored, device)
    assert model.shape is not None
    seeds = seeds_of(seed, n)
    x1 = noise_for(model, model.shape, seeds)
    made: dict[str, dict[int, Tensor]] = {}
    for name in solvers:
        method = find(name)
        if method.stochastic or method.adaptive:
            raise InputError(f"{name} does not follow the probability flow at a given NFE; choose others, such as ddim")
        for nfe in budgets:
            out = solve(model.sde.probability_flow(model), x1, solver=method, nfe=nfe)
            made.setdefault(name, {})[nfe] = model.units.to_data(out.x).cpu()
    reference = solve(model.sde.probability_flow(model), x1, solver="pf-ode", nfe=REFERENCE).x
    return solver_figure(made, model.units.to_data(reference).cpu(), own_units=not model.units.is_identity)


def film(stored: StoredModel, device: str, solver: str, nfe: int, n: int, seed: int) -> list[Image.Image]:
    """The frames of the reverse process of a stored model, one for each step."""
    model = _loaded(stored, device)
    run, denoised = _run(model, solver, nfe, n, seed)
    assert run.trajectory is not None
    return film_frames(run.trajectory, denoised(torch.arange(len(run.times), device="cpu")), run.times.tolist())
