"""The figures of `sdediff show`, from a stored model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data import load_data
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.film import Reverse, strip_of
from sde_diffusion.report.process_figures import schedule_figure, score_figure, strip_figure, trajectory_figure
from sde_diffusion.report.solvers_side_by_side import solver_figure
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.job import settings_for
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.sampling.shown.reverse_states import default_filmed, reverse_run
from sde_diffusion.sde import make_sde
from sde_diffusion.storage.checkpoint import StoredModel, load
from solvers import find, solve
from solvers.errors import InputError
from solvers.noise import FORWARD, standard_normal

TIMES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
REFERENCE = 200  # evaluations of the reference solution of a figure
SCORE_TIMES = (0.05, 0.2, 0.5, 0.9)


def schedule(names: str) -> Any:
    """The schedules of processes, by names with commas between them."""
    return schedule_figure({name.strip(): make_sde(name.strip()) for name in names.split(",")})


def drawn(kind: str, stored: StoredModel, device: str, solver: str | None, nfe: int | None, n: int, seed: int) -> Any:
    """The figure of a stored model: forward, reverse, score or trajectories; without a solver that of the model."""
    model = _loaded(stored, device)
    if kind == "forward":
        x0 = _data(stored, model, n)
        eps = standard_normal(seeds_of(seed, len(x0)), x0.shape[1:], FORWARD)
        return strip_figure({r"$x_t$": torch.stack([model.sde.perturb(x0, t, eps) for t in TIMES])}, TIMES)
    if kind == "score":
        refuse_distilled(model, "draw")
        return score_figure(model.score, model.sde, _data(stored, model, 2000), SCORE_TIMES)
    return _reverse(kind, model, settings_for(stored, SamplingSettings(solver, nfe, seed=seed)), n)


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
    if data.shape != model.sample_shape:
        raise InputError(f"the data {name} has samples of shape {data.shape}, the model {model.sample_shape}")
    return model.to_latents(data.batch(slice(None, n)).float())


def _reverse(kind: str, model: ScoreModel, settings: SamplingSettings, n: int) -> Any:
    run, shown = reverse_run(model, settings, n)
    if kind == "trajectories":
        return trajectory_figure(shown.states, run.times, f"{settings.called}, {int(run.nfe.max())} evaluations")
    return strip_of(shown)


@torch.no_grad()
def side_by_side(
    stored: StoredModel, device: str, solvers: Sequence[str], budgets: Sequence[int], n: int, seed: int
) -> Any:
    """The figure of solvers from the same initial noise, beside the reference solution."""
    model = _loaded(stored, device)
    refuse_distilled(model, "compare solvers on")
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


def film(stored: StoredModel, device: str, solver: str | None, nfe: int | None, n: int, seed: int) -> Reverse:
    """The reverse process of a stored model, to be filmed; without a solver by that of the model."""
    return reverse_run(_loaded(stored, device), settings_for(stored, SamplingSettings(solver, nfe, seed=seed)), n)[1]


def film_of_samples(
    stored: StoredModel,
    device: str,
    settings: SamplingSettings,
    n: int | None = None,
    labels: Sequence[int] | None = None,
    guidance: GuidanceSettings | None = None,
) -> Reverse:
    """The reverse process of the first samples of a run of ``sampling.generate.draw``, to be filmed.

    Args:
        stored: the model.
        device: the device of the network.
        settings: the settings of the run.
        n: number of samples of the run; at most ``default_filmed`` of them are shown.
        labels: classes that the samples take in turn.
        guidance: settings of guidance.

    Raises:
        ValueError: a solver that chooses its steps for each sample.
    """
    rule = guidance or GuidanceSettings()
    model = _loaded(stored, device)
    refuse_distilled(model, "compare solvers on")
    assert model.shape is not None
    shown = min(n or default_filmed(model.shape), default_filmed(model.shape))
    guided, condition = guided_model(model, shown, labels, rule)
    return reverse_run(guided, settings_for(stored, settings, rule.tag(labels)), shown, condition)[1]
