"""The Frechet distance against closed forms, 50 digits, scipy's matrix root, and merged streams."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sde_diffusion.evaluation.metrics import Moments, frechet_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(mean: Tensor, covariance: Tensor, n: int = 1000) -> Moments:
    return Moments(n, mean, covariance * (n - 1))


def test_commuting_covariances_have_a_closed_form() -> None:
    q = torch.linalg.qr(normal(5, 5)).Q
    a, b = torch.tensor([4.0, 1.0, 0.5, 0.0, 2.0]).double(), torch.tensor([1.0, 9.0, 0.5, 3.0, 0.0]).double()
    mean = normal(5, seed=1)
    got = frechet_distance(moments(mean, q * a @ q.T), moments(mean + 0.3, q * b @ q.T))
    expected = 5 * 0.09 + float(((a.sqrt() - b.sqrt()) ** 2).sum())
    assert got == pytest.approx(expected, rel=1e-7)


def test_small_matrices_to_50_digits() -> None:
    a, b = (m @ m.T for m in (normal(3, 3, seed=2), normal(3, 3, seed=3)))
    got = frechet_distance(moments(torch.zeros(3).double(), a), moments(torch.ones(3).double(), b))
    with mpmath.workdps(50):
        product = mpmath.matrix(a.tolist()) * mpmath.matrix(b.tolist())
        eigenvalues = mpmath.eig(product, left=False, right=False)
        cross = sum(mpmath.sqrt(v) for v in eigenvalues)
        expected = 3 + sum(a.diag().tolist()) + sum(b.diag().tolist()) - 2 * mpmath.re(cross)
    assert got == pytest.approx(float(expected), rel=1e-10)


def test_features_agree_with_the_formula_by_scipy_sqrtm() -> None:
    x, y = normal(400, 8, seed=4), normal(300, 8, seed=5) @ normal(8, 8, seed=6)
    cx, cy = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cx @ cy).real
    gap = x.mean(0) - y.mean(0)
    expected = float(gap @ gap) + np.trace(cx + cy - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)


def test_identical_and_degenerate_sets() -> None:
    x = normal(50, 4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    flat = torch.cat([x[:, :2], torch.zeros(50, 2)], dim=1)  # rank 2 in 4 dimensions
    assert frechet_distance(flat, flat + 1.0) == pytest.approx(4.0, rel=1e-7)


def test_merging_is_one_pass() -> None:
    x = normal(1000, 6) + 100
    parts = [Moments.of(part) for part in x.split([1, 299, 500, 200])]
    merged = parts[0] + parts[1] + (parts[2] + parts[3])
    whole = Moments.of(x)
    assert merged.n == 1000
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples in 8 dimensions"):
        frechet_distance(normal(3, 8), normal(100, 8))
    assert frechet_distance(normal(3, 8), normal(3, 8), allow_few=True) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        frechet_distance(normal(9, 4), normal(9, 5))
    broken = normal(9, 4)
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 9 .* the first is 3"):
        frechet_distance(broken, normal(9, 4))


def test_singular_covariances_of_different_range() -> None:
    # A on the first axis, B on the second: they share nothing, so d^2 = tr A + tr B.
    a, b = torch.diag(torch.tensor([2.0, 0.0])).double(), torch.diag(torch.tensor([0.0, 3.0])).double()
    zero = torch.zeros(2).double()
    assert frechet_distance(moments(zero, a), moments(zero, b)) == pytest.approx(5.0, rel=1e-12)


def test_a_stream_of_100_000_samples_in_constant_memory() -> None:
    total, largest = None, 0
    for k in range(100):
        part = Moments.of(normal(1000, 16, seed=k) * 3 + 1)
        total = part if total is None else total + part
        largest = max(largest, total.mean.numel() + total.scatter.numel())
    assert total is not None and total.n == 100_000
    assert largest == 16 + 16 * 16
    exact = moments(torch.ones(16).double(), 9 * torch.eye(16).double())
    # E d^2 is about d^2 s^2 / (4 n) + d s^2 / n for equal laws: 0.0072; its spread is a tenth of that.
    assert frechet_distance(total, exact) == pytest.approx(0.0072, rel=0.5)


class Decompositions(TorchFunctionMode):
    """The functions of linear algebra that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.startswith("linalg_"):
            self.called.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_distance_takes_one_cholesky_factor_and_eigenvalues_without_vectors() -> None:
    a, b = (Moments.of(normal(100, 24, seed=k)) for k in (0, 1))
    with Decompositions() as made:
        frechet_distance(a, b)
    assert made.called == ["linalg_cholesky_ex", "linalg_eigvalsh"]
