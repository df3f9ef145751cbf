"""A learned variance in training, in the solver ddpm and in the bound, against Gaussian data, where all is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import DDPM, VPSDE, ScoreModel, sample, train
from sde_diffusion.data import as_data
from sde_diffusion.guidance import Guided
from sde_diffusion.likelihood.lower_bound import elbo
from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.networks import build
from sde_diffusion.sde import SDE
from sde_diffusion.sde.step_posterior import posterior
from sde_diffusion.training.defaults import set_up
from solvers import SOLVERS, solve
from solvers.diffusion.ancestral import DDPM as Ancestral

STD = 0.4
STEPS = 20
PROCESS = DDPM(STEPS, schedule="cosine")


def true_share(sde: SDE, t: Tensor, s: Tensor) -> Tensor:
    """Where between log beta~ and log beta the variance of x_s given x_t lies, for data N(0, STD^2)."""
    (alpha, sigma), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
    v, v_s = ((a * STD) ** 2 + b**2 for a, b in ((alpha, sigma), (alpha_s, sigma_s)))
    ratio = alpha / alpha_s
    variance = v_s - (ratio * v_s) ** 2 / v
    q = posterior(sde, t, s)
    return torch.log(variance / q.small) / torch.log(q.large / q.small)


def gaussian(share: float | None, sde: SDE = PROCESS, steps: int = STEPS) -> ScoreModel:
    """The exact model of the data with a learned variance; the true one where share is None."""
    exact = Gaussian(torch.zeros(1), torch.full((1,), STD**2), sde=sde)

    def network(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        s = (t.double() - 1 / steps).clamp_min(0)
        fixed = torch.full_like(s, 0.0 if share is None else share)
        found = torch.where(s > 0, true_share(sde, t, s), fixed) if share is None else fixed
        return torch.cat([exact.denoise(x, t), (2 * found - 1)[:, None].to(x).expand_as(x)], 1)

    return ScoreModel(network, sde, "data", (1,))


def drawn(model: ScoreModel, variance: str | None, n: int = 20_000, **options: Any) -> float:
    x = sample(model, n, solver=Ancestral(variance), grid=PROCESS.grid(STEPS), batch_size=n, **options)
    return float(x.double().std())


def test_the_solver_takes_the_learned_variance_by_itself() -> None:
    """The true variance of the steps gives the law of the exact chain; the fixed ones give it at a share of 0 and 1."""
    model = gaussian(None)
    last = PROCESS.grid(STEPS)[-2]
    alpha, sigma = (float(c) for c in PROCESS.marginal(last))
    expected = alpha * STD**2 / math.hypot(alpha * STD, sigma)  # of D(x_t) at the last time before 0
    found = {variance: drawn(model, variance) for variance in (None, "learned", "small", "large")}
    assert found[None] == found["learned"] == pytest.approx(expected, rel=4 / math.sqrt(2 * 20_000))
    assert found["small"] < 0.97 * expected and found["large"] > 1.03 * expected
    for share, fixed in ((0.0, "small"), (1.0, "large")):
        assert drawn(gaussian(share), None) == pytest.approx(drawn(model, fixed), rel=1e-5)


def test_evaluations_are_counted_and_other_solvers_see_the_mean() -> None:
    model = gaussian(None)
    x1 = PROCESS.prior((3, 1))
    out = solve(PROCESS.reverse(model), x1, solver="ddpm", nfe=7)
    assert out.nfe.tolist() == [7, 7, 7]
    plain = Gaussian(torch.zeros(1), torch.full((1,), STD**2), sde=PROCESS)
    for name in ("ddim", "dpm++2m-sde"):
        ours, theirs = (
            solve(PROCESS.reverse(m, float(SOLVERS[name].stochastic)), x1, solver=name, nfe=7) for m in (model, plain)
        )
        torch.testing.assert_close(ours.x, theirs.x)
    pair = Guided(gaussian(None), 2.0, null={"label": 0})
    out = solve(PROCESS.reverse(pair, label=torch.ones(3, dtype=torch.int64)), x1, solver="ddpm", nfe=14)
    assert out.nfe.tolist() == [14, 14, 14]


def test_another_model_in_the_process_is_the_one_that_is_sampled() -> None:
    process = PROCESS.reverse(gaussian(None))
    moved = replace(process, model=lambda x, t: torch.full_like(x, 5.0))
    assert solve(moved, PROCESS.prior((3, 1)), solver="ddpm", nfe=5).x.flatten().tolist() == [5.0] * 3


@pytest.mark.parametrize(("share", "fixed"), [(0.0, "small"), (1.0, "large")])
def test_the_bound_with_a_variance_learned_at_an_end_is_that_of_the_fixed_one(share: float, fixed: str) -> None:
    x = torch.tensor([[0.3], [-0.7]], dtype=torch.float64)
    learned, known = (elbo(gaussian(share), x, steps=STEPS, variance=v, draws=2) for v in (None, fixed))
    assert (learned.variance, known.variance) == ("learned", fixed)
    torch.testing.assert_close(learned.steps, known.steps, rtol=1e-5, atol=1e-6)
    if fixed == "large":
        torch.testing.assert_close(learned.decoder, known.decoder, rtol=1e-5, atol=1e-6)


def test_the_true_variance_has_the_tightest_bound() -> None:
    """Of all variances of the steps the true one has the least sum of relative entropies over the data."""
    x = STD * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {s: elbo(gaussian(s), x, steps=STEPS).steps.sum(0) for s in (None, 0.0, 0.5, 1.0)}
    for share in (0.0, 0.5, 1.0):
        gain = found[share] - found[None]  # the same draws of x_t
        assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(len(x)), share


@pytest.mark.slow
def test_training_finds_the_variance_of_the_steps_and_the_bound_gets_tighter() -> None:
    x = STD * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    sde = DDPM(6, schedule="cosine")
    torch.manual_seed(0)
    network = build("mlp", shape=(1,), width=32, depth=2, variance=True, embedding="sinusoidal")
    model = ScoreModel(network, sde, "velocity", (1,))
    settings = {"steps": 500, "batch_size": 256, "learning_rate": 4e-3, "ema": 0.98, "normalize": "none"}
    model = train(model, as_data(x), progress=False, **settings)
    t = torch.arange(2, 6, dtype=torch.float64) / 6
    with torch.no_grad():
        _, share = model.denoise_with_share(torch.zeros(len(t), 1), t)
    assert share is not None
    true = true_share(sde, t, t - 1 / 6)  # 0.58, 0.35, 0.24, 0.19; untrained 0.5
    torch.testing.assert_close(share[:, 0].double(), true, rtol=0, atol=0.06)
    held_out = STD * torch.randn(200, 1, generator=torch.Generator().manual_seed(3))
    bound = {v: elbo(model, held_out, steps=6, variance=v).steps.sum(0) for v in (None, "small", "large")}
    for fixed in ("small", "large"):
        gain = bound[fixed] - bound[None]
        assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(len(gain)), fixed


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'large'"):
        Ancestral("larg")
    plain = Gaussian(torch.zeros(1), torch.ones(1), sde=VPSDE())
    with pytest.raises(ValueError, match="learned no variance"):
        sample(plain, 2, solver=Ancestral("learned"), nfe=3)
    with pytest.raises(ValueError, match=r"eta = 1; got eta = 0\.5"):
        sample(plain, 2, solver=Ancestral("large"), nfe=3, eta=0.5)
    with pytest.raises(ValueError, match="learned no variance"):
        elbo(plain, torch.zeros(1, 1), steps=3, variance="learned")
    with pytest.raises(ValueError, match="give --sde ddpm"):
        set_up({"data": "digits", "network": {"variance": True}})
