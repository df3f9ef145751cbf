"""What the methods for observations share: the units of the data, the range, the spread and the gain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, ScoreModel
from sde_diffusion.data.normalization import Normalization
from sde_diffusion.guidance import Mask, MomentMatching, PiGDM, residual_rms

SDE = VPSDE()
FIRST = Mask(torch.tensor([True, False]))
D = 0.5  # the standard deviation of the data
X, T = torch.tensor([[0.2, 0.4]]).double(), torch.tensor([0.4]).double()


def denoise(x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] for N(0, D^2 I)."""
    alpha, sigma = (c[:, None] for c in SDE.marginal(t.double()))
    return D**2 * alpha / (D**2 * alpha**2 + sigma**2) * x


def prior(normalization: Normalization | None = None) -> ScoreModel:
    return ScoreModel(denoise, SDE, "data", (2,), sigma_data=D, normalization=normalization)


def test_pigdm_is_exact_for_the_standard_deviation_of_the_data() -> None:
    y, s = torch.tensor([[0.3, 0.0]]).double(), 0.2
    alpha, sigma = (float(c) for c in SDE.marginal(0.4))
    spread = D**2 * sigma**2 / (D**2 * alpha**2 + sigma**2)
    mean = denoise(X, T)
    exact = mean[0, 0] + spread / (spread + s**2) * (y[0, 0] - mean[0, 0])
    found = PiGDM(prior(), FIRST, y, s).denoise(X, T)
    assert found[0].tolist() == pytest.approx([float(exact), float(mean[0, 1])])
    # With the range, the gain is the spread in place of sigma^2 / alpha.
    bounded = PiGDM(prior(), FIRST, y, s, clip=(-1.0, 1.0)).denoise(X, T)
    share = spread * alpha / sigma**2
    expected = mean[0, 0] + spread * share / (spread + s**2) * (y[0, 0] - mean[0, 0])
    assert bounded[0].tolist() == pytest.approx([float(expected), float(mean[0, 1])])


def test_values_beyond_the_range_are_clamped_and_give_no_gradient() -> None:
    far = torch.tensor([[30.0, 0.1]]).double()
    assert float(denoise(far, T)[0, 0]) > 1
    y = torch.tensor([[0.3, 0.0]]).double()
    assert torch.equal(PiGDM(prior(), FIRST, y, 0.2, clip=(-1.0, 1.0)).denoise(far, T), denoise(far, T))
    beyond = MomentMatching(prior(), FIRST, torch.tensor([[9.0, 0.0]]).double(), 0.2, clip=(-1.0, 1.0)).denoise(X, T)
    assert float(beyond[0, 0]) == 1


def test_observation_noise_and_range_are_taken_in_the_units_of_the_data() -> None:
    units = Normalization("standard", torch.tensor([3.0]), torch.tensor([2.0]))
    model = PiGDM(prior(units), FIRST, torch.tensor([[4.0, 0.0]]), 0.5, clip=(-1.0, 5.0))
    assert torch.allclose(model.y, torch.tensor([[0.5, 0.0]])) and model.noise_std == 0.25
    assert model.clip == pytest.approx((-2.0, 1.0))


def test_the_residual_is_that_of_the_entries_that_are_seen() -> None:
    found = residual_rms(FIRST, torch.tensor([[1.0, 5.0], [0.5, 5.0]]), torch.tensor([[0.5, 0.0]]))
    assert found.tolist() == pytest.approx([0.5, 0.0])
