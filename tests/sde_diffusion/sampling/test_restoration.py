"""Restoration of mixtures against their exact posterior, and on the MNIST network."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from sde_diffusion import VPSDE, Gaussian, GaussianMixture
from sde_diffusion.guidance import METHODS, Blur, Downsample, Mask
from sde_diffusion.sampling.restoration import restore
from sde_diffusion.storage.checkpoint import load

MNIST = Path(__file__).parents[3] / "benchmarks" / "networks" / "mnist.safetensors"
PRIOR = GaussianMixture(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double(), std=0.1, sde=VPSDE())
FIRST = Mask(torch.tensor([True, False]))


def test_mean_spread_and_residual_are_those_of_the_posterior() -> None:
    prior = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 0.5]]), sde=VPSDE())
    y, n = torch.tensor([[0.9, 0.0]]).double(), 500
    found = restore(prior, FIRST, y, 0.5, n, clip=None)
    exact = prior.posterior(FIRST, y, 0.5)
    std = exact.covariance.diagonal().sqrt()
    assert bool(((found.mean.double() - exact.means[0]).abs() < 4 * std / n**0.5).all())
    assert torch.allclose(found.std.double(), std, rtol=4 / (2 * n) ** 0.5)
    # y - x_0 of the observed entry: N(0.9 / 5, (1 - 1 / 1.25)), so that E|.| = 0.387.
    assert float(found.residual.mean()) == pytest.approx(0.387, abs=4 * 0.3 / n**0.5)
    assert (found.nfe, found.backward) == (60, 240)


def test_seeds_fix_the_samples() -> None:
    y = torch.tensor([[0.9, 0.0]]).double()
    one, same, other = (restore(PRIOR, FIRST, y, 0.1, 3, clip=None, nfe=10, seed=k).samples for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_deterministic_solver_is_warned_of_with_a_better_one() -> None:
    with pytest.warns(UserWarning, match=r"deterministic solver.*dpm\+\+2m-sde"):
        restore(PRIOR, FIRST, torch.zeros(1, 2).double(), 0.1, 2, clip=None, solver="pf-ode", nfe=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(PRIOR, FIRST, torch.zeros(1, 2).double(), 0.1, 2, clip=None, nfe=8)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        restore(PRIOR, FIRST, torch.zeros(1, 2).double(), 0.1, 1)
    with pytest.raises(ValueError, match="did you mean"):
        restore(PRIOR, FIRST, torch.zeros(1, 2).double(), 0.1, 2, method="pigmd")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["inpaint", "superres", "deblur"])
def test_every_method_is_stable_on_a_trained_network_and_moment_matching_follows_the_observation(task: str) -> None:
    """Without the clamped range the gradient methods gave NaN on this network near t = 1."""
    model = load(MNIST)
    generator = torch.Generator().manual_seed(0)
    x = torch.full((1, 1, 28, 28), -1.0)
    x[..., 4:24, 13:16] = 1.0  # a one
    visible = torch.ones(28, 28, dtype=torch.bool)
    visible[14:] = False
    operator = {"inpaint": Mask(visible), "superres": Downsample(4), "deblur": Blur.gaussian(1.5)}[task]
    y = operator(x) + 0.05 * torch.randn(operator(x).shape, generator=generator)
    y = operator(y) if task == "inpaint" else y
    for method in METHODS:
        if task == "deblur" and METHODS[method].pseudo_inverse:
            with pytest.raises(ValueError, match=r"Blur turns its noise 0\.05 into"):
                restore(model, operator, y, 0.05, 2, method=method, nfe=16)
            continue
        nfe = 40 if method == "moment" else 16
        found = restore(model, operator, y, 0.05, 2, method=method, nfe=nfe)
        assert bool(found.samples.isfinite().all())
        if method == "moment":
            assert float(found.residual.mean()) < 1.2 * 0.05
            assert float((found.mean - x[0]).square().mean().sqrt()) < 0.5
