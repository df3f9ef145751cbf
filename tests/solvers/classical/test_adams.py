from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from solvers import Equation, solve
from solvers.classical.adams import integrals

TIME_SAMPLERS = torch.tensor([0.0, 0.1, 0.25, 0.3, 0.55, 0.7, 1.0], dtype=torch.float64)  # unequal steps


def test_the_weights_integrate_polynomials_through_unequal_times() -> None:
    nodes, start, end = (0.9, 0.4, -0.2), 0.4, 0.9
    for degree in range(3):
        found = sum(w * c**degree for w, c in zip(integrals(nodes, start, end), nodes, strict=True))
        assert found == pytest.approx((end ** (degree + 1) - start ** (degree + 1)) / (degree + 1), rel=1e-13)


@pytest.mark.parametrize("times", [TIME_SAMPLERS, TIME_SAMPLERS.flip(0)], ids=["up", "down"])
def test_a_quadratic_slope_is_exact_after_the_first_step(times: Tensor) -> None:
    equation = Equation(lambda x, t: (1 - 2 * t + 3 * t**2)[:, None].expand_as(x))
    out = solve(equation, torch.zeros(1, 1).double(), solver="adams", grid=times, trajectory=True)
    assert out.trajectory is not None
    path = out.trajectory[:, 0, 0].numpy()
    t = times.numpy()
    exact = t - t**2 + t**3
    # The first step is the trapezoidal rule, off by h^3 / 2 here.
    assert np.allclose(np.diff(path)[1:], np.diff(exact)[1:], rtol=1e-12)
    assert path[1] - (exact[1] - exact[0]) == pytest.approx((t[1] - t[0]) ** 3 / 2, rel=1e-10)


def test_one_evaluation_for_every_time() -> None:
    calls: list[float] = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return -x

    out = solve(Equation(drift), torch.ones(1, 1).double(), solver="adams", grid=TIME_SAMPLERS)
    assert calls == TIME_SAMPLERS.tolist() and int(out.nfe) == len(TIME_SAMPLERS)
