"""Data of another scale than 1: tuning is compared with the default as users get it, which sees wide data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, load_solver, save_solver
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.tuning import tuned_for
from sde_diffusion.tuning.data_scale import ScaledNoise
from sde_diffusion.tuning.grid_families import spaced
from sde_diffusion.tuning.task import FIRST_NOISE
from solvers import solve
from solvers.fitted.seen_scale import SeenScale


def mixture(scale: float) -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    return GaussianMixture(scale * torch.randn(6, 3, dtype=torch.float64, generator=g), std=0.15 * scale, sde=VPSDE())


def held_out(model: GaussianMixture) -> Tensor:
    """The held-out noise samples of tuning with 16 + 16."""
    return model.sde.prior((32, 3), seeds=seeds_of(0, 32, FIRST_NOISE), dtype=torch.get_default_dtype())[16:]


@pytest.mark.parametrize("scale", [10.0, pytest.param(0.05, marks=pytest.mark.slow)])
def test_the_error_of_the_default_is_that_which_users_get(scale: float) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = mixture(scale)
        found = tuned_for(model, [5], shape=(3,), noise_samples=16, held_out=16)[5]
        x1 = held_out(model)
        truth, _ = converged(model, x1, steps=256)
        ode = model.sde.probability_flow(model)
        own = solve(ode, x1, nfe=5)
        default, tuned = (float(rms(x - truth).mean()) for x in (own.x, solve(ode, x1, solver=found.table, nfe=5).x))
    finally:
        torch.set_default_dtype(torch.float32)
    assert own.scales is not None and bool((own.scales > 1).any()) == (scale > 1)
    assert found.default_error == pytest.approx(default, rel=1e-6)
    assert found.error == pytest.approx(tuned, rel=1e-6) and tuned < 0.7 * default


def test_data_wider_than_the_noise_of_the_start_are_tuned() -> None:
    """Networks without training predict no noise, and their endpoints are those of data of scale 100."""
    model = ScoreModel(lambda x, t: torch.zeros_like(x), VPSDE(), "noise")
    found = tuned_for(model, [2], shape=(2,), noise_samples=16, held_out=16)[2]
    assert found.error <= found.default_error < 1e3


def test_the_default_that_is_kept_on_wide_data_sees_the_scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """With endpoints that are the default's own its error is zero, so that it is returned."""
    model = mixture(10.0)
    monkeypatch.setattr(
        "sde_diffusion.tuning.task.converged",
        lambda model, x1, **_: (solve(model.sde.probability_flow(model), x1, nfe=5).x, 0.0),
    )
    monkeypatch.setattr("sde_diffusion.tuning.stages.search", lambda *_: [])
    found = tuned_for(model, [5], shape=(3,), noise_samples=16, held_out=16)[5]
    assert isinstance(found.table, SeenScale) and found.error == 0
    x1 = held_out(model)
    ode = model.sde.probability_flow(model)
    save_solver(tmp_path / "five.json", found.table, model.sde)
    again = load_solver(tmp_path / "five.json", model.sde)
    assert again == found.table
    assert torch.equal(solve(ode, x1, solver=again, nfe=5).x, solve(ode, x1, nfe=5).x)
    with pytest.raises(ValueError, match="made for 5 evaluations, not for 9"):
        solve(ode, x1, solver=again, nfe=9)


def test_noise_levels_are_in_proportion_to_the_scale() -> None:
    """The levels for data of scale c on a path are those of scale 1 on the path of x / c, times c."""
    sde = VPSDE()
    for kind in ("angle", "karras", "log-snr", "sine", "flow-1"):
        alpha, sigma = sde.marginal(spaced(ScaledNoise(sde, 8.0), kind, 7, 0.1)[1:-1])
        assert float(sigma[-1] / alpha[-1]) == pytest.approx(0.8)
        usual = spaced(ScaledNoise(sde, 1.0), kind, 7, 0.1)
        assert torch.equal(usual, spaced(sde, kind, 7, 0.1))
