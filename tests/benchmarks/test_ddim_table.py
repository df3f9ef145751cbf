"""The rows of the table are the paper's transitions."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ddim_table import ROWS, markdown, times
from sde_diffusion.sde import VPSDE
from solvers import ReverseProcess, solve


def test_the_larger_variance_is_that_of_the_forward_step() -> None:
    # With D = 0 and x = 0 a step is its noise alone. beta-tilde = beta sigma_s^2 / sigma_t^2 (Ho et al. 2020, eq. 7).
    t, s = 0.6, 0.4
    process = ReverseProcess(lambda x, t: torch.zeros_like(x), VPSDE(), eta=1.0)
    small, large = (
        solve(process, torch.zeros(50, 3).double(), solver=ROWS[name][0], grid=[t, s], seeds=range(50)).x
        for name in ("1.0", "sigma-hat")
    )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (VPSDE().marginal(u) for u in (t, s))
    torch.testing.assert_close(large / small, torch.full_like(large, float(sigma_t / sigma_s)), rtol=1e-6, atol=0)
    beta = 1 - float(alpha_t / alpha_s) ** 2
    assert float(large.square().mean()) == pytest.approx(beta, rel=0.3)  # 150 normals: 12 %


def test_times_are_equal_steps_of_the_root() -> None:
    grid = torch.tensor(times(10)).sqrt()
    assert len(grid) == 11 and grid[0] == 1 and grid[-1] == 0 and grid[-2] ** 2 == pytest.approx(1e-3)
    assert float(grid[:-1].diff().std()) < 1e-6


def test_the_markdown_has_a_cell_for_what_was_measured() -> None:
    cell = {"value": 1.25, "standard_error": 0.5}
    result = {"model": "m", "n": 9, "features": "f", "floor": 0.1, "command": "c", "steps": [10]}
    assert "| 0.2 | 1.250 +- 0.500 |" in markdown({**result, "rows": {"0.2": {"10": cell}}})
