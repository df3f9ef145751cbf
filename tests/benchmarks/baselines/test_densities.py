"""The densities of the baselines against laws that are known exactly."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import nn

from benchmarks.baselines.autoregressive import CausalTransformer, fit_law
from benchmarks.baselines.fitting import dequantised, fit
from benchmarks.baselines.flow import Couplings
from benchmarks.baselines.vae import FAST, VAE, perceptron
from benchmarks.baselines.vqvae import Quantiser, perplexity

D, K, NOISE = 4, 2, 0.3
FACTORS = torch.tensor([[1.0, 0.0], [0.5, 1.0], [-0.7, 0.4], [0.2, -0.9]])  # x = FACTORS z + NOISE eps


def law() -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(torch.zeros(D), FACTORS @ FACTORS.T + NOISE**2 * torch.eye(D))


def gaussian(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, K, generator=g) @ FACTORS.T + NOISE * torch.randn(n, D, generator=g)


def exact_vae() -> VAE:
    """Probabilistic principal components: the posterior of z is Gaussian and linear in x."""
    precision = torch.eye(K) + FACTORS.T @ FACTORS / NOISE**2
    covariance = torch.linalg.inv(precision)
    # The covariance is not diagonal: z in its eigenvectors has a diagonal one, and is still N(0, I).
    variances, vectors = torch.linalg.eigh(covariance)
    encoder, decoder = nn.Linear(D, 2 * K), nn.Linear(K, D, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(FACTORS @ vectors)
        encoder.weight.zero_()
        encoder.weight[:K] = vectors.T @ covariance @ FACTORS.T / NOISE**2
        encoder.bias.copy_(torch.cat([torch.zeros(K), variances.log()]))
    model = VAE(encoder, decoder, (D,), K)
    nn.init.constant_(model.deviations, math.log(NOISE) / FAST)
    return model


def test_a_vae_with_the_exact_posterior_has_the_exact_likelihood() -> None:
    """log p(x|z) p(z) / q(z|x) is then log p(x) for every z, so both bounds are tight."""
    model, x = exact_vae(), gaussian(50)
    with torch.no_grad():
        torch.testing.assert_close(model.nats(x, draws=2), law().log_prob(x).double(), rtol=1e-4, atol=1e-4)
        torch.manual_seed(0)
        closed = torch.stack([model.elbo(x) for _ in range(4000)])
        error = closed.std(0) / 4000**0.5
        assert bool(((closed.mean(0) - law().log_prob(x)).abs() < 5 * error).all())


def test_another_posterior_has_a_lower_bound_that_draws_tighten() -> None:
    model, x = exact_vae(), gaussian(400)
    with torch.no_grad():
        model.encoder.bias[:K] += 0.15
    torch.manual_seed(0)
    truth = law().log_prob(x).mean()
    one, many = (float(model.nats(x, draws).mean() - truth) for draws in (1, 256))
    assert one < -0.1 and one < many < 0.01


@pytest.mark.slow
def test_a_trained_vae_comes_near_the_exact_likelihood() -> None:
    torch.manual_seed(0)
    model = VAE(perceptron(D, 32, 2 * K), perceptron(K, 32, D), (D,), K)
    found = fit(model, gaussian(20_000), lambda net, x: -net.elbo(x), steps=1500, batch_size=128, learning_rate=3e-3)
    x = gaussian(2000, seed=1)
    gap = float((found.network.nats(x, 64) - law().log_prob(x)).mean())
    assert -0.1 < gap < 0.02


def test_a_flow_has_the_density_of_its_samples() -> None:
    """The change of variables against the Jacobian of the map that draws, by automatic differentiation."""
    pytest.importorskip("zuko")
    torch.manual_seed(0)
    model = Couplings((1, 2, 2), transforms=3, width=8).double()
    x = dequantised(torch.tensor([[-1.0, 0.2, 0.9, -0.3]], dtype=torch.float64)).reshape(1, 1, 2, 2)
    transform = model.flow().transform

    def latent(flat: torch.Tensor) -> torch.Tensor:
        return transform(model._enter(flat.reshape(1, 1, 2, 2))[0])[0]

    z = latent(x.flatten())
    slope = torch.autograd.functional.jacobian(latent, x.flatten())
    expected = -z.square().sum() / 2 - 2 * math.log(2 * math.pi) + torch.linalg.slogdet(slope)[1]
    torch.testing.assert_close(model.nats(x)[0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.reconstruct(x), x, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_trained_flow_comes_near_the_exact_likelihood() -> None:
    pytest.importorskip("zuko")
    torch.manual_seed(0)
    model = Couplings((D,), transforms=4, width=32, logits=False)
    found = fit(model, gaussian(20_000), lambda net, x: -net.nats(x), steps=600, batch_size=256, learning_rate=5e-3)
    x = gaussian(4000, seed=1)
    with torch.no_grad():
        gap = found.network.nats(x) - law().log_prob(x)
    error = float(gap.std()) / 4000**0.5
    assert -0.05 < float(gap.mean()) < 3 * error


def test_probabilities_of_sequences_sum_to_one() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(3, 4, width=16, depth=2).double().eval()
    nn.init.normal_(model.leave[1].weight)
    every = torch.tensor(list(product(range(3), repeat=4)))
    total = model.nats(every).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-12)


def test_samples_of_sequences_have_their_probabilities() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(2, 3, width=16, depth=1).eval()
    nn.init.normal_(model.leave[1].weight)
    every = torch.tensor(list(product(range(2), repeat=3)))
    with torch.no_grad():
        p = model.nats(every).exp()
    drawn = (model.sample(8000) * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8) / 8000
    assert bool(((drawn - p).abs() < 4 * (p * (1 - p) / 8000).sqrt() + 1e-9).all())


STAY = 0.8


def chain(n: int, length: int, seed: int) -> torch.Tensor:
    """A Markov chain on 4 symbols: uniform at first, then the same symbol with probability STAY, else another."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(0, 4, (n, 1), generator=g)
    for _ in range(length - 1):
        other = (z[:, -1:] + torch.randint(1, 4, (n, 1), generator=g)) % 4
        z = torch.cat([z, torch.where(torch.rand(n, 1, generator=g) < STAY, z[:, -1:], other)], dim=1)
    return z


@pytest.mark.slow
def test_the_bits_of_a_transformer_come_down_to_the_entropy_of_a_markov_chain() -> None:
    length = 12
    rate = -STAY * math.log2(STAY) - (1 - STAY) * math.log2((1 - STAY) / 3)
    entropy = (2 + (length - 1) * rate) / length  # bits a symbol
    torch.manual_seed(0)
    law = CausalTransformer(4, length, width=32, depth=1)
    found = fit_law(law, chain(20_000, length, 0), steps=500, batch_size=128, learning_rate=3e-3)
    z = chain(4000, length, 1)
    with torch.no_grad():
        bits = -found.network.nats(z) / length / math.log(2)
    error = float(bits.std()) / 4000**0.5
    assert entropy - 3 * error < float(bits.mean()) < entropy + 0.02 + 3 * error


def test_perplexity_counts_the_codes_in_use() -> None:
    assert perplexity(torch.zeros(10, dtype=torch.int64), 8) == pytest.approx(1)
    assert perplexity(torch.arange(8).repeat(5), 8) == pytest.approx(8)
    share = torch.tensor([0.5, 0.25, 0.25])
    assert perplexity(torch.tensor([0, 0, 1, 2]), 8) == pytest.approx(float(torch.exp(-(share * share.log()).sum())))


def test_codes_find_the_directions_of_the_data() -> None:
    """Vectors in eight directions: eight codes are in use alike, and each vector is its code."""
    angle = torch.arange(8) * math.pi / 4
    places = torch.stack([angle.cos(), angle.sin()], 1)
    g = torch.Generator().manual_seed(0)
    data = places[torch.randint(0, 8, (4000,), generator=g)] + 0.02 * torch.randn(4000, 2, generator=g)
    torch.manual_seed(0)
    found = fit(
        Quantiser(32, 2), data, lambda net, x: net(x[:, None])[2], steps=300, batch_size=256, learning_rate=2e-2,
        ema=0.9,
    )  # fmt: skip
    with torch.no_grad():
        vectors, index, _ = found.network(data[:, None])
    assert 7 < perplexity(index, 32) < 32
    assert float((vectors[:, 0] - data).norm(dim=1).mean()) < 0.1
    torch.testing.assert_close(vectors[:, 0], found.network.vectors().detach()[index[:, 0]])
