"""The forward SDE as an object: its law is the kernel of the process, its strong order that of the solver."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE
from solvers import solve

N = 4000


@pytest.mark.parametrize(
    "sde", [VPSDE(), SubVPSDE(), VESDE(sigma_max=5.0), EDM(sigma_max=5.0), CosineVPSDE()], ids=repr
)
def test_the_law_over_any_interval_is_the_transition_kernel(sde: SDE) -> None:
    for start, end in ((0.0, 0.3), (0.2, 0.5)):
        times = torch.linspace(start, end, 201, dtype=torch.float64)
        x = torch.full((N, 1), 1.5, dtype=torch.float64)
        out = solve(sde.forward(), x, solver="euler-maruyama", grid=times, seeds=range(N)).x
        (alpha_s, sigma_s), (alpha_t, sigma_t) = sde.marginal(start), sde.marginal(end)
        ratio = float(alpha_t / alpha_s)
        std = math.sqrt(float(sigma_t**2) - (ratio * float(sigma_s)) ** 2)
        assert float(out.mean()) == pytest.approx(1.5 * ratio, abs=4 * std / math.sqrt(N) + 0.005)
        assert float(out.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * N) + 0.01)


def test_the_strong_order_of_euler_maruyama_with_additive_noise_is_1() -> None:
    sde, steps = VPSDE(), (16, 32, 64, 128)
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def end(n: int) -> torch.Tensor:
        times = torch.linspace(0.125, 0.625, n + 1, dtype=torch.float64)  # on the dyadic tree of the path
        return solve(sde.forward(), x, solver="euler-maruyama", grid=times, seeds=range(64)).x

    reference = end(2048)
    errors = [float((end(n) - reference).square().mean().sqrt()) for n in steps]
    slope = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
    assert slope == pytest.approx(1, abs=0.15)
