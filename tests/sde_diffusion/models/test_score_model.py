"""One conversion: every parametrization of one model is the same model, in values, targets and trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.models.parametrization import EDMPrediction, Parametrization, VelocityPrediction
from sde_diffusion.models.score_model import PREDICTS, ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.training.losses import denoising_loss
from solvers import SOLVERS, solve

PATHS = [VPSDE(), SubVPSDE(), VESDE(), EDM(), Flow(), CosineVPSDE()]
MEANS = torch.tensor([[-1.0, 0.5], [0.8, 1.0], [0.0, -1.2]], dtype=torch.float64)


def declared(exact: GaussianMixture, predicts: str, sigma_data: float = 0.7) -> ScoreModel:
    """The exact model behind a network that outputs another quantity, by the definitions alone."""
    sde = exact.sde

    def network(x: Tensor, t: Tensor) -> Tensor:
        if predicts == "edm":  # t is c_noise = log(rho) / 4 and x is c_in z
            rho = torch.exp(4 * t.double())
            time = sde.time(-torch.log(rho))
            alpha, sigma = (c[:, None] for c in sde(time)[:2])
            rho = rho[:, None]
            z = x * (rho**2 + sigma_data**2).sqrt()
            skip = sigma_data**2 / (rho**2 + sigma_data**2)
            out = rho * sigma_data / (rho**2 + sigma_data**2).sqrt()
            return (exact.denoise(alpha * z, time) - skip * z) / out
        alpha, sigma = (c[:, None] for c in sde(t)[:2])
        x0 = exact.denoise(x, t)
        eps = (x - alpha * x0) / sigma
        a, b = (c[:, None] for c in sde.velocity_weights(t))
        # mu~: the mean of x_s given x_t and x_0, by the weights of the two normal laws that it comes from.
        alpha_s, sigma_s = (c[:, None] for c in sde.marginal((t.double() - 1e-3).clamp_min(0)))
        ratio = alpha / alpha_s
        rest = sigma**2 - (ratio * sigma_s) ** 2
        mean = (ratio * sigma_s**2 * x + rest * alpha_s * x0) / sigma**2
        return {"noise": eps, "data": x0, "velocity": a * x0 + b * eps, "score": -eps / sigma, "mean": mean}[predicts]

    return ScoreModel(network, sde, predicts, shape=(2,), sigma_data=sigma_data)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_every_parametrization_gives_every_quantity(sde: SDE, predicts: str) -> None:
    exact = GaussianMixture(MEANS, 0.3, sde=sde)
    t = torch.tensor([0.02, 0.3, 0.7, 0.95], dtype=torch.float64)
    alpha, sigma = (c[:, None] for c in sde(t)[:2])
    x0 = exact.draw(4, seed=1)
    x = alpha * x0 + sigma * torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = declared(exact, predicts)
    true = exact.denoise(x, t)
    torch.testing.assert_close(model.denoise(x, t), true, rtol=1e-8, atol=1e-8)
    eps = (x - alpha * true) / sigma
    torch.testing.assert_close(model.noise(x, t), eps, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(model.score(x, t) * sigma, -eps, rtol=1e-7, atol=1e-8)
    a, b = (c[:, None] for c in sde.velocity_weights(t))
    torch.testing.assert_close(model.velocity(x, t), a * true + b * eps, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), Flow()], ids=repr)
def test_target_is_what_makes_the_noise_exact(sde: SDE, predicts: str) -> None:
    """A network that outputs the target recovers x_0 and eps, and output errors scale by output_gain."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)
    x = sde.perturb(x0, t, eps)
    probe = ScoreModel(None, sde, predicts, sigma_data=0.6)
    target = probe.target(x0, eps, t)
    model = ScoreModel(lambda x, t: target, sde, predicts, sigma_data=0.6)
    torch.testing.assert_close(model.denoise(x, t), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.noise(x, t), eps, rtol=1e-8, atol=1e-9)
    wrong = ScoreModel(lambda x, t: target + off, sde, predicts, sigma_data=0.6)
    error = (wrong.noise(x, t) - eps).abs()
    torch.testing.assert_close(error, probe.output_gain(t)[:, None] * off.abs(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if not s.adaptive])
def test_one_trajectory_under_every_declaration(name: str) -> None:
    exact = GaussianMixture(MEANS, 0.3, sde=VPSDE())
    solver = SOLVERS[name]
    x1 = exact.sde.prior((5, 2), seeds=range(5), dtype=torch.float64)
    runs = [
        solve(exact.sde.reverse(declared(exact, p), float(solver.stochastic)), x1, solver=solver, nfe=15).x
        for p in PREDICTS
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-7, atol=1e-7)


def test_float32_stays_float32_with_float64_times() -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == t.dtype == torch.float32 and t.shape == (3,)
            return x * t[:, None]

    model = ScoreModel(Network(), VPSDE())
    x = torch.ones(3, 2)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    for quantity in (model.denoise, model.noise, model.score, model.velocity):
        assert quantity(x, t).dtype == torch.float32


def test_pure_noise_works_for_data_and_velocity_only() -> None:
    x, t = torch.ones(2, 3), torch.ones(2, dtype=torch.float64)
    for sde in (CosineVPSDE(), Flow()):
        for predicts in ("data", "velocity"):
            model = ScoreModel(lambda x, t: torch.full_like(x, 0.25), sde, predicts)
            expected = 0.25 if predicts == "data" else (1 - 0.25 if isinstance(sde, Flow) else -0.25)
            torch.testing.assert_close(model.denoise(x, t), torch.full_like(x, expected))
        with pytest.raises(ValueError, match=r"alpha\(t\) = 0.*velocity"):
            ScoreModel(lambda x, t: x, sde, "noise").denoise(x, t)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown parametrization 'epsilon'.*noise"):
        ScoreModel(None, VPSDE(), "epsilon")
    with pytest.raises(TypeError, match="VPSDE"):
        ScoreModel(None, "vp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma_data"):
        ScoreModel(None, VPSDE(), "edm", sigma_data=0.0)
    wide = ScoreModel(lambda x, t: torch.zeros(len(x), 7), VPSDE())
    with pytest.raises(ValueError, match=r"\(2, 3\), the output is \(2, 7\)"):
        wide.denoise(torch.ones(2, 3), torch.full((2,), 0.5))


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_time_that_the_batch_shares_gives_the_bits_of_times_of_its_own(predicts: str, dtype: torch.dtype) -> None:
    for sde in (VPSDE(), VPSDE(0.2, 8.0), CosineVPSDE(), VESDE()):
        model = ScoreModel(lambda x, t: torch.sin(3 * x) + t[:, None], sde, predicts, sigma_data=0.7)
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
        for shared in (0.3, 0.9):
            t = torch.tensor([shared, shared, shared, 0.5], dtype=torch.float64)
            together = model.denoise(x[:3], t[:3])
            assert together.dtype == dtype
            assert torch.equal(together, model.denoise(x, t)[:3])


@dataclass(frozen=True)
class Doubled(Parametrization):
    """A head of one's own: the output is 2 x_0."""

    name = "doubled"
    defined_at_pure_noise = True

    def affine(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, _ = sde.marginal(t)
        return torch.zeros_like(alpha), torch.full_like(alpha, 0.5)

    def target(self, sde: SDE, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return 2 * x0


def test_a_parametrization_of_ones_own_is_one_class() -> None:
    exact = GaussianMixture(MEANS, 0.3, sde=Flow())
    own = ScoreModel(lambda x, t: 2 * exact.denoise(x, t), Flow(), Doubled(), shape=(2,))
    assert own.predicts == "doubled"
    torch.testing.assert_close(sample(own, 8, nfe=12), sample(exact, 8, nfe=12, shape=(2,)))
    x, t = torch.ones(3, 2).double(), torch.tensor([0.2, 0.5, 0.8]).double()
    for quantity in ("denoise", "noise", "score", "velocity"):
        torch.testing.assert_close(getattr(own, quantity)(x, t), getattr(exact, quantity)(x, t))
    x0, eps = torch.randn(2, 500, 2, generator=torch.Generator().manual_seed(0)).double()
    times = torch.linspace(0.01, 0.99, 500, dtype=torch.float64)
    torch.testing.assert_close(denoising_loss(own, x0, times, eps), denoising_loss(exact, x0, times, eps))
    assert ScoreModel(None, Flow(), VelocityPrediction()).predicts == "velocity"
    assert ScoreModel(None, Flow(), EDMPrediction(0.5)).sigma_data == 0.5


def test_a_subclass_with_outputs_of_its_own_is_denoised_through_them() -> None:
    class Halved(ScoreModel):
        def outputs(self, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
            return super().outputs(x, t, **condition)[0] / 2, None

    model = Halved(lambda x, t: x, VPSDE(), "data")
    x, t = torch.ones(2, 3), torch.tensor([0.5, 0.5])
    assert torch.equal(model.denoise(x, t), x / 2) and torch.equal(model(x, t), x / 2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_input_and_output_of_a_network_of_16_bits_are_cast(kind: torch.dtype) -> None:
    network = build("mlp", shape=(2,), width=8, depth=1).to(kind)
    model = ScoreModel(network, VPSDE(), "data")
    x, t = torch.ones(3, 2), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    with torch.no_grad():
        found = model.denoise(x, t)
        assert found.dtype == torch.float32
        assert torch.equal(found, network(x.to(kind), t.float()).float())
    assert model.dtype == kind and model.state_dtype == torch.float32
