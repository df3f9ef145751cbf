"""Sampling: seeds, batches, defaults, and samples that cannot be used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.comparison.for_tolerance import choose_solver
from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.local_errors import error_profile
from sde_diffusion.sampling.reference_solution import rms
from sde_diffusion.sampling.sampler import sample, sample_batches
from sde_diffusion.sampling.settings import SamplingSettings, seeds_of
from sde_diffusion.sde import VESDE, VPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import BUNDLED
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table

MODEL = GaussianMixture(torch.tensor([[-1.0, 0.5], [0.8, 1.0]]), 0.2, sde=VPSDE())


@pytest.mark.parametrize("solver", ["pf-ode", "euler-maruyama", "pc", "rk45"])
def test_a_sample_depends_on_its_seed_alone(solver: str) -> None:
    whole = sample(MODEL, 10, solver=solver, nfe=300, seed=3)
    split = sample(MODEL, 7, solver=solver, nfe=300, seed=3, batch_size=2)
    torch.testing.assert_close(split, whole[:7], rtol=1e-5, atol=1e-5)
    assert float((sample(MODEL, 10, solver=solver, nfe=300, seed=4) - whole).abs().min()) > 0


def test_the_mixture_comes_out() -> None:
    x = sample(MODEL, 4000, nfe=30)
    share = float((x[:, 0] > 0).float().mean())
    assert share == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    right = x[x[:, 0] > 0]
    se = 0.2 / len(right) ** 0.5
    torch.testing.assert_close(right.mean(0), torch.tensor([0.8, 1.0]), rtol=0, atol=5 * se)
    # Between the quartiles, so that the few samples between the modes do not count; s.e. 0.005.
    low, high = right[:, 1].quantile(torch.tensor([0.25, 0.75]))
    assert float(high - low) / 1.349 == pytest.approx(0.2, abs=0.02)


def test_defaults_are_twenty_evaluations_and_noise_for_stochastic_solvers() -> None:
    (part,) = sample_batches(MODEL, 3)
    assert part.nfe.tolist() == [20, 20, 20]
    noisy = sample(MODEL, 3, solver="ddpm")
    quiet = sample(MODEL, 3, solver="ddpm", eta=0.0)
    torch.testing.assert_close(quiet, sample(MODEL, 3, solver="ddim"))
    assert float((noisy - quiet).abs().max()) > 0.01


def test_seeds_of_different_runs_never_meet() -> None:
    assert len(set(seeds_of(0, 1000).tolist()) & set(seeds_of(1, 1000).tolist())) == 0
    assert seeds_of(5, 4, start=3).tolist() == seeds_of(5, 7)[3:].tolist()


def test_samples_that_are_not_finite_are_named() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((x[:, :1] > 2) & (t[:, None] > 0.9), torch.nan, 0.0) * x

    x1 = VPSDE().prior((300, 2), seeds=seeds_of(0, 300))
    first = int((x1[:, 0] > 2).nonzero()[0])
    with pytest.raises(FloatingPointError, match=rf"the first is sample {first}, lost before t = 0\.9"):
        sample(ScoreModel(broken, VPSDE(), "data", shape=(2,)), 300, solver="ddim", nfe=20, batch_size=10)


def test_samples_that_ended_early_give_a_warning() -> None:
    with pytest.warns(UserWarning, match="nfe_cap"):
        sample(MODEL, 4, solver="rk45", nfe=15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"solver": "nope"}, "unknown solver"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(MODEL, **{"n": 4, **arguments})
    with pytest.raises(ValueError, match="shape"):
        sample(ScoreModel(lambda x, t: x, VPSDE()), 4)


def test_a_condition_has_an_entry_for_each_sample() -> None:
    model = ScoreModel(lambda x, t, label: x, VPSDE(), shape=(1,))
    with pytest.raises(ValueError, match="3 entries for 4 samples"):
        sample(model, 4, label=torch.zeros(3))


@pytest.mark.parametrize("grid", [torch.linspace(1e-3, 1, 21), [1.0, 0.8, 0.5], [0.5, 0.2, 0.0]])
def test_a_grid_that_does_not_lead_from_noise_to_data_is_refused(grid: Any) -> None:
    with pytest.raises(ValueError, match="start from noise at t = 1 and end as data at t = 0; this grid goes from"):
        sample(MODEL, 2, grid=grid)
    with pytest.raises(ValueError, match="this grid goes from"):
        error_profile(MODEL, SamplingSettings(grid=grid))


@pytest.mark.parametrize(
    ("network", "state"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_samples_have_the_dtype_of_the_network_and_float32_at_least(network: torch.dtype, state: torch.dtype) -> None:
    seen = set()
    mlp = build("mlp", shape=(2,), width=8, depth=1).to(network)
    mlp.register_forward_pre_hook(lambda _, given: seen.add(given[0].dtype))
    assert sample(ScoreModel(mlp, VPSDE(), shape=(2,)), 2, nfe=4).dtype == state
    assert seen == {network}


def test_a_table_says_itself_how_many_evaluations_it_takes() -> None:
    table = compile_table(SOLVERS["dpm++2m"], VPSDE(), 8)
    (part,) = sample_batches(MODEL, 2, SamplingSettings(table))
    assert part.nfe.tolist() == [8, 8]
    chosen = choose_solver(MODEL, 0.5, solvers={"made": table}, n=8)
    assert (chosen.solver, chosen.nfe) == ("made", 8)


@torch.no_grad()
def test_a_network_in_bfloat16_gains_from_a_float32_state() -> None:
    """RMS to the float32 run of the bundled network: 0.004, and 0.020 with a state in bfloat16."""
    exact = load(BUNDLED)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    wanted, found = (sample(model, 16, nfe=50) for model in (exact, half))
    x1 = half.sde.prior((16, *exact.shape), seeds=seeds_of(0, 16), dtype=torch.bfloat16)
    rough = solve(half.sde.probability_flow(half), x1, nfe=50).x
    error, rough_error = (float(rms(x.float() - wanted).square().mean().sqrt()) for x in (found, rough))
    assert found.dtype == torch.float32 and rough.dtype == torch.bfloat16
    assert error < 0.008
    assert error < rough_error / 2


def test_samples_that_diverged_give_a_warning() -> None:
    model = Gaussian(torch.zeros(2), 0.25 * torch.ones(2), sde=VESDE())
    with pytest.warns(UserWarning, match=r"8 of 8 samples diverged: on the way their state was larger"):
        sample(model, 8, solver="adams", grid=torch.linspace(1, 0, 11, dtype=torch.float64) ** 2)
