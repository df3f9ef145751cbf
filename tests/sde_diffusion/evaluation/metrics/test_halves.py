"""The figures of all halves in one pass are those of each half by itself."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.evaluation.metrics import halves, standard_error
from sde_diffusion.evaluation.metrics.estimate import spread_of_halves
from sde_diffusion.evaluation.metrics.halves import neighbours_of_halves
from sde_diffusion.evaluation.metrics.mmd import block, squared_mmd
from sde_diffusion.evaluation.metrics.moments import Moments
from sde_diffusion.evaluation.metrics.nearest_neighbours import neighbours


def sets(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 4, generator=generator), 0.9 * torch.randn(m, 4, generator=generator) + 0.2


@pytest.mark.parametrize("near", [48, 6])  # with 6 neighbours many halves need their distances afresh
@pytest.mark.parametrize(("n", "m"), [(301, 250), (13, 40)])
def test_one_pass_gives_the_figures_of_every_half(n: int, m: int, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "_NEAR", near)
    y, x = sets(n, m)
    whole, parts = neighbours_of_halves(y, x, draws=7, seed=3)
    assert whole.tolist() == pytest.approx(neighbours(y, x), abs=1e-12)
    expected = standard_error(lambda half: torch.tensor(neighbours(half, x), dtype=torch.float64), y, draws=7, seed=3)
    torch.testing.assert_close(spread_of_halves(parts, n), expected, rtol=1e-12, atol=1e-12)


def test_figures_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = sets(300, 200)
    before = neighbours(y, x), squared_mmd(y, x).value, neighbours_of_halves(y, x, 3, 0)[1]
    monkeypatch.setattr("sde_diffusion.evaluation.metrics.mmd._VALUES", 7 * 300)
    assert block(300) == 7
    assert neighbours(y, x) == pytest.approx(before[0], abs=1e-12)
    assert squared_mmd(y, x).value == pytest.approx(before[1], abs=1e-12)
    torch.testing.assert_close(neighbours_of_halves(y, x, 3, 0)[1], before[2])


def test_moments_of_many_samples_are_merged_from_parts() -> None:
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) + 100
    found = Moments.of(x)
    exact = x.double()
    torch.testing.assert_close(found.mean, exact.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.covariance, torch.cov(exact.T), rtol=1e-10, atol=1e-12)
