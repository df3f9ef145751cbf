from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import SOLVERS

MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.0, -1.0]]).double()


def mixture(sde: SDE, shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    size = math.prod(shape)
    means = MEANS if size == 2 else torch.randn(3, size, generator=torch.Generator().manual_seed(4)).double() / 2
    return GaussianMixture(means.reshape(3, *shape), 0.3, torch.tensor([1.0, 2.0, 3.0]), sde=sde)


def exact(model: GaussianMixture, x: Tensor, t: float) -> Tensor:
    """log-density at x of x_0 + rho eps: that of x_t in units of the data."""
    alpha = float(model.sde.marginal(t)[0])
    return model.log_prob(alpha * x, torch.full((len(x),), t).double()) + x[0].numel() * math.log(alpha)


@pytest.mark.parametrize(
    "sde", [CosineVPSDE(), Flow(), VPSDE(), VESDE(), EDM(), SubVPSDE()], ids=lambda s: type(s).__name__
)
def test_mixture_in_2d(sde: SDE) -> None:
    model = mixture(sde)
    x = torch.cat([model.draw(4), torch.tensor([[3.0, 3.0]]).double()])  # and one far from all data
    found = log_likelihood(model, x, tolerance=1e-7, t_min=1e-5)
    assert (found.nats - exact(model, x, 1e-5)).abs().max() < 2e-5
    at_data = model.log_prob(x, torch.zeros(5).double())
    assert (found.nats - at_data)[:4].abs().max() < 1e-4  # the far one is 1e-5 of its 58 nats off: rho^2 is not 0
    assert found.status == ["ok"] * 5 and not found.standard_error.any()


def test_mixture_of_images_with_the_prior_of_sampling() -> None:
    model = mixture(CosineVPSDE(), (2, 2, 2))  # alpha(1) = 0: sampling starts from x_1 itself
    x = model.draw(3)
    assert (log_likelihood(model, x, tolerance=1e-6).nats - exact(model, x, 1e-5)).abs().max() < 1e-4


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda s: type(s).__name__)
def test_a_gaussian_is_the_prior_of_sampling_pushed_through_its_linear_flow(sde: SDE) -> None:
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 0.2]]).double()
    mean = torch.tensor([0.5, -1.0, 0.3]).double()
    model, x = Gaussian(mean, covariance, sde=sde), torch.tensor([[0.4, -0.5, 0.1], [2.0, 0.0, 0.0]]).double()
    prior = torch.distributions.Normal(0, sde.prior_std())
    found = log_likelihood(model, x, tolerance=1e-8, t_min=1e-5, prior=lambda z: prior.log_prob(z).sum(1))
    # x_1 = A x + b with A and b from the closed-form flow: log N(x_1; 0, prior_std^2) + log |det A|.
    alpha = float(sde.marginal(1e-5)[0])
    flow = model.flow(alpha * torch.cat([x, torch.zeros(1, 3).double(), torch.eye(3).double()]), 1e-5, 1.0)
    log_det = torch.linalg.slogdet(flow[3:] - flow[2])[1]
    assert (found.nats - (prior.log_prob(flow[:2]).sum(1) + log_det)).abs().max() < 1e-6
    assert torch.allclose(found.code, flow[:2], atol=1e-6)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_within_3_of_its_standard_errors(probe: str) -> None:
    root = torch.randn(10, 10, generator=torch.Generator().manual_seed(6)).double() / 4
    model = Gaussian(torch.zeros(10), root @ root.T + 0.05 * torch.eye(10), sde=Flow())
    x = model.draw(1)
    options = {"tolerance": 1e-2, "solver": "rk23", "t_min": 1e-3}
    truth = log_likelihood(model, x, **options).nats
    found = log_likelihood(model, x.repeat(1000, 1), trace="hutchinson", probe=probe, n_probes=64, **options)
    score = (found.nats - truth) / found.standard_error
    assert int((score.abs() < 3).sum()) >= 990
    assert score.std() == pytest.approx(1, abs=0.15)
    assert found.trace == f"hutchinson, 64 {probe}"


@pytest.mark.parametrize("n_probes", [2, 4])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_intervals_of_few_probes_hold_the_exact_nats(probe: str, n_probes: int) -> None:
    root = torch.randn(10, 10, generator=torch.Generator().manual_seed(6)).double() / 4
    model = Gaussian(torch.zeros(10), root @ root.T + 0.05 * torch.eye(10), sde=Flow())
    x = model.draw(1)
    options = {"tolerance": 1e-2, "solver": "rk23", "t_min": 1e-3}
    truth = log_likelihood(model, x, **options)
    assert torch.equal(truth.interval[0], truth.nats) and truth.degrees_of_freedom is None
    found = log_likelihood(model, x.repeat(600, 1), trace="hutchinson", probe=probe, n_probes=n_probes, **options)
    low, high = found.interval
    inside = float(((low <= truth.nats) & (truth.nats <= high)).double().mean())
    # Standard error 0.009; estimates by Gaussian probes are skew. Normal quantiles hold 0.7 with two probes.
    assert 0.9 < inside < 0.98
    assert found.degrees_of_freedom == n_probes - 1 and f"{n_probes - 1} degree" in found.note


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_where_nothing_moves_no_probe_is_in_error(probe: str) -> None:
    """For unit Gaussian data y is constant, and so is its volume, whatever the probe."""
    model = Gaussian(torch.zeros(4), torch.ones(4), sde=Flow())
    x = model.draw(3)
    found = log_likelihood(model, x, trace="hutchinson", probe=probe, n_probes=4, tolerance=1e-4)
    assert float(found.standard_error.max()) < 1e-9
    assert torch.allclose(found.nats, torch.distributions.Normal(0, 1).log_prob(x).sum(1), atol=1e-8)


def test_one_probe_has_no_standard_error() -> None:
    model = mixture(Flow())
    found = log_likelihood(model, model.draw(2), trace="hutchinson", tolerance=1e-2)
    assert bool(found.standard_error.isnan().all()) and "two or more" in found.note
    assert (found.divergences == found.nfe).all()


def test_a_sample_depends_on_its_seed_and_not_on_its_batch() -> None:
    model = mixture(VPSDE(), (8,))
    x, options = model.draw(5), {"trace": "hutchinson", "n_probes": 2, "tolerance": 1e-3}
    together = log_likelihood(model, x, seeds=range(5), **options)
    alone = log_likelihood(model, x[3:4], seeds=[3], **options)
    assert torch.allclose(together.nats[3:4], alone.nats, rtol=0, atol=1e-11) and together.nfe[3] == alone.nfe[0]
    assert log_likelihood(model, x[3:4], seeds=[4], **options).nats != alone.nats


def test_evaluations_are_counted() -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            calls.append(len(x))
            return x / (1 + t.reshape(-1, 1))

    model = ScoreModel(Counted(), Flow(), "data")
    found = log_likelihood(model, torch.rand(3, 4).double(), tolerance=1e-4)
    assert int(found.nfe.sum()) == sum(calls) and torch.equal(found.divergences, 4 * found.nfe)
    calls.clear()
    fixed = log_likelihood(model, torch.rand(3, 4).double(), solver="heun", nfe=20)
    assert fixed.nfe.tolist() == [20] * 3 and sum(calls) == 60


def test_a_fixed_step_solver_converges_at_its_order() -> None:
    model = Gaussian(torch.tensor([0.5, 0.0]), torch.tensor([0.4, 1.5]), sde=Flow())
    x = model.draw(4)
    truth = log_likelihood(model, x, tolerance=1e-7).nats
    errors = [(log_likelihood(model, x, solver="heun", steps=n).nats - truth).abs().max() for n in (40, 80, 160)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.2)


def test_truncation_is_the_difference_of_two_runs() -> None:
    model = mixture(VPSDE())
    x = model.draw(3)

    def prior(z: Tensor) -> Tensor:
        return model.log_prob(z, torch.ones(3).double())

    found = log_likelihood(model, x, tolerance=1e-7, t_min=0.01, other_t_min=0.1, prior=prior)
    expected = exact(model, x, 0.1) - exact(model, x, 0.01)
    assert found.truncation is not None and float(expected.abs().max()) > 1e-2
    assert torch.allclose(found.truncation, expected, atol=1e-5)
    assert torch.allclose(found.nats, exact(model, x, 0.01), atol=1e-5)
    assert found.rho_min == pytest.approx(math.exp(-float(VPSDE().half_log_snr(0.01)))) and found.t_min == 0.01


class Small(nn.Module):
    """A smooth network of 2 + 2 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.8, 0.3]).double())
        self.b = nn.Parameter(torch.tensor([0.5, -0.2]).double())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.a * x.flip(1) + self.b) * (1 - t[:, None])


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gradients_by_data_and_by_parameters(trace: str) -> None:
    model = ScoreModel(Small(), Flow(), "data")
    x = torch.tensor([[0.5, -0.3]]).double().requires_grad_()

    def nats(x: Tensor, gradients: bool | None = None) -> Tensor:
        return log_likelihood(model, x, trace=trace, solver="heun", steps=8, t_min=0.2, gradients=gradients).nats.sum()

    found = torch.autograd.grad(nats(x), [x, model.network.a, model.network.b])
    by_parameters = torch.autograd.grad(nats(x.detach(), True), [model.network.a])[0]
    assert torch.allclose(by_parameters, found[1])
    assert not nats(x.detach()).requires_grad
    step = 1e-5
    with torch.no_grad():
        for gradient, value in zip(found, (x, model.network.a, model.network.b), strict=True):
            for k in range(2):
                ends = []
                for sign in (1, -1):
                    value.view(-1)[k] += sign * step
                    ends.append(nats(x.detach()))
                    value.view(-1)[k] -= sign * step
                assert float(gradient.flatten()[k]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_the_gradient_by_data_is_the_score() -> None:
    model = mixture(Flow())
    x = model.draw(3).requires_grad_()
    (found,) = torch.autograd.grad(log_likelihood(model, x, tolerance=1e-6).nats.sum(), x)
    with torch.no_grad():
        score = model.score(x * (1 - 1e-5), torch.full((3,), 1e-5).double())
    assert torch.allclose(found, score, atol=1e-3) and float(score.abs().min()) > 0.1


def test_a_float32_network_is_called_in_float32() -> None:
    model = mixture(Flow())
    layer = nn.Linear(2, 2)

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return layer(x)

    single = ScoreModel(nn.Module(), Flow(), "data")
    single.network.layer = layer  # type: ignore[assignment]
    single.network.forward = network  # type: ignore[method-assign]
    double = ScoreModel(nn.Linear(2, 2).double(), Flow(), "data")
    double.network.load_state_dict(layer.state_dict())
    double.network.forward = lambda x, t: nn.functional.linear(x, double.network.weight, double.network.bias)
    x = model.draw(2)
    a, b = (log_likelihood(m, x, tolerance=1e-5, t_min=1e-3).nats for m in (single, double))
    assert a.dtype == torch.float64 and torch.allclose(a, b, atol=1e-2) and not torch.equal(a, b)


def test_non_finite_values_raise() -> None:
    def bad(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((x[:, :1] > 0) & (t[:, None] > 0.3), torch.nan, x)

    model = ScoreModel(bad, Flow(), "data")
    with pytest.warns(UserWarning, match=r"1 of 2 likelihoods are NaN.*non_finite"):
        found = log_likelihood(model, torch.tensor([[1.0], [-1.0]]).double(), tolerance=1e-3)
    assert found.nats.isnan().tolist() == [True, False] and found.status == ["non_finite", "ok"]


def test_a_cap_is_kept() -> None:
    model = mixture(Flow())
    with pytest.warns(UserWarning, match="nfe_cap"):
        found = log_likelihood(model, model.draw(2), nfe=20)
    assert int(found.nfe.max()) <= 20 and bool(found.nats.isnan().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "exat"}, "exact"),
        ({"probe": "gausian", "trace": "hutchinson"}, "gaussian"),
        ({"t_min": 0.0}, "at 0 there is no score"),
        ({"other_t_min": 1.0}, "in \\(0, 1\\)"),
        ({"n_probes": 0, "trace": "hutchinson"}, "at least 1; got 0"),
        ({"tolerance": 0.0}, "between 0 and 1"),
        ({"solver": "heun"}, "steps=100"),
        ({"solver": "ddpm", "steps": 10}, "draws noise"),
        ({"solver": "dpm++2m", "steps": 10}, "Equation"),
        ({"seeds": [1]}, "expected 2 of them"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    model = mixture(Flow())
    with pytest.raises(ValueError, match=message):
        log_likelihood(model, model.draw(2), **options)


def test_bad_data_are_refused() -> None:
    model = mixture(Flow())
    with pytest.raises(ValueError, match=r"\(B, 2\) with B >= 1; got \(4, 3\)"):
        log_likelihood(model, torch.zeros(4, 3))
    with pytest.raises(TypeError, match="int64"):
        log_likelihood(model, torch.zeros(4, 2).long())
    with pytest.raises(ValueError, match="1 of 2 values of x are not finite"):
        log_likelihood(model, torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"1025 values.*hutchinson"):
        log_likelihood(ScoreModel(lambda x, t: x, Flow(), "data"), torch.zeros(1, 1025))
    with pytest.raises(ValueError, match=r"alpha\(1\) = 0"):
        log_likelihood(ScoreModel(lambda x, t: x, Flow(), "noise"), torch.zeros(1, 2))


def test_a_solver_of_ones_own_keeps_its_tolerance() -> None:
    model = mixture(Flow())
    x = model.draw(2)
    fine, coarse = (replace(SOLVERS["rk45"], rtol=tol, atol=tol) for tol in (1e-4, 1e-2))  # type: ignore[call-arg]
    assert torch.equal(log_likelihood(model, x, solver=fine).nats, log_likelihood(model, x, tolerance=1e-4).nats)
    assert (log_likelihood(model, x, solver=coarse).nfe < log_likelihood(model, x, solver=fine).nfe).all()


@pytest.mark.parametrize("sde", [VPSDE(), Flow()], ids=lambda sde: type(sde).__name__)
def test_exact_models_are_right_with_nothing_else_said(sde) -> None:
    """Their own density at t = 1 ends the flow: that of ``sde.prior`` would be off by 1e-3 here."""
    means = torch.tensor([[-1.0, 0.3], [0.8, 1.1], [0.2, -0.9]], dtype=torch.float64)
    mixture = GaussianMixture(means, std=0.1, sde=sde)
    gaussian = Gaussian(means[0], torch.tensor([[0.5, 0.2], [0.2, 0.3]]), sde=sde)
    for model in (mixture, gaussian):
        x = model.draw(6).double()
        exact = model.log_prob(x, torch.zeros(6, dtype=torch.float64))
        found = log_likelihood(model, x, trace="exact", tolerance=1e-6)
        assert float((found.nats - exact).abs().max()) < 1e-4
