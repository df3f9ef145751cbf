"""The trilemma: its measures on known laws, its stored models and its tables."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.trilemma import families, measures, page
from sde_diffusion import VPSDE, Gaussian
from sde_diffusion.data import Data
from sde_diffusion.likelihood.dequantization import level_range


def images(n: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_uniform_law_has_eight_bits() -> None:
    x = images().float() / 127.5 - 1
    nats = -784 * math.log(level_range(256))
    mean, error = measures.bits(lambda x: torch.full((len(x),), nats, dtype=torch.float64), x)
    assert mean == pytest.approx(8) and error == pytest.approx(0, abs=1e-12)


def test_a_flow_has_the_bits_of_its_law() -> None:
    """N(0, 1/9) in each value, by the probability flow of the exact score."""
    model = Gaussian(torch.zeros(4, dtype=torch.float64), torch.full((4,), 1 / 9, dtype=torch.float64), sde=VPSDE())
    x = (torch.tensor([[0.0, 20, -40, 60], [127, -10, 5, 33]]) + 127).round() / 127.5 - 1
    found = measures.bits(measures.flow_nats(model), x)[0]
    exact = measures.bits(lambda x: torch.distributions.Normal(0.0, 1 / 3).log_prob(x.double()).sum(1), x)[0]
    assert found == pytest.approx(exact, abs=2e-3)


def test_levels_are_those_of_the_file() -> None:
    x = images()
    assert torch.equal(measures.levels(x.float() / 127.5 - 1), x.long())


def test_a_stored_model_is_not_trained_again(tmp_path, monkeypatch) -> None:
    from benchmarks.baselines import dcgan

    calls = []

    def train(data, seed):
        calls.append(seed)
        return dcgan.trained(data, seed, steps=2)

    monkeypatch.setitem(families.FAMILIES, "dcgan", families.Family(train, dcgan.Generator, "", "none", "", "1"))
    data = Data("noise", images(64), None, "image")
    first, again = (families.trained("dcgan", 3, data, tmp_path) for _ in range(2))
    assert calls == [3]
    assert torch.equal(families.draw(first.model, 3, 5), families.draw(again.model, 3, 5))
    assert not torch.equal(families.draw(first.model, 3, 5), families.draw(first.model, 3, 6))


def row(family: str, frechet: float, seed: int | None = None, **more) -> dict:
    figures = {
        name: [value, 0.1] for name, value in {"frechet": frechet, "kid": 0.1, "precision": 0.5, "recall": 0.6}.items()
    }
    about = {} if seed is None else {"seed": seed, "objective": "a bound", "likelihood": "bound", "bottleneck": "16"}
    return {"family": family, "nfe": "1", "rate": 50.0, "n": 9, "shown": ["00" * 784] * 2, **figures, **about, **more}


def test_the_tables_have_the_rows(tmp_path) -> None:
    rows = {
        "vae, seed 0": row("vae", 4.0, 0, training=60.0, bits=[3.1, 0.02], reconstruction=0.2),
        "vae, seed 1": row("vae", 6.0, 1, training=60.0),
        "diffusion, likelihood": {"family": "diffusion", "nfe": "61", "bits": [1.2, 0.1], "reconstruction": 1e-4},
        "pf-ode, 8": row("diffusion", 2.0, solver="pf-ode"),
    }
    page.write(rows, tmp_path, tmp_path / "trilemma.html", tmp_path / "figure.png")
    text = (tmp_path / "trilemma.md").read_text()
    assert "| vae | 1 | 4.00 +- 0.10 |" in text and "| pf-ode | 1 | 2.00 +- 0.10 |" in text
    assert "6.00" not in text and "5.0, 4.0 to 6.0" in text
    assert "bound, 3.10 +- 0.02 bits/dim" in text and "exact, by the flow, 1.20 +- 0.10 bits/dim" in text
    assert "The generative trilemma" in (tmp_path / "trilemma.html").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 5000
