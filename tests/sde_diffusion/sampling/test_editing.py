"""Editing keeps the law of the model; transport is the map between Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import ks_2samp

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel
from sde_diffusion.data.normalization import Normalization
from sde_diffusion.sampling.editing import edit, transport
from sde_diffusion.sampling.noised_start import NoisedStart, times_from
from sde_diffusion.sampling.sampler import sample_batches
from solvers import plan

MODEL = GaussianMixture(torch.tensor([[-1.0], [0.2], [1.5]]).double(), std=0.2, sde=VPSDE())


@pytest.mark.parametrize(("solver", "nfe"), [("dpm++2m-sde", 60), ("pf-ode", 20), ("unipc", 20), ("ddpm", 200)])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_draws_from_the_law_stay_draws_from_it(solver: str, nfe: int, strength: float) -> None:
    x = MODEL.draw(3000, seed=1)
    out = edit(MODEL, x, strength, solver=solver, nfe=nfe, batch_size=3000)
    assert ks_2samp(out[:, 0], MODEL.draw(3000, seed=2)[:, 0]).pvalue > 0.001
    assert not torch.allclose(out, x, atol=0.1)


def test_a_wrong_start_is_noticed_by_the_same_test() -> None:
    out = edit(MODEL, torch.zeros(3000, 1).double(), 0.15, nfe=60, batch_size=3000)
    assert ks_2samp(out[:, 0], MODEL.draw(3000, seed=2)[:, 0]).pvalue < 1e-6


def test_the_strength_says_how_much_is_kept() -> None:
    x = torch.full((500, 1), 1.5).double()
    kept = [float((edit(MODEL, x, s, nfe=40) > 0.9).double().mean()) for s in (0.05, 0.3, 1.0)]
    assert kept[0] > 0.99 and kept[0] > kept[1] > kept[2]
    assert kept[2] == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 500) + 0.02)  # nothing is kept


def test_the_start_has_the_marginal_of_its_time_and_the_seed_its_noise() -> None:
    x = torch.tensor([[1.5], [-1.0]]).double()
    start, n = NoisedStart(x, 0.3).noised(MODEL, torch.arange(4000), 0), 2000
    alpha, sigma = (float(c) for c in MODEL.sde.marginal(0.3))
    for row, value in ((start[0::2, 0], 1.5), (start[1::2, 0], -1.0)):
        assert float(row.mean()) == pytest.approx(alpha * value, abs=4 * sigma / math.sqrt(n))
        assert float(row.std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))
    assert not torch.allclose(edit(MODEL, x, 0.3, nfe=4, seed=1), edit(MODEL, x, 0.3, nfe=4, seed=2), atol=0.01)


def test_samples_do_not_depend_on_their_batch_and_nfe_is_counted() -> None:
    calls = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return 0.5 * x

    model = ScoreModel(network, VPSDE(), predicts="data", shape=(2,))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    whole = edit(model, x, 0.5, nfe=7)
    assert calls == [5] * 7
    assert torch.equal(edit(model, x, 0.5, nfe=7, batch_size=2), whole)


def test_partial_grids_have_the_number_of_steps_asked_for() -> None:
    process = MODEL.sde.probability_flow(MODEL)
    for steps in (1, 2, 7):
        times = times_from(process, 0.37, steps)
        assert len(times) == steps + 1 and float(times[0]) == 0.37 and float(times[-1]) == 0
        assert bool((times.diff() < 0).all())


def test_transport_between_two_gaussians_is_the_affine_map() -> None:
    sde = VPSDE()

    def network(x: torch.Tensor, t: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (c[:, None].to(x.dtype) for c in sde.marginal(t))
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    model = ScoreModel(network, sde, predicts="data", shape=(1,))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]

    def of(mean: float, std: float) -> dict[str, torch.Tensor]:
        return {"mean": torch.full_like(x, mean), "std": torch.full_like(x, std)}

    there = transport(model, x, of(0.0, 0.5), of(3.0, 2.0), tolerance=1e-8)
    # Standard scores are kept, at t = 1 those of N(alpha mean, alpha^2 std^2 + sigma^2).
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    code = math.hypot(0.5 * alpha, sigma) * x / 0.5
    assert torch.allclose(there, 3.0 + 2.0 * (code - 3.0 * alpha) / math.hypot(2.0 * alpha, sigma), atol=1e-4)
    assert torch.allclose(transport(model, there, of(3.0, 2.0), of(0.0, 0.5), tolerance=1e-8), x, atol=1e-5)


def test_bad_input_is_refused() -> None:
    x = torch.zeros(2, 1).double()
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        edit(MODEL, x, 0.0)
    with pytest.raises(ValueError, match="finite floating point"):
        edit(MODEL, x.long(), 0.5)
    with pytest.raises(ValueError, match="shape"):
        sample_batches_from(torch.zeros(2, 3).double())
    with pytest.raises(ValueError, match="made for its own times"):
        table = plan(MODEL.sde.probability_flow(MODEL), (1,), "pf-ode", nfe=8)[0]
        edit(MODEL, x, 0.5, solver=table, nfe=8)


def sample_batches_from(x: torch.Tensor) -> None:
    list(sample_batches(MODEL, 2, start=NoisedStart(x, 0.5)))


def test_an_adaptive_solver_chooses_its_steps_from_the_strength_on() -> None:
    x = MODEL.draw(40, seed=1)
    exact = edit(MODEL, x, 0.3, nfe=200)
    assert float((edit(MODEL, x, 0.3, solver="rk45") - exact).abs().max()) < 0.02


def test_data_in_units_of_their_own_are_edited_in_them() -> None:
    """A model of 300 + 10 z edits 300 + 10 x as the model of z edits x."""
    units = Normalization("standard", torch.full((1,), 300.0), torch.full((1,), 10.0))
    own = ScoreModel(MODEL.network, MODEL.sde, "data", (1,), normalization=units)
    x = MODEL.draw(20, seed=1)
    found = edit(own, 300 + 10 * x, 0.4, nfe=8, seed=3)
    assert torch.allclose(found, 300 + 10 * edit(MODEL, x, 0.4, nfe=8, seed=3), atol=1e-9)
