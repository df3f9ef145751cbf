from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.likelihood.dequantization import bits_per_dim, dequantise, level_range
from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.sde import Flow


def test_uniform_8_bit_data_has_8_bits() -> None:
    dim = 784
    nats = torch.tensor([-dim * math.log(level_range(256))], dtype=torch.float64)  # density of a uniform cube
    assert bits_per_dim(nats, dim=dim).bits.item() == pytest.approx(8, abs=1e-12)
    assert bits_per_dim(nats, dim=dim).dequantisation == "uniform"


def test_a_density_that_is_constant_on_levels_gives_their_entropy() -> None:
    # Levels of probability p_y: density p_y / w on the range of each level.
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    levels = torch.multinomial(p, 20000, replacement=True, generator=torch.Generator().manual_seed(0))[:, None]
    x = dequantise(levels, 4)
    found = ((x + 1) / level_range(4) * 4 + 0.5).floor().long()  # each x lies in the range of its own level
    assert torch.equal(found, levels)
    nats = torch.log(p[found[:, 0]] * 4 / level_range(4))
    entropy = bits_per_dim(nats, 4, dim=1).bits
    assert entropy.mean() == pytest.approx(1.75, abs=4 * float(entropy.std()) / 20000**0.5)


def test_dequantisation_noise_is_uniform_and_of_its_seed() -> None:
    levels = torch.randint(0, 17, (500, 8), generator=torch.Generator().manual_seed(1))
    x = dequantise(levels, 17, seeds=range(500))
    u = ((x + 1) * 16 / 2 + 0.5 - levels).flatten().sort().values
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert (u - grid).abs().max() < 1.63 / 4000**0.5  # Kolmogorov's bound at 1 %
    assert torch.equal(dequantise(levels[7:8], 17, seeds=[7]), x[7:8])


def test_units_change_nats_by_d_log_scale_and_bits_not_at_all() -> None:
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    mean, factor = torch.tensor([0.1, -0.2]).double(), 7.0
    x = torch.tensor([[0.3, -0.1], [-0.5, 0.4]]).double()
    plain = log_likelihood(Gaussian(mean, covariance, sde=Flow()), x, tolerance=1e-6)
    scaled = log_likelihood(Gaussian(factor * mean, factor**2 * covariance, sde=Flow()), factor * x, tolerance=1e-6)
    assert torch.allclose(scaled.nats - plain.nats, torch.tensor(-2 * math.log(factor)).double(), atol=1e-5)
    bits = bits_per_dim(plain, 256, 2.0).bits
    assert torch.allclose(bits_per_dim(scaled, 256, 2.0 * factor).bits, bits, atol=1e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="levels are whole numbers from 0 to 255; got 0 to 256"):
        dequantise(torch.tensor([[0, 256]]))
    with pytest.raises(ValueError, match="0 to 255"):
        dequantise(torch.tensor([[0.5]]))
    with pytest.raises(ValueError, match="dim=784"):
        bits_per_dim(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 2; got 1"):
        bits_per_dim(torch.zeros(3), 1, dim=2)
    with pytest.raises(ValueError, match="must be positive; got 0"):
        bits_per_dim(torch.zeros(3), 256, 0.0, dim=2)
