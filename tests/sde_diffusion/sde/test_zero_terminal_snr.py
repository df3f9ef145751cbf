"""DDPM with beta_T = 1: its path, and sampling that starts from pure noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion import DDPM, GaussianMixture, ScoreModel, sample


def zero_terminal_snr(steps: int = 50) -> tuple[list[float], Tensor]:
    """Betas of Lin et al. 2024, algorithm 1, and their sqrt(abar)."""
    root = (1 - torch.linspace(1e-3, 0.2, steps, dtype=torch.float64)).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    return (1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])).tolist(), root


def test_with_a_last_beta_of_one_x_T_is_pure_noise() -> None:
    betas, root = zero_terminal_snr()
    sde = DDPM(betas=betas)
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    torch.testing.assert_close(sde.alpha(t), root, rtol=1e-7, atol=1e-9)
    # linear on the last interval, and its slope is that of differences, at t = 1 too
    late = torch.tensor([0.9805, 0.985, 0.99, 0.999, 1.0], dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = sde(late)
    torch.testing.assert_close(alpha, root[-2] * (1 - late) * 50, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(dalpha, (-50 * root[-2]).expand(5), rtol=1e-12, atol=0)
    torch.testing.assert_close(dsigma, -alpha * dalpha / sigma, rtol=1e-12, atol=1e-15)
    inside = late[:-1]
    torch.testing.assert_close(sde.time(sde.half_log_snr(inside)), inside, rtol=1e-12, atol=0)


@pytest.mark.parametrize("predicts", ["velocity", "data"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc", "pf-ode", "sde", "ddpm"])
def test_sampling_from_pure_noise_gives_the_data(solver: str, predicts: str) -> None:
    sde = DDPM(betas=zero_terminal_snr(200)[0])
    exact = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1, sde=sde)
    read = {"velocity": exact.velocity, "data": exact.denoise}[predicts]
    model = ScoreModel(read, sde, predicts, (1,))
    x = sample(model, 400, nfe=25, solver=solver)
    assert abs(float(x.abs().mean()) - 2) < 0.05
    assert 0.05 < float(x.abs().std()) < 0.3
    assert abs(float(x.sign().mean())) < 0.2  # four standard errors


def test_the_noise_says_nothing_at_pure_noise() -> None:
    model = ScoreModel(lambda x, t: x, DDPM(betas=zero_terminal_snr()[0]), "noise", (1,))
    with pytest.raises(ValueError, match="predicts='velocity' or 'data'"):
        sample(model, 1, nfe=4)
