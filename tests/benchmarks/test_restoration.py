"""The figures of the restoration benchmark are those of their definitions, and peers get the same denoiser."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.restoration import NOISE, baselines, figures, problems, psnr
from benchmarks.restoration.__main__ import backward_passes

TRUTH = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def test_the_truth_has_the_residual_of_the_noise_and_a_known_error_its_psnr() -> None:
    assert float(psnr(TRUTH + 0.1, TRUTH)[0]) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-4)
    for problem in problems(TRUTH, TRUTH.mean(0, keepdim=True)):
        found = figures(problem, [TRUTH], TRUTH + 0.2)
        assert found["psnr"] == pytest.approx(10 * math.log10(4 / 1e-12), abs=1e-3) and found["finite"] == 1
        assert found["residual"] == pytest.approx(1.0, abs=0.25)  # 4 to 64 observed values for each of 40 images
        assert found["diversity"] == pytest.approx(0.2 / math.sqrt(2), rel=1e-5)
        assert "mean image" in baselines(problem) and len(baselines(problem)) == 2


def test_the_psnr_of_several_seeds_is_their_mean() -> None:
    problem = problems(TRUTH, TRUTH.mean(0, keepdim=True))[0]
    found = figures(problem, [TRUTH + 0.1, TRUTH + 0.01], TRUTH)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / (0.1 * 0.01)), abs=1e-3)


def test_draws_that_are_not_finite_are_counted_and_left_out() -> None:
    problem = problems(TRUTH, TRUTH.mean(0, keepdim=True))[0]
    lost = TRUTH.clone()
    lost[:10] = torch.nan
    found = figures(problem, [lost], lost)
    assert found["finite"] == 0.75 and math.isfinite(found["psnr"])


def test_the_backward_passes_of_others_are_counted() -> None:
    names = {"azula DPS": 1, "azula MMPS, 3 iterations": 4, "deepinv moment matching": 4, "deepinv DiffPIR": 0}
    assert {name: backward_passes(name) for name in names} == names


def test_deepinv_receives_the_posterior_mean_of_the_same_model() -> None:
    """Gaussian data of mean 0 and variance 1 in [-1, 1] have variance 1/4 and mean 1/2 in deepinv's range."""
    pytest.importorskip("torchvision")
    pytest.importorskip("deepinv")
    from benchmarks.restoration.deepinv_peer import denoiser_of
    from sde_diffusion import VPSDE
    from sde_diffusion.models.analytic import Gaussian

    model = Gaussian(torch.zeros(4), torch.full((4,), 0.01), sde=VPSDE())
    x = torch.linspace(0.4, 0.6, 8).reshape(2, 4)
    found = denoiser_of(model)(x, torch.tensor(NOISE))
    expected = 0.5 + 0.0025 / (0.0025 + NOISE**2) * (x - 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
