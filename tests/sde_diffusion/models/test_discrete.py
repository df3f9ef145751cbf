"""The discrete process and its chain against the formulas of the papers, written with cumulative products."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.guidance import Guided
from sde_diffusion.models.discrete import DiscreteModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.ancestral_chain import ancestral
from sde_diffusion.sde import DDPM, VPSDE, make_sde
from sde_diffusion.sde.step_posterior import first_variance, learned_log_variance, posterior
from sde_diffusion.storage.checkpoint import describe_model, rebuild
from sde_diffusion.training.losses import HYBRID, denoising_loss
from sde_diffusion.training.time_sampling import stratified
from sde_diffusion.training.vlb import variational_bound
from solvers import solve
from solvers.noise import INDEPENDENT, standard_normal

T = 1000
LINEAR = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
ABAR = torch.cumprod(1 - LINEAR, 0)  # ABAR[k] belongs to the timestep k = i - 1


class Table(nn.Module):
    """A network that knows integer timesteps alone: an embedding table, as DDPM networks may have."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(T, 6, generator=generator, dtype=torch.float64))
        self.mix = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 6

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        assert k.dtype == torch.int64
        return torch.tanh((x + self.embedding(k).to(x.dtype)) @ self.mix.to(x.dtype)) + 0.9 * x


def closed_form_ddim(network: nn.Module, x: Tensor, timesteps: list[int]) -> Tensor:
    """Song, Meng & Ermon 2021, eq. 12 with sigma = 0: alpha-bar of 'before the first step' is 1."""
    for k, before in zip(timesteps, [*timesteps[1:], -1], strict=True):
        abar, lower = ABAR[k].item(), (ABAR[before].item() if before >= 0 else 1.0)
        eps = network(x, torch.full((len(x),), k))
        x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        x = math.sqrt(lower) * x0 + math.sqrt(1 - lower) * eps
    return x


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_ddim_on_the_wrapped_network_is_the_closed_form(steps: int) -> None:
    network, sde = Table(), DDPM()
    x1 = sde.prior((5, 6), seeds=range(5), dtype=torch.float64)
    times = sde.grid(steps)
    timesteps = [round(float(t) * T) - 1 for t in times[:-1]]
    ours = solve(sde.probability_flow(DiscreteModel(network, sde)), x1, solver="ddim", grid=times)
    assert ours.nfe.tolist() == [steps] * 5
    torch.testing.assert_close(ours.x, closed_form_ddim(network, x1, timesteps), rtol=1e-9, atol=1e-9)


def test_sampling_starts_from_a_standard_normal() -> None:
    seeds = range(3)
    assert torch.equal(DDPM().prior((3, 4), seeds=seeds), standard_normal(seeds, (4,), 1))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_chain_is_algorithm_2_of_ddpm(variance: str) -> None:
    network, sde = Table(), DDPM()
    x = start = sde.prior((4, 6), dtype=torch.float64)
    for number, k in enumerate(reversed(range(T))):
        beta, abar = LINEAR[k], ABAR[k]
        eps = network(x, torch.full((4,), k))
        x = (x - beta / (1 - abar).sqrt() * eps) / (1 - beta).sqrt()
        if k > 0:
            var = beta if variance == "large" else beta * (1 - ABAR[k - 1]) / (1 - abar)
            x = x + var.sqrt() * standard_normal(range(4), (6,), INDEPENDENT, number).double()
    ours = ancestral(DiscreteModel(network, sde), start, variance=variance)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


def test_marginals_are_the_cumulative_products() -> None:
    i = torch.arange(1, T + 1, dtype=torch.float64)
    alpha, sigma = DDPM().marginal(i / T)
    torch.testing.assert_close(alpha**2, ABAR, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma**2, 1 - ABAR, rtol=1e-11, atol=0)
    given = DDPM(betas=(0.1, 0.5, 0.2))
    torch.testing.assert_close(
        given.marginal(torch.tensor([1.0, 2.0, 3.0]) / 3)[0] ** 2, torch.tensor([0.9, 0.45, 0.36]).double()
    )


def test_between_steps_it_is_a_vp_process_of_constant_rate() -> None:
    sde = DDPM()
    inside = (torch.arange(T, dtype=torch.float64) + torch.linspace(0.05, 0.95, T, dtype=torch.float64)) / T
    torch.testing.assert_close(sde.g(inside) ** 2, -T * torch.log1p(-LINEAR), rtol=1e-8, atol=0)
    torch.testing.assert_close(2 * sde.f(inside), T * torch.log1p(-LINEAR), rtol=1e-10, atol=0)


def test_cosine_betas_give_the_cosine_path_until_they_are_cut() -> None:
    t = torch.arange(1, 998, dtype=torch.float64) / T
    alpha = torch.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)
    torch.testing.assert_close(DDPM(schedule="cosine").marginal(t)[0], alpha, rtol=1e-10, atol=1e-13)
    assert 0 < float(DDPM(schedule="cosine").marginal(1.0)[0]) < 1e-3


def test_training_times_are_the_steps_and_all_of_them_alike() -> None:
    sde = DDPM()
    i = sde.to_step(stratified(3 * T, 1e-9, torch.Generator().manual_seed(0))) * T
    assert torch.equal(i.round().long().bincount(minlength=T + 1)[1:], torch.full((T,), 3))
    assert float((i - i.round()).abs().max()) < 1e-9
    steps = torch.arange(1, T + 1, dtype=torch.float64) / T
    assert torch.equal(sde.to_step(steps), steps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_step_reaches_the_network_as_its_index(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []
    model = DiscreteModel(lambda x, k: seen.append(k) or x)
    i = torch.arange(1, T + 1, dtype=torch.float64)
    model.output(torch.zeros(T, 1, dtype=dtype), i / T)
    assert torch.equal(seen[0], torch.arange(T))
    fraction = DiscreteModel(lambda x, k: k[:, None].to(x.dtype), rounded=False)
    assert float(fraction.output(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0.0125]))) == pytest.approx(
        11.5, abs=1e-6
    )


def test_a_description_with_its_own_betas_rebuilds_the_process() -> None:
    import json

    sde = DDPM(betas=torch.tensor([0.25, 0.5]))
    model = ScoreModel(build("mlp", shape=(2,), width=8), sde, shape=(2,))
    record = describe_model(model)
    assert json.loads(json.dumps(record)) == record
    assert rebuild(record).sde == sde and hash(rebuild(record).sde) == hash(sde)
    assert make_sde("ddpm", schedule="cosine") != make_sde("ddpm")


GAUSSIAN_STD = 0.7


def exact(sde: DDPM, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[x_0 | x_t], Var[x_0 | x_t] and Var[x_s | x_t] for data N(0, GAUSSIAN_STD^2), by conditioning Gaussians."""
    (at, st), (as_, ss) = sde.marginal(t), sde.marginal(s)
    v = GAUSSIAN_STD**2
    xt, xs = at**2 * v + st**2, as_**2 * v + ss**2
    cov = at / as_ * xs  # x_t = (alpha_t / alpha_s) x_s + noise
    return at * v / xt * x, v - (at * v) ** 2 / xt, xs - cov**2 / xt


def test_the_best_learned_variance_is_that_of_the_reverse_step() -> None:
    """The bound is least where Sigma = Var[x_s | x_t]; x_0 = D +- std has the moments of the posterior."""
    sde = DDPM(schedule="cosine", steps=20)
    t = torch.arange(2, 21, dtype=torch.float64) / 20
    s = t - 1 / 20
    x = torch.ones_like(t)
    denoised, var, best = exact(sde, x, t, s)
    q = posterior(sde, t, s)
    assert bool(((best > q.small) & (best < q.large)).all())
    v = (best / q.small).log() / (q.large / q.small).log()
    output = (2 * v - 1)[:, None].requires_grad_()
    learned = learned_log_variance(q, first_variance(sde), output.detach()).exp()[:, 0]
    torch.testing.assert_close(learned, best, rtol=1e-12, atol=0)

    def bound(output: Tensor) -> Tensor:
        sides = [denoised + var.sqrt(), denoised - var.sqrt()]
        return sum(variational_bound(sde, x0[:, None], x[:, None], t, denoised[:, None], output) for x0 in sides)

    here = bound(output)
    slope = torch.autograd.grad(here.sum(), output)[0]
    assert float(slope.abs().max()) < 1e-9
    assert bool((bound(output + 0.1) > here).all()) and bool((bound(output - 0.1) > here).all())


def test_the_bound_is_the_kl_of_two_gaussians_and_a_density_at_the_first_step() -> None:
    sde = DDPM()
    generator = torch.Generator().manual_seed(0)
    x0, eps, denoised, output = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([1000.0, 400.0, 1.0], dtype=torch.float64) / T
    x = sde.perturb(x0, t, eps)
    bound = variational_bound(sde, x0, x, t, denoised, output)
    for row, k in enumerate([999, 399, 0]):
        beta, abar, lower = LINEAR[k], ABAR[k], ABAR[k - 1] if k else torch.tensor(1.0)
        small = beta * (1 - lower) / (1 - abar) if k else LINEAR[1] * LINEAR[0] / (1 - ABAR[1])
        v = (output[row] + 1) / 2
        std = torch.exp((v * beta.log() + (1 - v) * small.log()) / 2)

        def mean(clean: Tensor, row: int = row, k: int = k, lower: Tensor = lower) -> Tensor:
            return (
                lower.sqrt() * LINEAR[k] / (1 - ABAR[k]) * clean
                + (1 - LINEAR[k]).sqrt() * (1 - lower) / (1 - ABAR[k]) * x[row]
            )

        model = torch.distributions.Normal(mean(denoised[row]), std)
        if k:
            truth = torch.distributions.Normal(mean(x0[row]), small.sqrt())
            expected = torch.distributions.kl_divergence(truth, model).mean()
        else:
            expected = -model.log_prob(x0[row]).mean()
        assert float(bound[row]) == pytest.approx(float(expected), rel=1e-9)


def test_the_hybrid_loss_teaches_the_variance_without_touching_the_mean() -> None:
    sde = DDPM()
    both = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x0, eps = both
    t = torch.tensor([3, 100, 500, 1000], dtype=torch.float64) / T
    out = torch.full((4, 12), 0.3, dtype=torch.float64, requires_grad=True)
    model = ScoreModel(lambda x, t: out, sde)
    plain = ScoreModel(lambda x, t: out[:, :6], sde)
    loss = denoising_loss(model, x0, t, eps)
    simple = denoising_loss(plain, x0, t, eps)
    x = sde.perturb(x0, t, eps)
    bound = variational_bound(sde, x0, x, t, plain.denoise(x, t), out[:, 6:])
    torch.testing.assert_close(loss, simple + HYBRID * bound.float())
    gradient = torch.autograd.grad(loss.sum(), out)[0]
    of_simple = torch.autograd.grad(simple.sum(), out)[0]
    torch.testing.assert_close(gradient[:, :6], of_simple[:, :6])
    assert bool((gradient[:, 6:] != 0).all())


def test_few_steps_keep_the_variance_of_gaussian_data_only_with_the_learned_one() -> None:
    sde, n = DDPM(), 40_000
    times = sde.grid(5)
    following = dict(zip(times.tolist(), times[1:].tolist(), strict=False))

    def network(x: Tensor, t: Tensor) -> Tensor:
        at = t[0].double()
        s = torch.tensor(following[min(following, key=lambda known: abs(known - float(at)))], dtype=torch.float64)
        denoised, _, var = exact(sde, x, at, s)
        alpha, sigma = sde.marginal(at)
        q = posterior(sde, at, s)
        v = (var / q.small).log() / (q.large / q.small).log() if float(s) > 0 else torch.zeros(())
        return torch.cat([(x - alpha * denoised) / sigma, torch.full_like(x, float(2 * v - 1))], dim=1)

    model = ScoreModel(network, sde)
    x1 = sde.prior((n, 1), dtype=torch.float64)
    alpha, sigma = (float(c) for c in sde.marginal(times[-2]))
    v = GAUSSIAN_STD**2
    expected = alpha * v / math.sqrt(alpha**2 * v + sigma**2)  # of D(x_t) at the last time before 0
    std = {kind: float(ancestral(model, x1, steps=5, variance=kind).std()) for kind in ("learned", "small", "large")}
    error = expected / math.sqrt(2 * n)
    assert abs(std["learned"] - expected) < 4 * error
    assert std["small"] < expected - 10 * error
    assert std["large"] > expected + 10 * error


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DDPM(schedule="linar"), ValueError, "did you mean 'linear'"),
        (lambda: DDPM(steps=0), ValueError, "at least 1"),
        (lambda: DDPM(steps=20), ValueError, r"beta_20 of 20 is 1: the linear schedule needs more steps"),
        (lambda: DDPM(betas=(1.0, 0.5)), ValueError, "beta_1 of 2 is 1"),
        (lambda: DDPM(betas=()), ValueError, "at least 1 and at most 1,000,000; got 0"),
        (lambda: DDPM().grid(1001), ValueError, "1 to 1000"),
        (lambda: DiscreteModel(Table(), VPSDE()), TypeError, "got VPSDE"),
        (lambda: DiscreteModel(Table(), predicts="edm"), ValueError, "c_noise"),
        (lambda: ancestral(ScoreModel(Table(), VPSDE()), torch.zeros(1, 6)), ValueError, "on VPSDE"),
        (
            lambda: ancestral(DiscreteModel(Table()), torch.zeros(1, 6).double(), variance="learned"),
            ValueError,
            "learned no variance",
        ),
        (lambda: ancestral(DiscreteModel(Table()), torch.zeros(1, 6), variance="larg"), ValueError, "'large'"),
        (
            lambda: denoising_loss(
                ScoreModel(lambda x, t: torch.cat([x, x], 1), VPSDE()),
                torch.zeros(1, 2),
                torch.tensor([0.5]),
                torch.zeros(1, 2),
            ),
            ValueError,
            "learned variance belongs.*DDPM",
        ),
    ],
)
def test_bad_input_is_refused(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("scale", [None, 2.0])
def test_the_chain_counts_its_evaluations(scale: float | None) -> None:
    plain = ScoreModel(lambda x, t, label=None: 0 * x, DDPM(), "noise")
    model = plain if scale is None else Guided(plain, scale, null={"label": 0})
    condition = {} if scale is None else {"label": torch.tensor([1, 2])}
    seen: list[list[int]] = []
    ancestral(model, torch.ones(2, 3), steps=7, on_step=lambda step: seen.append(step.nfe.tolist()), **condition)
    assert seen == [[model.cost * k] * 2 for k in range(1, 8)]
