"""The reference solution: exact where the flow is known, honest about its error, the same for every batch and dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, Gaussian, GaussianMixture, ScoreModel, SubVPSDE
from sde_diffusion.sampling.reference_solution import converged, rms


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), CosineVPSDE(), EDM(), Flow()], ids=repr)
def test_it_ends_where_the_exact_flow_does_within_its_error(sde: SDE) -> None:
    model = Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([[0.5, 0.2], [0.2, 0.1]]), sde=sde)
    x1 = sde.prior((8, 2), seeds=range(8), dtype=torch.float64)
    x0, error = converged(model, x1, steps=400)
    off = float(rms(x0 - model.flow(x1, 1.0, 0.0)).mean())
    assert off < error < 1e-4


def test_halved_steps_raise_the_error_by_the_order() -> None:
    model = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64), std=0.4, sde=VPSDE())
    x1 = model.sde.prior((8, 2), seeds=range(8), dtype=torch.float64)
    fine = converged(model, x1, steps=800)[0]
    a, b = (float(rms(converged(model, x1, steps=n)[0] - fine).mean()) for n in (50, 100))
    assert 10 < a / b < 26  # order 4: 16


def test_waves_in_time_are_resolved() -> None:
    """A network that oscillates with 1000 rad like its time embedding; the integral of noise(t) d rho by quadrature."""
    sde = VPSDE()

    def oscillation(t: Tensor) -> Tensor:
        return torch.sin(1000 * t) * torch.exp(-(((t - 0.35) / 0.1) ** 2))

    model = ScoreModel(lambda x, t: oscillation(t)[:, None].expand_as(x), sde, "noise", shape=(1,))
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    alpha, sigma = sde.marginal(t)
    expected = 1 / alpha[-1] - torch.trapezoid(oscillation(t), sigma / alpha)
    x0 = converged(model, torch.ones(1, 1), steps=400)[0]
    assert abs(float(x0) - float(expected)) < 1e-5


class Shifted(nn.Module):
    """The denoiser of a Gaussian around a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, t: Tensor, centre: Tensor) -> Tensor:
        alpha, sigma = (c.to(x.dtype)[:, None] for c in VPSDE().marginal(t))
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return centre + gain * (x - alpha * centre)


def test_batches_conditions_and_precision() -> None:
    model = ScoreModel(Shifted(), VPSDE(), "data", shape=(2,))
    x1, centre = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.arange(10.0).reshape(5, 2)
    whole, error = converged(model, x1, steps=100, centre=centre)
    parts, _ = converged(model, x1, steps=100, batch_size=2, centre=centre)
    assert torch.allclose(whole, parts, rtol=0, atol=1e-12)
    exact = Gaussian(torch.zeros(2), torch.full((2,), model.network.variance.item()), sde=VPSDE())
    alpha = VPSDE().marginal(1.0)[0]
    expected = centre + exact.flow(x1.double() - alpha * centre, 1.0, 0.0)
    assert float(rms(whole - expected).mean()) < 10 * error
    # float64 inside, and the model is as it was
    assert whole.dtype == torch.float64 and model.network.variance.dtype == torch.float32
    assert torch.equal(whole, converged(model.double(), x1.double(), steps=100, centre=centre.double())[0])


def test_what_is_refused() -> None:
    model = ScoreModel(lambda x, t: x * torch.where(t < 0.3, torch.nan, 0.0)[:, None], VPSDE(), shape=(2,))
    with pytest.raises(FloatingPointError, match="not finite for 3 of 3 samples"):
        converged(model, torch.ones(3, 2), steps=20)
    with pytest.raises(ValueError, match="at least 4 steps; got 3"):
        converged(model, torch.ones(3, 2), steps=3)
