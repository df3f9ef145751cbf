"""CFG++ against the algorithm of the paper, and the solvers for which it is not defined."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, Flow, Guided, ScoreModel, sample
from sde_diffusion.guidance import GuidedPlusPlus
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.sde import SDE
from solvers import SOLVERS, BrownianPath, make_grid

LABEL = torch.tensor([1, 2, 2]).double()


def conditional(sde: SDE) -> ScoreModel:
    """The denoiser of N(label, .5^2), and of N(0, 1) for label 0."""

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (c[:, None].to(x.dtype) for c in sde.marginal(t))
        mean, variance = label[:, None].to(x.dtype), torch.where(label == 0, 1.0, 0.25)[:, None].to(x.dtype)
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    return ScoreModel(network, sde, "data", (1,))


@pytest.mark.parametrize("sde", [VPSDE(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.0), ("ddpm", 1.0), ("ddpm", 0.5)])
def test_the_steps_are_those_of_the_paper(sde: SDE, solver: str, eta: float) -> None:
    scale, model = 0.6, conditional(sde)
    found = sample(
        GuidedPlusPlus(model, scale, null={"label": 0.0}), 3, solver=solver, nfe=16, eta=eta, seed=4, label=LABEL
    )
    process = sde.reverse(model, eta)
    times = make_grid("quadratic", process, 8)
    seeds = seeds_of(4, 3)
    x = noise_for(model, (1,), seeds)
    noise = BrownianPath.along(seeds, process.clock, times)
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = ((float(c) for c in sde.marginal(time)) for time in (t, s))
        at = torch.full((3,), float(t), dtype=torch.float64)
        with_label, without = model.denoise(x, at, label=LABEL), model.denoise(x, at, label=torch.zeros(3))
        fresh = eta**2 * (sigma_s**2 - (alpha * sigma_s**2 / (alpha_s * sigma)) ** 2)
        eps = (x - alpha * without) / sigma
        xi = noise.increment(x, t, s) if eta > 0 and float(s) > 0 else torch.zeros_like(x)
        guided = without + scale * (with_label - without)
        x = alpha_s * guided + math.sqrt(sigma_s**2 - fresh) * eps + math.sqrt(fresh) * xi
    assert torch.allclose(found, x, atol=1e-5)


def test_the_weight_is_lambda_in_the_last_step_and_grows_with_the_number_of_steps() -> None:
    model, largest = GuidedPlusPlus(conditional(VPSDE()), 0.6, null={"label": 0.0}), []
    for steps in (4, 8, 16):
        times = make_grid("quadratic", VPSDE().probability_flow(model), steps)
        weights = model.for_run(SOLVERS["ddim"], times, 0.0).weight(times[:-1])
        assert float(weights[-1]) == pytest.approx(0.6)
        largest.append(float(weights.max()))
    assert 2 * largest[0] < 1.5 * largest[1] < largest[2]


def test_outside_the_interval_the_conditional_model_stands() -> None:
    model = conditional(VPSDE())
    guided = GuidedPlusPlus(model, 0.6, null={"label": 0.0}, interval=(1e3, 1e4))
    assert torch.equal(
        sample(guided, 3, solver="ddim", nfe=16, label=LABEL), sample(model, 3, solver="ddim", nfe=8, label=LABEL)
    )


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"ddim", "ddpm"}))
def test_other_solvers_are_refused_with_one_that_works(solver: str) -> None:
    model = GuidedPlusPlus(conditional(VPSDE()), 0.6, null={"label": 0.0})
    with pytest.raises(ValueError, match=r"--solver ddim|no .*backend|not installed"):
        sample(model, 3, solver=solver, nfe=200, label=LABEL)


def test_it_needs_a_run_and_no_other_rule() -> None:
    model = GuidedPlusPlus(conditional(VPSDE()), 0.6, null={"label": 0.0})
    x, t = torch.zeros(3, 1), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match="depends on the steps of a run"):
        model.denoise(x, t, label=LABEL)
    times = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="no time of the run"):
        model.for_run(SOLVERS["ddim"], times, 0.0).denoise(x, t, label=LABEL)
    with pytest.raises(ValueError, match="towards the noise"):
        model.for_run(SOLVERS["ddim"], times.flip(0), 0.0)
    with pytest.raises(ValueError, match="leave out combine"):
        GuidedPlusPlus(conditional(VPSDE()), 0.6, combine=lambda a, b, x, t: a)
    assert not torch.allclose(
        sample(model, 3, solver="ddim", nfe=16, label=LABEL),
        sample(Guided(conditional(VPSDE()), 0.6, null={"label": 0.0}), 3, solver="ddim", nfe=16, label=LABEL),
        atol=0.1,
    )
