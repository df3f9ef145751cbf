"""Mixtures of tables: the coefficients of a sample depend on that sample, and on what its evaluations showed."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import SDE, VPSDE, CosineVPSDE, GaussianMixture
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import ReverseProcess, solve
from solvers.fitted.mixture_of_tables import GateFeatures, GatingNetwork, MixtureOfTables
from solvers.fitted.pf_ode import fitted_table, table_entry, table_of
from solvers.fitted.table import Row, Table

VP = VPSDE()
TIME_SAMPLERS = (1.0, 0.6, 0.3, 0.0)
FIRST = (Row(0.5, (0.4,)), Row(0.6, (0.3, 0.1)), Row(0.1, (0.9, -0.2, 0.1)))
SECOND = (Row(0.5, (0.4,)), Row(0.2, (0.5,)), Row(0.0, (1.0,)))


def flat(n: int, offset: tuple[float, float]) -> GatingNetwork:
    """A gate that does not look."""
    return GatingNetwork.of([0.0] * n, [1.0] * n, [[0.0, 0.0]] * n, offset)


def looking() -> MixtureOfTables:
    """Gates that turn on the size of the denoised sample, the feature after the residuals."""
    gates = [None]
    for residuals, changes in ((1, 0), (2, 1)):
        slopes = [[0.0, 0.0]] * residuals + [[3.0, -3.0]] + [[0.0, 0.0]] * changes
        gates.append(GatingNetwork.of([0.0] * len(slopes), [1.0] * len(slopes), slopes, [0.5, 0.0]))
    return MixtureOfTables((Table(TIME_SAMPLERS, FIRST), Table(TIME_SAMPLERS, SECOND)), tuple(gates))


def mixture(sde: SDE = VP) -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    return GaussianMixture(torch.randn(5, 3, dtype=torch.float64, generator=g), std=0.2, sde=sde)


def initial_noise(n: int = 6) -> torch.Tensor:
    return VP.prior((n, 3), seeds=range(n), dtype=torch.float64)


def test_gates_that_do_not_look_are_one_table_of_mean_numbers():
    # Weights 3/4 and 1/4 of the kinds.
    gates = (None, flat(2, (math.log(3), 0.0)), flat(4, (math.log(3), 0.0)))
    gated = MixtureOfTables((Table(TIME_SAMPLERS, FIRST), Table(TIME_SAMPLERS, SECOND)), gates)
    mean = Table(TIME_SAMPLERS, (FIRST[0], Row(0.5, (0.35, 0.075)), Row(0.075, (0.925, -0.15, 0.075))))
    ode = VP.probability_flow(mixture())
    torch.testing.assert_close(solve(ode, initial_noise(), solver=gated).x, solve(ode, initial_noise(), solver=mean).x)


def test_the_numbers_are_those_of_the_features_by_hand():
    """Two evaluations, with D = t x: every number computed with the formulas of the module."""
    x = torch.tensor([[1.0, 2.0, -2.0], [0.1, 0.0, 0.2]], dtype=torch.float64)
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    alpha, sigma = VP.marginal(t)
    seen = GateFeatures(0).after(x, 0.3 * x, alpha[0], sigma[0])
    later = 0.7 * x + 0.1
    value = 0.5 * later
    seen = seen._replace(number=1).after(later, value, alpha[1], sigma[1])
    rms = lambda v: v.square().mean(1).sqrt()  # noqa: E731
    start = rms(x / (alpha[0] ** 2 + sigma[0] ** 2).sqrt())
    residual = rms((later - alpha[1] * value) / sigma[1]) / start
    torch.testing.assert_close(seen.features, torch.stack([residual.log(), rms(value).log()], 1))
    third = value + 0.25
    seen = seen._replace(number=2).after(later, third, alpha[1], sigma[1])
    expected = [residual.log(), rms(third).log(), torch.full((2,), math.log(0.25), dtype=torch.float64)]
    torch.testing.assert_close(seen.features[:, 1:], torch.stack(expected, 1))


def test_a_gaussian_shows_its_spectrum():
    """The mean of exp(2 u) over samples is that of rho^2 / (c + rho^2) over the variances c."""
    variances = torch.tensor([1.0, 0.3, 0.01, 0.001], dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = VP.marginal(t)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40_000, 4, dtype=torch.float64, generator=g) * (alpha**2 * variances + sigma**2).sqrt()
    posterior = alpha * variances / (alpha**2 * variances + sigma**2) * x
    ones = torch.ones_like(x)
    seen = GateFeatures(0).after(ones * VP.prior_std(), ones, *VP.marginal(torch.ones((), dtype=torch.float64)))
    u = seen._replace(number=1).after(x, posterior, alpha, sigma).features[:, 0]
    rho2 = (sigma / alpha) ** 2
    assert float((2 * u).exp().mean()) == pytest.approx(float((rho2 / (variances + rho2)).mean()), rel=0.02)


def test_every_sample_has_its_own_numbers_alone_or_in_a_batch():
    ode = VP.probability_flow(mixture())
    gated, x1 = looking(), initial_noise(16)
    together = solve(ode, x1, solver=gated).x
    for k in range(16):
        # To rounding: the matrix products of the mixture itself depend on the batch on some processors.
        torch.testing.assert_close(solve(ode, x1[k : k + 1], solver=gated).x[0], together[k], rtol=0, atol=1e-14)
    # They are neither those of one kind nor those of the other.
    for table in gated.tables:
        assert float((solve(ode, x1, solver=table).x - together).abs().max()) > 1e-3


def test_far_features_count_as_four_standard_deviations():
    gate = GatingNetwork.of([1.0], [0.5], [[1.0, -1.0]], [0.0, 0.0])
    far = gate(torch.tensor([[3.0], [1e9], [float("inf")], [-1e9]], dtype=torch.float64))
    expected = torch.softmax(torch.tensor([4.0, -4.0], dtype=torch.float64), 0)
    torch.testing.assert_close(far, torch.stack([expected, expected, expected, expected.flip(0)]))


def test_a_sample_that_is_lost_leaves_the_others_alone():
    model = mixture()

    def broken(x, t):
        out = model.denoise(x, t)
        return torch.where(torch.arange(len(x))[:, None] == 2, torch.nan, out)

    x1 = initial_noise()
    found = solve(ReverseProcess(broken, VP), x1, solver="pf-ode", nfe=8)
    whole = solve(ReverseProcess(model.denoise, VP), x1, solver="pf-ode", nfe=8)
    assert found.status == ["ok", "ok", "non_finite", "ok", "ok", "ok"]
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(found.x[kept], whole.x[kept])


def test_a_point_mass_at_zero_is_no_trouble():
    # D = 0 and x = 0: nothing to take a logarithm of.
    ode = ReverseProcess(lambda x, t: torch.zeros_like(x), VP)
    x1 = torch.stack([torch.zeros(3), torch.ones(3)]).double()
    out = solve(ode, x1, solver="pf-ode", nfe=8)
    assert out.status == ["ok", "ok"] and float(out.x.abs().max()) < 0.1


def test_dtype_is_kept():
    model = mixture()
    ode = ReverseProcess(lambda x, t: model.denoise(x.double(), t).to(x.dtype), VP)
    low = solve(ode, initial_noise().float(), solver="pf-ode", nfe=8).x
    assert low.dtype == torch.float32
    torch.testing.assert_close(
        low.double(), solve(ode, initial_noise(), solver="pf-ode", nfe=8).x, rtol=1e-3, atol=1e-3
    )


def test_a_gated_table_survives_json_and_belongs_to_its_path():
    made = looking().on(VP)
    assert restore_solver(describe_solver(made)) == made
    assert made.evaluations(3) == 3 and made.steps_for(3) == 3
    cosine = CosineVPSDE()
    with pytest.raises(ValueError, match="another process"):
        solve(cosine.probability_flow(mixture(cosine)), initial_noise(), solver=made)
    with pytest.raises(ValueError, match="3 evaluations, not for 4"):
        made.steps_for(4)
    fitted = fitted_table(VP, 8)
    assert fitted is not None
    assert restore_solver(describe_solver(fitted)) == fitted
    again = table_of(VP, table_entry(VP, fitted), fitted.invariance)
    assert again.gates == fitted.gates
    ode = VP.probability_flow(mixture())
    torch.testing.assert_close(
        solve(ode, initial_noise(), solver=again).x, solve(ode, initial_noise(), solver=fitted).x
    )


def test_what_does_not_fit_is_refused():
    tables = (Table(TIME_SAMPLERS, FIRST), Table((1.0, 0.5, 0.3, 0.0), SECOND))
    with pytest.raises(ValueError, match="same times"):
        MixtureOfTables(tables, (None, None, None))
    with pytest.raises(ValueError, match="one gate is needed for each of 3 rows"):
        MixtureOfTables(tables[:1], (None, None))
    with pytest.raises(ValueError, match="None for the first"):
        MixtureOfTables(tables[:1], (flat(2, (0.0, 0.0)), None, None))
