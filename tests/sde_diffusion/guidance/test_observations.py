"""Operators: adjoints, closed-form solves against dense algebra."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sde_diffusion.guidance import (
    Blur,
    Custom,
    Downsample,
    FourierMask,
    Grey,
    Mask,
    Matrix,
    Operator,
    adjoint_error,
)
from sde_diffusion.guidance.observations import as_operator, conjugate_gradients

GENERATOR = torch.Generator().manual_seed(1)
KEPT = torch.rand(4, 6, generator=GENERATOR) < 0.5
OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "mask": (Mask(KEPT), (3, 4, 6)),
    "grey": (Grey(3), (3, 4, 6)),
    "downsample": (Downsample(2), (3, 4, 6)),
    "blur": (Blur.gaussian(0.6, 3), (2, 4, 6)),
    "lopsided blur": (Blur(torch.tensor([[0.1, 0.3], [0.0, 0.6]])), (1, 4, 6)),
    "matrix": (Matrix(torch.randn(5, 8, generator=GENERATOR).double(), (2, 4)), (2, 4)),
    "fourier": (FourierMask(KEPT), (1, 4, 6)),
    "custom": (Custom(lambda x: 2 * x[:, :1], lambda y: torch.cat([2 * y, 0 * y], 1)), (2, 3)),
}


def dense(operator: Operator, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return operator(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    operator, shape = OPERATORS[name]
    assert adjoint_error(operator, shape) < 1e-6
    assert adjoint_error(Custom(operator, lambda y: 1.1 * operator.adjoint(y)), shape) > 0.05


@pytest.mark.parametrize("name", OPERATORS)
def test_solve_is_the_inverse_of_the_regularised_gram_matrix(name: str) -> None:
    operator, shape = OPERATORS[name]
    a = dense(operator, shape)
    y = operator(torch.randn(2, *shape, generator=GENERATOR, dtype=torch.float64))
    gram = 0.7 * a @ a.T + 0.2 * torch.eye(len(a))
    right = torch.linalg.solve(gram, y.flatten(1).T).T
    assert torch.allclose(operator.solve(y, 0.7, 0.2).flatten(1), right, atol=1e-5)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64).reshape(-1, *(1,) * (y.ndim - 1))
    other = torch.linalg.solve(0.3 * a @ a.T + 0.2 * torch.eye(len(a)), y[1].flatten())
    assert torch.allclose(operator.solve(y, weights, 0.2)[1].flatten(), other, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_pseudo_inverse_is_of_least_norm(name: str) -> None:
    operator, shape = OPERATORS[name]
    y = operator(torch.randn(1, *shape, generator=GENERATOR, dtype=torch.float64))
    right = torch.linalg.pinv(dense(operator, shape), rtol=1e-5) @ y.flatten()
    assert torch.allclose(operator.pseudo_inverse(y).flatten(), right, atol=2e-4)


def test_a_blur_is_a_circular_convolution() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 0, 0] = 1
    blurred = Blur.gaussian(1.0, 3)(x)[0, 0]
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-6)
    assert float(blurred[0, 4]) == pytest.approx(float(blurred[0, 1]), abs=1e-7)  # around the edge
    assert float(blurred[0, 0]) == pytest.approx(0.2042, abs=1e-4)  # (1 + 2 e^-1/2)^-2


def test_conjugate_gradients_end_after_as_many_steps_as_eigenvalues() -> None:
    d = torch.tensor([[1.0, 2.0, 2.0, 5.0]], dtype=torch.float64)
    assert torch.allclose(conjugate_gradients(lambda v: d * v, torch.ones_like(d), 3), 1 / d, atol=1e-12)
    assert not torch.allclose(conjugate_gradients(lambda v: d * v, torch.ones_like(d), 2), 1 / d, atol=1e-3)


def test_physics_of_deepinv_are_operators_and_others_are_refused() -> None:
    physics = SimpleNamespace(A=lambda x: 3 * x, A_adjoint=lambda y: 3 * y)
    assert float(as_operator(physics)(torch.ones(1, 1))) == 3
    with pytest.raises(TypeError, match="expected an Operator"):
        as_operator(torch.ones(2, 2))
    with pytest.raises(ValueError, match="whose sides it divides"):
        Downsample(3)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 1"):
        Downsample(0)
    with pytest.raises(ValueError, match="pixels and positive"):
        Blur.gaussian(0)
    with pytest.raises(ValueError, match="takes samples of 8 entries"):
        OPERATORS["matrix"][0](torch.zeros(1, 7))
