"""Annealed Langevin dynamics and resampling: evaluations, laws, and RePaint against plain replacement."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import EDM, VPSDE, Flow, Gaussian, GaussianMixture, sample
from sde_diffusion.guidance import Mask, Replacement
from sde_diffusion.sde import SDE
from solvers import SOLVERS, solve
from solvers.diffusion import DDPM, AnnealedLangevin, Resampling

MEANS = torch.tensor([[-1.0], [1.0]]).double()


@pytest.mark.parametrize(("repeats", "jump"), [(1, 1), (3, 1), (2, 3), (4, 5), (2, 100)])
@pytest.mark.parametrize("grid", [torch.linspace(1, 0, 13), torch.linspace(1, 0.1, 13)])
def test_resampling_counts_its_evaluations(repeats: int, jump: int, grid: torch.Tensor) -> None:
    model = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
    x = VPSDE().prior((2, 2), seeds=[0, 1])
    solver = Resampling(repeats, jump)
    own = 11 if float(grid[-1]) == 0 else 12
    expected = 12 + (repeats - 1) * jump * (own // jump)
    assert solver.evaluations(12, float(grid[-1]) == 0) == expected
    assert solve(VPSDE().reverse(model), x, solver=solver, grid=grid).nfe.tolist() == [expected] * 2


def test_one_pass_is_ancestral_sampling() -> None:
    model = GaussianMixture(MEANS, 0.2, sde=VPSDE())
    assert torch.equal(sample(model, 5, solver=Resampling(repeats=1), nfe=9), sample(model, 5, solver=DDPM(), nfe=9))


@pytest.mark.parametrize("sde", [VPSDE(), EDM(20.0), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [Resampling(3), Resampling(2, 4)], ids=["one", "four"])
def test_resampling_keeps_the_law_of_an_exact_model(sde: SDE, solver: Resampling) -> None:
    model = GaussianMixture(MEANS, 0.3, torch.tensor([0.3, 0.7]), sde=sde)
    x = sample(model, 600, solver=solver, nfe=solver.evaluations(40), seed=3, batch_size=600).double()
    assert float((x > 0).double().mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 600))
    assert float((x - x.sign()).std()) == pytest.approx(0.3, abs=0.05)


def test_repaint_is_nearer_to_the_posterior_than_replacement_alone() -> None:
    """Two correlated coordinates, the first observed: the second follows only with repetitions."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    model = Gaussian(torch.zeros(2), covariance, sde=VPSDE())
    pinned = Replacement(model, Mask(torch.tensor([True, False])), torch.tensor([[1.5, 0.0]]).double(), 0.0)
    far = []
    for solver in (Resampling(1), Resampling(10)):
        x = sample(pinned, 600, solver=solver, nfe=solver.evaluations(20), seed=1, batch_size=600)
        far.append(abs(float(x[:, 1].mean()) - 0.9 * 1.5))
    assert far[1] < 0.5 * far[0] and far[1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), EDM(20.0), Flow()], ids=lambda s: type(s).__name__)
def test_annealed_langevin_finds_modes_and_their_weights_with_many_steps(sde: SDE) -> None:
    model = GaussianMixture(MEANS, 0.3, torch.tensor([0.3, 0.7]), sde=sde)
    solver = AnnealedLangevin(corrections=10)
    x = sample(model, 600, solver=solver, steps=30, seed=3, batch_size=600).double()
    assert float((x > 0).double().mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 600) + 0.01)
    assert float((x - x.sign()).std()) == pytest.approx(0.3, abs=0.05)


@pytest.mark.filterwarnings("ignore:.*samples diverged")
def test_few_langevin_steps_stay_behind() -> None:
    model = Gaussian(torch.zeros(1), torch.full((1,), 0.01), sde=VPSDE())
    few, many = (
        float(sample(model, 400, solver=AnnealedLangevin(m), steps=12, seed=2, batch_size=400).std()) for m in (4, 40)
    )
    assert abs(many - 0.1) < abs(few - 0.1)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 up"):
        Resampling(repeats=0)
    with pytest.raises(ValueError, match="0 < ratio < 2"):
        AnnealedLangevin(ratio=2.0)
    model = Gaussian(torch.zeros(1), torch.ones(1), sde=VPSDE())
    for name in ("repaint", "annealed-langevin"):
        with pytest.raises(ValueError, match="increases"):
            solve(VPSDE().probability_flow(model), torch.zeros(1, 1), solver=SOLVERS[name], grid=[0.1, 0.5, 1.0])
