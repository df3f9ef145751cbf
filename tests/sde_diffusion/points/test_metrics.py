"""Chamfer distances by hand, and scores of sets whose values are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion.points import chamfer, score_clouds
from solvers.errors import InputError


def clouds(n: int, points: int = 8, seed: int = 0) -> Tensor:
    """Clouds around random centres."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 1, generator=g) + 0.3 * torch.randn(n, 3, points, generator=g)


def test_chamfer_is_the_mean_squared_distance_to_the_nearest_point_both_ways() -> None:
    a, b = clouds(3, 5).double(), clouds(4, 7, seed=1).double()
    found = chamfer(a, b)
    for i in range(3):
        for j in range(4):
            there = [min(float((p - q).square().sum()) for q in b[j].T) for p in a[i].T]
            back = [min(float((p - q).square().sum()) for p in a[i].T) for q in b[j].T]
            assert float(found[i, j]) == pytest.approx(sum(there) / 5 + sum(back) / 7)
    torch.testing.assert_close(chamfer(b, a), found.T)
    torch.testing.assert_close(chamfer(a[:, :, torch.randperm(5)], b), found)
    assert chamfer(a, a).diagonal().abs().max() < 1e-12


def test_equal_laws_have_an_accuracy_of_one_half_and_other_laws_more() -> None:
    equal = score_clouds(clouds(200), clouds(200, seed=1))
    assert abs(equal.accuracy - 0.5) < 4 * equal.error and 0.5 < equal.coverage < 0.9
    apart = score_clouds(clouds(200) + 20, clouds(200, seed=1))
    assert apart.accuracy == 1.0 and apart.coverage < 0.1 and apart.matching > 100
    wider = score_clouds(2 * clouds(200), clouds(200, seed=1))
    assert wider.accuracy > 0.6


def test_copies_and_collapse_are_seen() -> None:
    reference = clouds(50)
    copies = score_clouds(reference.clone(), reference)
    assert (copies.accuracy, copies.coverage) == (0.0, 1.0) and copies.matching < 1e-6
    collapsed = score_clouds(clouds(1).expand(50, -1, -1), reference)
    assert collapsed.coverage == pytest.approx(1 / 50)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3, 4), r"expected floating point clouds \(B, C, N\)"),
        (torch.zeros(2, 64, 3), torch.zeros(2, 3, 4), "have their coordinates first: transpose"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 2, 4), "clouds of 3 and of 2 coordinates"),
        (torch.full((2, 3, 4), torch.nan), torch.zeros(2, 3, 4), "not finite"),
        (torch.zeros(2, 3, 4).long(), torch.zeros(2, 3, 4), "torch.int64; expected floating point"),
    ],
)
def test_what_is_no_cloud_is_refused(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chamfer(a, b)


def test_sets_of_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="3 generated and 2 reference clouds"):
        score_clouds(clouds(3), clouds(2))


def test_coverage_counts_references_that_are_nearest_to_a_generated_cloud() -> None:
    def at(*places: float) -> Tensor:
        return torch.tensor(places).reshape(-1, 1, 1).expand(-1, 3, 4)

    # All generated clouds are nearest to the first reference, though two of them are nearest to some reference.
    assert score_clouds(at(1.0, 2.0, 3.0), at(0.0, 10.0, 20.0)).coverage == pytest.approx(1 / 3)
    assert score_clouds(at(0.0, 10.0, 20.0), at(1.0, 2.0, 3.0)).coverage == pytest.approx(2 / 3)
