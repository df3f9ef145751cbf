"""The sampler of consistency models: denoise, then add independent noise of the level at the end of the step."""

from __future__ import annotations

import torch

from sde_diffusion import VPSDE
from solvers import ReverseProcess, solve
from solvers.diffusion.renoising import Renoising

N = 20_000


def test_a_step_ends_at_the_marginal_of_its_end_whatever_it_started_from() -> None:
    sde = VPSDE()
    problem = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), sde, eta=1.0)
    start = torch.randn(N, 1, generator=torch.Generator().manual_seed(0))
    out = solve(problem, start, solver=Renoising(), grid=[1.0, 0.5], seeds=range(N)).x
    alpha, sigma = (float(c) for c in sde.marginal(0.5))
    assert abs(float(out.mean()) - 3 * alpha) < 4 * sigma / N**0.5
    assert abs(float(out.std()) / sigma - 1) < 4 / (2 * N) ** 0.5
    together = torch.corrcoef(torch.cat([start, out], 1).T)[0, 1]
    assert abs(float(together)) < 4 / N**0.5
