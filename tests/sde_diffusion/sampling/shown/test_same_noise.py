"""The gallery of a report: samples of one noise, and their distance to the exact flow at every time."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion import EDM, SDE, VESDE, VPSDE, Flow, Gaussian, ScoreModel, sample
from sde_diffusion.sampling.reference_states import reference_path
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.sampling.shown.same_noise import same_noise_gallery, time_grids
from solvers import SOLVERS

COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.1]])
MEAN = torch.tensor([1.0, 0.0])
WAYS = {(name, nfe): SOLVERS[name] for name in ("ddim", "sde", "heun") for nfe in (4, 9)} | {
    ("rk45", 200): SOLVERS["rk45"]
}


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_the_reference_is_the_exact_flow_at_any_time(sde: SDE) -> None:
    model = Gaussian(MEAN, COVARIANCE, sde=sde)
    x1 = sde.prior((3, 2), seeds=range(3))
    times = [1.0, 0.97, 0.5, 0.1234, 0.01, 1e-4, 0.0]
    found = reference_path(model, x1, times, steps=300)
    for t, x in zip(times, found, strict=True):
        exact = model.flow(x1.double(), 1.0, t)
        assert float((x - exact).abs().max()) < 2e-5 * float(exact.abs().max()), t


def test_samples_are_those_of_sample_and_deviations_those_of_the_exact_flow() -> None:
    model = Gaussian(MEAN, COVARIANCE, sde=VPSDE())
    shares: list[float] = []
    found = same_noise_gallery(model, WAYS, n=6, seed=3, reference_steps=200, on_share=shares.append)
    x1 = model.sde.prior((6, 2), seeds=seeds_of(3, 6))
    assert found.kind == "points" and torch.equal(found.noise, x1)
    exact = model.flow(x1.double(), 1.0, 0.0)
    assert torch.allclose(found.reference, exact, atol=1e-4)
    for shown in found.shown:
        assert torch.equal(shown.x, sample(model, 6, solver=shown.solver, nfe=shown.nfe, seed=3))
        if shown.solver == "sde":
            assert shown.error is None and shown.deviation is None and shown.path is not None
        elif shown.solver == "rk45":
            assert shown.deviation is None and shown.error is not None
        else:
            errors = (shown.x - exact).square().mean(1).sqrt()
            assert torch.allclose(shown.error, errors, atol=1e-4)
            assert torch.allclose(shown.deviation[-1], errors, atol=1e-4) and float(shown.deviation[0].max()) < 1e-4
            middle = len(shown.times) // 2
            at = model.flow(x1.double(), 1.0, float(shown.times[middle]))
            gap = (shown.path[middle] - at).square().mean(1).sqrt()
            assert torch.allclose(shown.deviation[middle], gap, atol=1e-4)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


def test_settings_with_a_grid_or_noise_of_their_own_are_drawn_as_they_are() -> None:
    model = Gaussian(MEAN, COVARIANCE, sde=VPSDE())
    ways = {
        ("ddim", 6): SamplingSettings("ddim", steps=6, grid="karras"),
        ("heun", 5): SamplingSettings("heun", grid=(1.0, 0.6, 0.2, 0.0)),
        ("sde", 4): SamplingSettings("sde", 4, eta=0.5),
    }
    found = same_noise_gallery(model, ways, n=5, seed=2, reference_steps=50)
    for shown, (key, how) in zip(found.shown, ways.items(), strict=True):
        given = {"steps": how.steps, "nfe": how.nfe, "grid": how.grid, "eta": how.eta}
        assert torch.equal(shown.x, sample(model, 5, solver=how.solver, seed=2, **given)), key
    assert found.missing == {}
    karras, own, _ = time_grids(model, ways)
    assert own.times == [1.0, 0.6, 0.2, 0.0]
    own_grid, _ = time_grids(model, {("ddim", 6): SOLVERS["ddim"], ("heun", 6): SOLVERS["heun"]})
    assert len(karras.times) == len(own_grid.times) == 7 and karras.times != own_grid.times


def test_deviations_are_in_the_units_of_the_data_and_in_parts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gaussian(MEAN, COVARIANCE, sde=VPSDE())
    whole = same_noise_gallery(model, {("ddim", 4): SOLVERS["ddim"]}, n=5, reference_steps=50)
    monkeypatch.setattr("sde_diffusion.sampling.shown.same_noise._VALUES", 200)
    parts = same_noise_gallery(model, {("ddim", 4): SOLVERS["ddim"]}, n=5, reference_steps=50)
    assert torch.allclose(whole.shown[0].deviation, parts.shown[0].deviation, atol=1e-9)
    assert torch.allclose(whole.reference_path, parts.reference_path, atol=1e-9)


class Expensive(type(SOLVERS["ddim"])):  # type: ignore[misc]
    def evaluations(self, steps: int, finish: bool = True) -> int:
        return 5 * steps


def test_what_cannot_run_is_missing_with_the_reason() -> None:
    model = ScoreModel(lambda x, t: torch.zeros_like(x), VPSDE(), shape=(1, 4, 4))
    found = same_noise_gallery(model, {("dear", 4): Expensive(), ("ddim", 4): SOLVERS["ddim"]}, n=2, reference_steps=20)
    assert found.kind == "image" and found.reference_path is None
    assert [(s.solver, s.nfe) for s in found.shown] == [("ddim", 4)]
    assert "needs at least 5" in found.missing["dear", 4]


def test_grids_have_half_the_log_snr_without_infinite_ends() -> None:
    grids = time_grids(Gaussian(MEAN, COVARIANCE, sde=Flow()), WAYS)
    assert {(g.solver, g.nfe) for g in grids} == {k for k in WAYS if k[0] != "rk45"}
    for grid in grids:
        assert grid.times[0] == 1 and grid.times[-1] == 0
        assert grid.half_log_snr[0] is None and grid.half_log_snr[-1] is None
        t = grid.times[1]
        assert grid.half_log_snr[1] == pytest.approx(float(torch.log(torch.tensor((1 - t) / t))), rel=1e-4)
