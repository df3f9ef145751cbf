"""The fit of the tables of pf-ode agrees with the solver that runs the file, and its models are exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.design import Few, hats, rho_of, tau_of
from benchmarks.exact_family import DIMENSIONS, KINDS, STARTS, Task, flow, model_set, task
from sde_diffusion import EDM, Gaussian, GaussianMixture
from solvers import solve
from solvers.exponential.adams import ExponentialAdams
from solvers.fitted.fitted_tables import table_of


@pytest.mark.parametrize("start", [3.0, 40.0, math.inf])
def test_an_entry_gives_the_fitted_samples(start: float) -> None:
    models = model_set(0, 1, ("pixels", "values"))
    models = replace(models, count=torch.ones_like(models.count))
    few = Few(6, ExponentialAdams(2, variable="time", corrector=True), 0.1, 2.5)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (few.kappa, few.q_dims, few.offset):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
        few.width.mul_(2)
    eps = models.noises(4, 0)
    with torch.no_grad():
        expected = few(models.to(torch.float32), eps.float(), torch.full((2,), tau_of(start))).double()
    own = Task(models, start, eps, expected)
    table = table_of(own.path, few.entry({}), DIMENSIONS)
    assert float(own.run(table, 6).max()) < 1e-3  # float32, and numbers of five decimals
    assert float(models.rms(expected - few_without_gates(few, models, eps, start)).min()) > 1e-3


def few_without_gates(few: Few, models, eps, start: float) -> torch.Tensor:
    with torch.no_grad():
        few.slopes.zero_()
        return few(models.to(torch.float32), eps.float(), torch.full((2,), tau_of(start))).double()


def test_shares_of_knots_sum_to_one_and_are_one_at_a_knot() -> None:
    tau = torch.tensor([tau_of(s) for s in (1.0, 3.0, 14.6, 50.0, 100.0, math.inf)])
    share = hats(tau)
    torch.testing.assert_close(share.sum(1), torch.ones(6))
    torch.testing.assert_close(share[[1, 2, 4, 5]], torch.eye(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        rho_of(tau[1:5].double()), torch.tensor([3.0, 14.6, 50.0, 100.0]).double(), rtol=1e-4, atol=0
    )


def test_the_models_have_the_denoisers_of_the_package() -> None:
    models = model_set(3, 1, ("cloud", "spectrum"))
    z = models.noises(5, 1)
    for i in range(2):
        kept = models.log_weight[i].isfinite()
        sde, rho = EDM(), torch.tensor(0.7, dtype=torch.float64)
        used = models.count[i] > 0
        ours = models.denoise(z, rho)[i][:, used]
        if i == 0:
            std = float(models.variance[i, 0, 0]) ** 0.5
            weights = models.log_weight[i, kept].exp()
            exact = GaussianMixture(models.mean[i, kept][:, used], std, weights, sde=sde)
        else:
            exact = Gaussian(models.mean[i, 0, used], models.variance[i, 0, used], sde=sde)
        theirs = exact.denoise(z[i][:, used], (rho / 80).expand(5))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("start", [3.0, math.inf])
def test_references_are_where_the_flow_ends(start: float, tmp_path) -> None:
    models = model_set(1, 1, ("spectrum", "cloud"))
    one = task(models, start, 4, 0, tmp_path)
    again = flow(models, one.eps * min(start, 1e5), start, steps=600)
    assert float(models.rms(again - one.ends).max()) < 1e-5
    assert torch.equal(task(models, start, 4, 0, tmp_path).ends, one.ends)


def test_every_kind_is_finite_from_every_start() -> None:
    models = model_set(2, 1)
    assert set(models.names) > set(KINDS)
    for rho in (*STARTS[:-1], 1e5, 1e-4):
        level = torch.tensor(rho, dtype=torch.float64)
        assert bool(models.denoise(models.noises(2, 0) * rho, level).isfinite().all())


def test_a_table_in_the_loop_of_solve_is_deterministic() -> None:
    sde = EDM()
    model = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.1, sde=sde)
    x1 = sde.prior((3, 1), seeds=range(3), dtype=torch.float64)
    first, second = (solve(sde.probability_flow(model), x1, solver="pf-ode", nfe=8).x for _ in range(2))
    assert torch.equal(first, second)
