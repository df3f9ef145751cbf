"""Times from the path of the reference solution: the smallest sum there is, and better rows than on usual times."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from sde_diffusion import VPSDE, Gaussian, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.reference_states import ReferencePath
from sde_diffusion.tuning.fit import TableFit
from sde_diffusion.tuning.path_times import PathTimes
from sde_diffusion.tuning.row_fit import fitted_rows
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table


def random_path(n: int = 9) -> PathTimes:
    """Inner products of smooth curves with noise."""
    g = torch.Generator().manual_seed(3)
    times = torch.linspace(1, 0, n, dtype=torch.float64)
    curves = torch.stack([torch.cos(3 * times), torch.sin(5 * times), times**2])
    flat = torch.cat([curves.T, curves.T[:-1].flip(1)]) @ torch.randn(3, 40, generator=g, dtype=torch.float64)
    flat += 0.002 * torch.randn(flat.shape, generator=g, dtype=torch.float64)
    return PathTimes(times, flat @ flat.T / 40, 1 + times)


def test_errors_are_those_of_least_squares() -> None:
    g = torch.Generator().manual_seed(0)
    states, denoised = torch.randn(2, 5, 30, generator=g, dtype=torch.float64)
    flat = torch.cat([states, denoised[:-1]])
    known = PathTimes(torch.linspace(1, 0, 5), flat @ flat.T / 30, torch.tensor([1.0, 2, 3, 4, 5]))
    found = known.errors(torch.tensor([3]), torch.tensor([[2, 0]]))
    columns = torch.stack([states[2], denoised[2], denoised[0]], 1)
    left = states[3] - columns @ torch.linalg.lstsq(columns, states[3][:, None]).solution[:, 0]
    assert float(found) == pytest.approx(4 * float(left.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_no_choice_of_times_has_a_smaller_sum(power: float) -> None:
    known = random_path()
    n, steps = len(known.times), 4

    def total(nodes: tuple[int, ...]) -> float:
        first = known.errors(torch.tensor([nodes[1]]), torch.tensor([[0]]))
        each = zip(nodes, nodes[1:], nodes[2:], strict=False)
        rest = [known.errors(torch.tensor([j]), torch.tensor([[i, p]])) for p, i, j in each]
        return float(sum(e**power for e in [first, *rest]))

    every = [(0, *inner, n - 1) for inner in combinations(range(1, n - 1), steps - 1)]
    best = min(every, key=total)
    assert known._programmed(steps, power) == list(best)
    assert total(best) < 0.8 * sorted(map(total, every))[len(every) // 2]


def test_moves_of_single_times_lower_the_sum_of_whole_rows() -> None:
    known = random_path(20)
    start = known._programmed(6, 2.0)
    moved = known._moved(start, 2.0)
    assert known._sum(moved, 2.0) < known._sum(start, 2.0)
    assert moved == sorted(set(moved)) and (moved[0], moved[-1]) == (0, 19)


def test_as_many_steps_as_times_take_all_of_them() -> None:
    known = random_path(5)
    assert known.best(4)[1:-1] == tuple(known.times[1:-1].tolist())


def test_rows_on_these_times_are_nearer_to_the_flow_than_on_usual_ones() -> None:
    g = torch.Generator().manual_seed(0)
    model = GaussianMixture(torch.randn(6, 3, dtype=torch.float64, generator=g), std=0.3, sde=VPSDE())
    x1 = model.sde.prior((64, 3), seeds=range(64), dtype=torch.float64)
    path = ReferencePath(model, x1, 64)
    x0, _ = converged(model, x1, steps=64, on_state=path.keep)
    fit = TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, x0)
    other = model.sde.prior((64, 3), seeds=range(500, 564), dtype=torch.float64)
    truth, _ = converged(model, other, steps=128)
    own = torch.tensor(PathTimes.of(path, model.sde).best(6, 2.0), dtype=torch.float64)
    errors = []
    for grid in (own, "karras", "quadratic", "log-snr"):
        base = compile_table(SOLVERS["dpm++2m"], model.sde, 6, grid)
        made, _ = fitted_rows(fit, base, path.at(base.times))
        out = solve(model.sde.probability_flow(model), other, solver=made, nfe=6).x
        errors.append(float(rms(out - truth).mean()))
    assert errors[0] < min(errors[1:]) and errors[0] < 0.6 * sorted(errors[1:])[1], errors


def test_times_are_apart_where_every_step_is_exact() -> None:
    """Gaussian data of one variance: no times are better than others, and those at the end are nearly equal."""
    model = Gaussian(torch.zeros(2), torch.full((2,), 0.04), sde=VPSDE())
    x1 = model.sde.prior((32, 2), seeds=range(32), dtype=torch.float64)
    path = ReferencePath(model, x1, 64)
    converged(model, x1, steps=64, on_state=path.keep)
    times = torch.tensor(PathTimes.of(path, model.sde).best(8, 2.0), dtype=torch.float64)
    alpha, sigma = model.sde.marginal(times[1:-1])
    assert bool((sigma / alpha > 1e-4).all()) and bool((times.diff() < -1e-7).all())
