"""The order that follows the sample: how many values a step has, and what it then is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from sde_diffusion import VPSDE
from solvers import SOLVERS, ReverseProcess, solve
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder, _shares

SDE = VPSDE()
LARGER = ExponentialAdams(5, variable="time", corrector=True)
SOLVER = VariableOrder(LARGER)


def end(solver, denoised, x=None, times=None):
    """Where a process ends whose D is a function of time, one column for each sample: t -> (B,)."""
    times = torch.linspace(1, 0.1, 13, dtype=torch.float64) if times is None else times
    x = torch.tensor([[0.3], [-1.2], [2.0]], dtype=torch.float64) if x is None else x

    def model(x, t):
        return denoised(float(t[0]))[:, None].expand_as(x)

    return solve(ReverseProcess(model, SDE), x, solver=solver, grid=times).x


def smooth(t):
    return torch.tensor([t**4 - t, 3 * t**4, 1 + t**2 - t**4], dtype=torch.float64)


def rough(t):
    """A sign that changes from one time to the next: differences double."""
    return (-1.0) ** round((1 - t) / 0.075) * torch.tensor([1.0, 0.2, -3.0], dtype=torch.float64)


def test_smooth_samples_are_those_of_the_larger_method():
    # Of degree 4: five values know it, four do not. Shares of exactly 1 leave rounding.
    times = torch.linspace(0.5, 0.1, 25, dtype=torch.float64)
    ends = [end(solver, smooth, times=times) for solver in (SOLVER, LARGER, SOLVER.smaller)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-13)
    assert float((ends[2] - ends[1]).abs().min()) > 1e-9


def test_rough_samples_are_those_of_the_smaller_method():
    ends = [end(solver, rough) for solver in (SOLVER, LARGER, SOLVER.smaller)]
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-13)
    assert float((ends[2] - ends[1]).abs().min()) > 1e-3


def test_every_sample_has_its_own():
    def mixed(t):
        return torch.stack([smooth(t)[0], rough(t)[1], smooth(t)[2]])

    times = torch.linspace(0.55, 0.1, 7, dtype=torch.float64)
    together = end(SOLVER, mixed, times=times)
    for k in range(3):
        x = torch.tensor([[0.3], [-1.2], [2.0]], dtype=torch.float64)[k : k + 1]
        alone = end(SOLVER, lambda t, k=k: mixed(t)[k : k + 1], x, times)
        assert torch.equal(together[k : k + 1], alone)


@pytest.mark.parametrize("times", [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.95, 0.8, 0.7, 0.6, 0.55, 0.45]])
def test_the_share_is_that_of_the_formula(times):
    """Only the last value is not 0, and nothing is corrected: the methods of all orders arrive at it with one x."""
    plain = replace(LARGER, corrector=False)
    times = torch.tensor(times, dtype=torch.float64)

    def denoised(t):
        return torch.full((3,), float(t == float(times[-2])), dtype=torch.float64)

    ends = [end(replace(plain, predictor_order=p), denoised, times=times) for p in (5, 4, 3, 2)]
    e5, e4, e3 = ((a - b).abs() for a, b in pairwise(ends))
    g = ((1 - torch.minimum(e5 / e4, (e5 / e3).sqrt())) / 0.5).clamp(0, 1)
    assert 0 < float(g[0]) < 1
    torch.testing.assert_close(end(VariableOrder(plain), denoised, times=times), (1 - g) * ends[1] + g * ends[0])


@pytest.mark.parametrize("fewest", [2, 3, 4])
def test_shares_between_are_kept_by_the_corrector(fewest):
    """D is smooth but coarse: the run is none of the methods, and equals a loop written out."""
    times = torch.linspace(0.95, 0.1, 9, dtype=torch.float64)

    def denoised(t):
        return torch.sin(torch.tensor([9.0, 7.0, 8.0], dtype=torch.float64) * t)

    orders = range(1, 6)
    plans = {p: replace(LARGER, predictor_order=p).plan(SDE, 0.0, tuple(times.tolist())) for p in orders}

    def moved(update, x, values):
        return update.decay * x + sum(w * v for w, v in zip(update.weights, values, strict=False))

    x, values, base, shares, seen = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64), [], None, {}, []
    for i, t in enumerate(times[:-1].tolist()):
        values = [denoised(t), *values]
        if base is not None:
            x = moved(plans[fewest][i - 1].corrector, base, values)
            for p, g in shares.items():
                x = (1 - g) * x + g * moved(plans[p][i - 1].corrector, base, values)
        ends = {p: moved(plans[p][i].predictor, x, values) for p in orders}
        e = {p: (ends[p] - ends[p - 1]).abs() for p in orders if p > 1}
        base, x, shares = x, ends[fewest], {}
        for p in range(fewest + 1, min(len(values), 5) + 1):
            r = torch.minimum(e[p] / e[p - 1], (e[p] / e[p - 2]).sqrt()) if p > 3 else e[p] / e[p - 1]
            shares[p] = ((1 - r) / 0.5).clamp(0, 1)
            x = (1 - shares[p]) * x + shares[p] * ends[p]
        seen += [float(g) for share in shares.values() for g in share]
    assert any(0.05 < g < 0.95 for g in seen)
    solver = VariableOrder(LARGER, fewest)
    torch.testing.assert_close(end(solver, denoised, times=times)[:, 0], x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("fewest", [1, 5])
def test_the_fewest_values_are_from_two_to_less_than_most(fewest):
    with pytest.raises(ValueError, match="from 2 to p - 1 = 4"):
        VariableOrder(LARGER, fewest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_is_left(dtype):
    """The norm of 2^20 entries of 100 does not fit in float16, which ends at 65504."""
    (share,) = _shares([torch.full((2, 2**20), size, dtype=dtype) for size in (100.0, 120.0, 90.0)], 1)
    assert share.dtype == dtype and share.flatten().tolist() == pytest.approx([0.5, 0.5], rel=0.01)
    x = torch.full((2, 3), 100.0, dtype=dtype)
    process = ReverseProcess(lambda x, t: 100 * torch.cos(3 * t[:, None]).to(x) + 0 * x, SDE)
    assert solve(process, x, solver=SOLVER, grid=torch.linspace(1, 0.1, 17)).x.dtype == dtype


@pytest.mark.parametrize(
    "other",
    [SOLVERS["sa"], ExponentialAdams(3), ExponentialAdams(5, lower_order_final=True)],
    ids=["sde", "3", "final"],
)
def test_other_methods_are_refused(other):
    with pytest.raises(ValueError, match="p >= 4"):
        VariableOrder(other)
