"""A tolerance is met on samples outside the pilot, by the smallest number of evaluations that meets it."""

from __future__ import annotations

import json

import pytest
import torch
from sklearn.datasets import load_digits

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, sample
from sde_diffusion.comparison.for_tolerance import LADDER, choose_solver
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.settings import seeds_of
from solvers import SOLVERS

MEANS = torch.from_numpy(load_digits().images[:64] / 8 - 1).float().reshape(-1, 64)
MODEL = GaussianMixture(MEANS, std=0.6, sde=VPSDE())  # wide enough that its flow does not fork


@pytest.mark.parametrize("tolerance", [0.2, 0.02, 0.002])
def test_the_tolerance_is_met_on_other_samples(tolerance: float) -> None:
    choice = choose_solver(MODEL, tolerance)
    x1 = MODEL.sde.prior((256, 64), seeds=seeds_of(0, 256))
    x = sample(MODEL, 256, solver=choice.solver, nfe=choice.nfe)
    error = rms(x - converged(MODEL, x1, steps=200)[0])
    assert float(error.mean()) + 2 * float(error.std()) / 16 < tolerance
    assert choice.error < choice.bound <= tolerance
    assert 0.6 < float(error.mean()) / choice.error < 1.6


def test_it_is_the_cheapest_of_what_was_tried() -> None:
    choice = choose_solver(MODEL, 0.02)
    assert [nfe for nfe, _, _ in choice.tried] == sorted(nfe for nfe, _, _ in choice.tried)
    assert {nfe for nfe, _, _ in choice.tried} == {k for k in LADDER if k <= choice.nfe}
    assert all(bound > 0.02 for nfe, _, bound in choice.tried if nfe < choice.nfe)
    assert min((b, name) for nfe, name, b in choice.tried if nfe == choice.nfe) == (choice.bound, choice.solver)
    assert json.loads(json.dumps(choice.to_dict(), allow_nan=False))["reason"] == choice.reason
    assert choice.reason.startswith(f"{choice.solver} with {choice.nfe} evaluations")


def test_a_solver_of_ones_own_gets_its_budget() -> None:
    euler = {"ddim": SOLVERS["ddim"]}
    alone, best = choose_solver(MODEL, 0.1, solvers=euler), choose_solver(MODEL, 0.1)
    assert alone.solver == "ddim" and alone.nfe > best.nfe


def test_a_guided_pair_counts_twice() -> None:
    pair = GaussianMixture(MEANS, std=0.6, sde=VPSDE())
    pair.cost = 2
    single, double = choose_solver(MODEL, 0.2), choose_solver(pair, 0.2)
    assert 2 * single.nfe == double.nfe


def test_the_pilot_has_other_seeds_than_the_run() -> None:
    seen: list[torch.Tensor] = []

    def record(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if float(t[0]) == 1:
            seen.append(x)
        return MODEL.network(x, t)

    choose_solver(ScoreModel(record, MODEL.sde, "data", (64,)), 0.5, n=4)
    used = {round(float(v), 5) for x in seen for v in x[:, 0]}
    run = MODEL.sde.prior((4096, 64), seeds=seeds_of(0, 4096))[:, 0]
    assert len(used) == 4 and not used & {round(float(v), 5) for v in run[:64]}


def test_what_is_refused() -> None:
    for tolerance in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a tolerance is a positive distance"):
            choose_solver(MODEL, tolerance)
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        choose_solver(MODEL, 0.1, n=1)
    for name, why in (("sde", "draws noise"), ("rk45", "chooses its own steps")):
        with pytest.raises(ValueError, match=f"{name} {why}"):
            choose_solver(MODEL, 0.1, solvers={name: SOLVERS[name]})
    small = GaussianMixture(torch.tensor([[1.0], [-1.0]]), std=0.1, sde=VPSDE())
    with pytest.raises(ValueError, match=r"no solver of ddim meets the tolerance 1e-05 .* nearest is ddim with 200"):
        choose_solver(small, 1e-5, solvers={"ddim": SOLVERS["ddim"]}, n=2)
    broken = ScoreModel(lambda x, t: x * torch.nan, VPSDE(), shape=(2,))
    with pytest.raises(FloatingPointError, match="the model returns NaN or inf"):
        choose_solver(broken, 0.1)
