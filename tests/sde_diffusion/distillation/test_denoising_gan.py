"""The denoising diffusion GAN: the law of its steps, its training, storage and sampling."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion import VPSDE, Gaussian, GaussianMixture, ScoreModel, distill, load, sample
from sde_diffusion.cli import app
from sde_diffusion.distillation.denoising_gan import DenoisingGANLoss, draw_earlier, generator_for, step_times
from sde_diffusion.networks import build
from solvers import solve
from solvers.diffusion.denoising_gan import DenoisingGANSampler
from solvers.errors import InputError
from solvers.exact_step import ancestral_step

SDE = VPSDE()


def plain(width: int = 8) -> ScoreModel:
    return ScoreModel(build("mlp", shape=(2,), width=width, depth=2, embedding="log"), SDE, shape=(2,))


def points(n: int = 20_000) -> torch.Tensor:
    """Two narrow modes, at -1 and 1 on the first axis."""
    g = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (n, 1), generator=g).float() * 2 - 1
    return torch.cat([sign, torch.zeros(n, 1)], 1) + 0.1 * torch.randn(n, 2, generator=g)


def test_the_step_of_training_is_that_of_sampling() -> None:
    g = torch.Generator().manual_seed(0)
    x0, xt, noise = (torch.randn(6, 2, generator=g, dtype=torch.float64) for _ in range(3))
    problem = SDE.reverse(Gaussian(torch.zeros(2), torch.ones(2), sde=SDE))
    for t, s in ((1.0, 0.75), (0.5, 0.25)):
        t, s = (torch.tensor(u, dtype=torch.float64) for u in (t, s))
        whole = draw_earlier(SDE, x0, xt, t.expand(6), s.expand(6), noise)
        torch.testing.assert_close(whole, ancestral_step(problem, xt, x0, t, s, noise, eta=1.0), rtol=1e-12, atol=1e-12)


class PosteriorDraw(ScoreModel):
    """A perfect generator of N(0, I): x_0 ~ N(alpha x_t, sigma^2 I), with z as its noise."""

    def denoise(self, x, t, context=None, **condition):
        alpha, sigma = (c.reshape(-1, 1) for c in self.sde.marginal(t))
        return alpha * x + sigma * context


def test_a_perfect_generator_samples_the_law() -> None:
    """Standard errors: 1 / sqrt(2 n) of a deviation, here 0.0035."""
    model = PosteriorDraw(None, SDE, "data", shape=(2,), sampler=DenoisingGANSampler(latent=2))
    x = sample(model, 40_000, seed=3)
    assert float((x.std(0) - 1).abs().max()) < 0.015 and float(x.mean(0).abs().max()) < 0.02
    mean = Gaussian(torch.zeros(2), torch.ones(2), sde=SDE)  # E[x_0 | x_t] instead: too small a spread
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    assert float(sample(mean, 10_000, solver="ddpm", grid=times, seed=3).std()) < 0.95


def test_a_perfect_generator_leaves_nothing_to_tell_apart() -> None:
    """The pairs (x_s, x_t) of the generator have the law of the forward process, so their covariances agree."""
    g = torch.Generator().manual_seed(0)
    t, s = (torch.full((200_000,), u, dtype=torch.float64) for u in (0.75, 0.5))
    x0, eps, xi, z, noise = (torch.randn(200_000, 1, generator=g, dtype=torch.float64) for _ in range(5))
    (at, st), (a_s, ss) = (tuple(c[:, None] for c in SDE.marginal(u)) for u in (t, s))
    xs = a_s * x0 + ss * eps
    xt = at / a_s * xs + (st**2 - (at / a_s * ss) ** 2).sqrt() * xi
    made = draw_earlier(SDE, at * xt + st * z, xt, t, s, noise)
    real, fake = (torch.cov(torch.cat([v, xt], 1).T) for v in (xs, made))
    assert float((real - fake).abs().max()) < 0.015


def loss_of(model: ScoreModel, gamma: float = 0.2) -> DenoisingGANLoss:
    return DenoisingGANLoss(model, model.network, gamma)


def minimised(loss: DenoisingGANLoss) -> torch.Tensor:
    torch.manual_seed(0)
    x, t = points(32), torch.linspace(0.01, 1, 32, dtype=torch.float64)
    return loss(x, t, torch.randn(32, 2), torch.ones(32))[1]


def test_a_generator_begins_as_its_teacher() -> None:
    torch.manual_seed(0)
    teacher = ScoreModel(build("mlp", shape=(2,), width=8, depth=2), SDE, "velocity", shape=(2,))
    for p in teacher.network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, t = torch.randn(5, 2), torch.full((5,), 0.7, dtype=torch.float64)
    made = generator_for(teacher, 4, latent=3)
    assert made.predicts == "velocity" and generator_for(plain(), 4).predicts == "data"
    torch.testing.assert_close(made.denoise(x, t, context=torch.randn(5, 3)), teacher.denoise(x, t))


def test_steps_share_out_the_noise() -> None:
    times = torch.tensor(step_times(SDE, 5), dtype=torch.float64)
    rho = torch.exp(-SDE.half_log_snr(times[1:-1]))
    assert times[0] == 1 and times[-1] == 0
    torch.testing.assert_close(rho[:-1] / rho[1:], torch.full((3,), 10 ** (1 / 3), dtype=torch.float64))
    assert step_times(SDE, 1) == (1.0, 0.0) and len(step_times(SDE, 2)) == 3


def test_each_network_gets_the_gradient_of_its_own_loss() -> None:
    """The penalty changes the gradient of the discriminator alone."""
    torch.manual_seed(1)
    model = generator_for(plain(), 4, latent=3)
    for network in (model.network, (weak := loss_of(model, 0.0)).learned):
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.3)
    strong = loss_of(model, 5.0)
    strong.learned.load_state_dict(weak.learned.state_dict())
    gradients = []
    for loss in (weak, strong):
        of = [list(model.network.parameters()), list(loss.learned.parameters())]
        found = torch.autograd.grad(minimised(loss).mean(), of[0] + of[1], allow_unused=True)
        gradients.append((found[: len(of[0])], found[len(of[0]) :]))
    (g, d), (g_strong, d_strong) = gradients
    assert all(a is None or torch.equal(a, b) for a, b in zip(g, g_strong, strict=True))
    assert any(a is not None and float(a.abs().max()) > 0 for a in g)
    assert not all(a is None or torch.equal(a, b) for a, b in zip(d, d_strong, strict=True))


def test_the_losses_of_a_logit_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator wants its samples taken for real, the discriminator tells both apart; a constant has no slope."""
    loss = loss_of(generator_for(plain(), 2))
    monkeypatch.setattr(loss, "_logit", lambda xs, xt, t, fixed=None: 3 + 0 * xs.flatten(1).sum(1))
    generator, total = loss(points(8), torch.rand(8), torch.randn(8, 2), torch.ones(8))
    away, near = (float(torch.nn.functional.softplus(torch.tensor(c))) for c in (3.0, -3.0))
    assert generator.tolist() == pytest.approx([near] * 8) and total.tolist() == pytest.approx([2 * near + away] * 8)


def test_the_two_networks_have_their_own_pace() -> None:
    from sde_diffusion.training import TrainConfig, Trainer

    model = generator_for(plain(), 2)
    config = TrainConfig(steps=1, batch_size=16, warmup=0, learning_rate=1e-3, schedule="constant", normalize="none")
    trainer = Trainer(model, points(32), config, objective=DenoisingGANLoss)
    list(trainer)
    assert [(g["lr"], g["betas"]) for g in trainer.optimizer.param_groups] == [(1e-3, (0.0, 0.99)), (2e-3, (0.0, 0.99))]


QUICK = {"batch_size": 16, "progress": False, "normalize": "none", "nfe": 2}


def test_resuming_is_bit_equal(tmp_path) -> None:
    """With the discriminator and its moments, which the checkpoint holds beside the generator."""
    options = {**QUICK, "checkpoint_every": 2, "schedule": "constant"}
    whole = distill(plain(), points(64), "denoising-gan", steps=6, out=tmp_path / "whole", **options)
    distill(plain(), points(64), "denoising-gan", steps=4, out=tmp_path / "part", **options)
    again = distill(plain(), points(64), "denoising-gan", steps=6, out=tmp_path / "part", resume=True, **options)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def test_a_stored_generator_samples_with_its_own_steps(tmp_path) -> None:
    made = distill(plain(), points(64), "denoising-gan", steps=2, out=tmp_path / "run", **QUICK)
    again = load(tmp_path / "run")
    assert again.sampler == made.sampler
    torch.testing.assert_close(sample(again, 5), sample(made, 5, nfe=2), rtol=0, atol=0)
    torch.testing.assert_close(sample(again, 5, batch_size=2), sample(again, 5), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="trained for 2 evaluations, not for 3"):
        sample(again, 5, nfe=3)
    with pytest.raises(InputError, match="leave out the grid"):
        solve(SDE.probability_flow(again), torch.zeros(1, 2), solver=again.sampler, grid=[1.0, 0.4, 0.0], seeds=[0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="fall from 1 to 0"):
        DenoisingGANSampler((1.0, 0.2, 0.5, 0.0))
    with pytest.raises(InputError, match="latent"):
        DenoisingGANSampler(latent=0)
    with pytest.raises(InputError, match="sampler=DenoisingGANSampler"):
        loss_of(plain())
    with pytest.raises(InputError, match="context=16"):
        model = generator_for(plain(), 2)
        model.sampler = DenoisingGANSampler(latent=3)
        loss_of(model)
    with pytest.raises(InputError, match="student="):
        generator_for(Gaussian(torch.zeros(2), torch.ones(2), sde=SDE), 2)
    with pytest.raises(InputError, match="gamma"):
        loss_of(generator_for(plain(), 2), -1.0)


@pytest.mark.slow
def test_both_modes_are_found_in_two_steps() -> None:
    """Two modes 20 deviations apart: fewer samples between them than DDPM leaves with the exact mean."""
    made = distill(
        plain(32), points(), "denoising-gan", steps=500, learning_rate=1e-3, **{**QUICK, "batch_size": 128},
    )  # fmt: skip
    x = sample(made, 4000, seed=1)
    left = float((x[:, 0] < 0).double().mean())
    assert 0.25 < left < 0.75
    exact = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), std=0.1, sde=SDE)
    blurred = sample(exact, 4000, solver="ddpm", grid=torch.tensor(made.sampler.times, dtype=torch.float64), seed=1)
    between, before = (float((y[:, 0].abs() < 0.6).double().mean()) for y in (x, blurred))
    assert between < 0.1 < 0.25 < before


def test_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["train", "--data", "moons", "--steps", "2", "--width", "16", "--out", "teacher"]).exit_code == 0
    done = run(app, ["distill", "teacher", "--method", "denoising-gan", "--nfe", "3", "--steps", "2", "--out", "gan"])
    assert done.exit_code == 0, done.output
    drawn = run(app, ["sample", "gan", "--nfe", "3", "--n", "8", "--out", "drawn"])
    assert drawn.exit_code == 0 and "3 evaluations" in " ".join(drawn.output.split()), drawn.output
    wrong = run(app, ["distill", "teacher", "--method", "denoising-gan", "--start", "8"])
    assert wrong.exit_code == 2 and "--method progressive" in " ".join(wrong.output.split())
