"""Predictor-corrector sampling.

Exact NFE in either order, the Langevin law, step-size rules, what cannot be corrected.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.sde import VPSDE, CosineVPSDE
from solvers import SOLVERS, Solver, solve
from solvers.brownian_path import BrownianPath
from solvers.classical.adaptive_sde import AdaptiveSDE
from solvers.classical.euler import EulerMaruyama
from solvers.classical.stochastic_heun import StochasticHeun
from solvers.diffusion.ancestral import DDIM, DDPM
from solvers.diffusion.predictor_corrector import PredictorCorrector
from solvers.diffusion.reverse_diffusion import ReverseDiffusion
from solvers.exponential.adams import ExponentialAdams
from solvers.noise import as_seeds
from tests.solvers.linear import Impulses

SDE_VP = VPSDE()
PREDICTORS = [
    DDPM(),
    EulerMaruyama(),
    ReverseDiffusion(),
    StochasticHeun(),
    ExponentialAdams(2, sde=True),
    SOLVERS["sde"],
]


def mixture(n: int = 4) -> tuple[GaussianMixture, Tensor]:
    mix = GaussianMixture(torch.tensor([[-1.0, 0.2], [0.8, -0.5]]), 0.3, sde=SDE_VP)
    return mix, SDE_VP.prior((n, 2), seeds=range(n))


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("correct_first", [False, True])
@pytest.mark.parametrize("corrections", [0, 1, 3])
def test_evaluations_are_exact(predictor: Solver, correct_first: bool, corrections: int) -> None:
    mix, x1 = mixture()
    solver = PredictorCorrector(predictor, corrections, correct_first=correct_first)
    for budget in (1, 2, 5, 12, 50):
        out = solve(SDE_VP.reverse(mix), x1, solver=solver, nfe=budget)
        steps = len(out.times) - 1
        expected = predictor.stages * (steps - 1) + 1 + corrections * (steps - 1)
        assert out.nfe.tolist() == [expected] * 4
        assert expected <= budget < expected + predictor.stages + corrections
        assert out.x.isfinite().all()
    early = solve(SDE_VP.reverse(mix), x1, solver=solver, grid=[1.0, 0.6, 0.2])
    assert early.nfe.tolist() == [2 * (predictor.stages + corrections)] * 4


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: type(p).__name__)
def test_no_corrections_is_the_predictor(predictor: Solver) -> None:
    mix, x1 = mixture()
    runs = [
        solve(SDE_VP.reverse(mix), x1, solver=s, steps=9, grid="power").x
        for s in (predictor, PredictorCorrector(predictor, 0))
    ]
    assert torch.equal(*runs)


def test_either_order_is_the_same_chain_shifted_by_one_correction() -> None:
    """Correct-first on [t0, t1, t2] is: correct at t0, predict, correct at t1, predict."""
    mix, x = mixture()
    process = SDE_VP.reverse(mix)
    times = torch.tensor([0.9, 0.7, 0.4], dtype=torch.float64)
    noise = BrownianPath(as_seeds(range(4), 4), process.clock)
    first, after = (PredictorCorrector(snr=0.2, rule="sigma", correct_first=c) for c in (True, False))
    only = PredictorCorrector(
        DDIM(), snr=0.2, rule="sigma"
    )  # a prediction over no time would leave x: do the correction by hand

    def correct(x: Tensor, t: Tensor) -> Tensor:
        sigma = float(SDE_VP(t).sigma)
        score = mix.score(x, t.expand(len(x)))
        delta = 2 * (only.snr * sigma) ** 2
        return x + delta * score + math.sqrt(2 * delta) * noise.independent(x, t)

    got = x
    for t, s in ((times[0], times[1]), (times[1], times[2])):
        got, _, _ = first.step(process, got, t, s, None, noise)
    want = correct(x, times[0])
    want, _, _ = after.step(process, want, times[0], times[1], None, noise)
    want, _, _ = DDPM().step(process, want, times[1], times[2], None, noise)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("corrections", [1, 4])
def test_langevin_law_is_the_ar1_of_its_step_size(corrections: int) -> None:
    """On N(0, v) it maps a variance V to (1 - delta/v)^2 V + 2 delta, delta = 2 (snr sigma)^2."""
    data = Gaussian(torch.zeros(1), torch.tensor([0.25]), sde=SDE_VP)
    t, s = torch.tensor([0.5, 0.4], dtype=torch.float64)
    solver = PredictorCorrector(DDIM(), corrections, snr=0.3, rule="sigma")
    x = torch.zeros(corrections + 2, 1, dtype=torch.float64)
    x[0] = 2.0
    out = solver.step(SDE_VP.probability_flow(data), x, t, s, None, Impulses(1.0))[0]
    alpha, sigma = (float(c) for c in SDE_VP(s)[:2])
    v = alpha**2 * 0.25 + sigma**2
    delta = 2 * (0.3 * sigma) ** 2
    moved = float(DDIM().step(SDE_VP.probability_flow(data), x[:1], t, s, None, Impulses(0.0))[0])
    variance = moved**2
    for _ in range(corrections):
        variance = (1 - delta / v) ** 2 * variance + 2 * delta
    assert float(out.square().sum()) == pytest.approx(variance, rel=1e-12)


def test_norm_rule_is_the_papers_for_each_sample() -> None:
    """Delta = 2 a (snr |z| / |score|)^2 with a = 1 - beta_i.

    Numbers written out for two samples of unlike norms.
    """
    mix, x = mixture(2)
    x = x * torch.tensor([[1.0], [3.0]])
    process = SDE_VP.probability_flow(mix)
    t, s = torch.tensor([0.5, 0.45], dtype=torch.float64)
    noise = BrownianPath(as_seeds(range(2), 2), process.clock)
    got = PredictorCorrector(DDIM(), snr=0.16, rule="norm").step(process, x, t, s, None, noise)[0]
    x, _, _ = DDIM().step(process, x, t, s, None, noise)
    beta = -math.expm1(-(0.1 * 0.05 + 19.9 * (0.5**2 - 0.45**2) / 2))
    for k in range(2):
        score = mix.score(x[k : k + 1], s.expand(1))
        z = noise.independent(x, s)[k : k + 1]
        delta = 2 * (1 - beta) * (0.16 * float(z.norm()) / float(score.norm())) ** 2
        assert torch.allclose(got[k : k + 1], x[k : k + 1] + delta * score + math.sqrt(2 * delta) * z, atol=1e-5)


@pytest.mark.parametrize("rule", ["step", "sigma", "norm"])
@pytest.mark.parametrize("correct_first", [False, True])
def test_a_sample_does_not_depend_on_its_batch(rule: str, correct_first: bool) -> None:
    solver = PredictorCorrector(corrections=2, rule=rule, correct_first=correct_first)
    mix, x1 = mixture(64)
    together = solve(SDE_VP.reverse(mix), x1, solver=solver, steps=8).x
    for rows in (slice(0, 7), slice(63, 64)):
        alone = solve(SDE_VP.reverse(mix), x1[rows], solver=solver, steps=8, seeds=range(64)[rows]).x
        assert torch.allclose(together[rows], alone, atol=1e-5)


@pytest.mark.parametrize("rule", ["step", "sigma", "norm"])
@pytest.mark.parametrize("correct_first", [False, True])
def test_pure_noise_is_a_start(rule: str, correct_first: bool) -> None:
    sde = CosineVPSDE()
    mix = GaussianMixture(torch.tensor([[-1.0, 0.2], [0.8, -0.5]]), 0.3, sde=sde)
    solver = PredictorCorrector(rule=rule, correct_first=correct_first)
    assert solve(sde.reverse(mix), sde.prior((4, 2)), solver=solver, steps=5).x.isfinite().all()


def test_multistep_predictors_keep_the_law() -> None:
    """Corrections between the steps of a multistep predictor.

    4,000 samples of N(0.5, 0.09) within 4 standard errors.
    """
    n = 4000
    data = Gaussian(torch.tensor([0.5]), torch.tensor([0.09]), sde=SDE_VP)
    solver = PredictorCorrector(SOLVERS["sde"], snr=0.05, rule="sigma")
    x = solve(SDE_VP.reverse(data), SDE_VP.prior((n, 1)), solver=solver, steps=100, grid="quadratic").x
    assert float(x.mean()) == pytest.approx(0.5, abs=4 * 0.3 / math.sqrt(n))
    assert float(x.std()) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * n))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corrections": -1}, "corrections >= 0"),
        ({"snr": 0.0}, "snr > 0"),
        ({"rule": "sigmas"}, "did you mean 'sigma'"),
        ({"predictor": AdaptiveSDE()}, "chooses its own"),
        ({"predictor": ExponentialAdams(2, corrector=True, sde=True)}, "corrector=False"),
        ({"predictor": SOLVERS["pf-ode"]}, "corrector=False"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictorCorrector(**settings)  # type: ignore[arg-type]


def test_a_predictor_without_noise_is_refused_for_a_process_with_noise() -> None:
    mix, x1 = mixture()
    solver = PredictorCorrector(DDIM())
    with pytest.raises(ValueError, match="DDIM draws no noise"):
        solve(SDE_VP.reverse(mix), x1, solver=solver, steps=4)
    assert solve(SDE_VP.probability_flow(mix), x1, solver=solver, steps=4).x.isfinite().all()


@pytest.mark.parametrize("name", ["pc", "reverse-diffusion", "restart"])
def test_a_way_back_to_noise_is_refused(name: str) -> None:
    mix, x1 = mixture()
    with pytest.raises(ValueError, match="the grid increases"):
        solve(SDE_VP.probability_flow(mix), x1, solver=name, grid=torch.linspace(0.01, 0.9, 9))
