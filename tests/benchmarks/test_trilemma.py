"""The trilemma: its measures on known laws, its stored models and its tables."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.baselines.autoregressive import CausalTransformer, TwoStages
from benchmarks.baselines.vqvae import VQVAE
from benchmarks.trilemma import families, measures, page, students
from sde_diffusion import VPSDE, Gaussian, ScoreModel
from sde_diffusion.data import Data
from sde_diffusion.likelihood.dequantization import level_range
from sde_diffusion.networks import build


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


def test_the_bits_of_codes_are_those_of_their_law() -> None:
    """An untrained transformer with weights of zero gives every code the same share: log2 of the number of codes."""
    torch.manual_seed(0)
    model = TwoStages(VQVAE(size=16, channels=4), CausalTransformer(16, 49, width=8, depth=1, heads=2))
    torch.nn.init.zeros_(model.law.leave[1].weight)
    torch.nn.init.zeros_(model.law.leave[1].bias)
    found = measures.codes(model, images(20).float() / 127.5 - 1)
    assert found["bits_of_a_code"] == pytest.approx(4, abs=1e-5)
    assert 1 <= found["perplexity"] <= 16 and found["bits_by_share"] == pytest.approx(math.log2(found["perplexity"]))


def test_students_are_trained_once_and_share_the_time(tmp_path, monkeypatch) -> None:
    """From 8 steps to 1 there are 3 halvings; the student of 4 steps had one of them."""
    monkeypatch.setattr(students, "UPDATES", {"consistency": 2, "progressive": 2})
    monkeypatch.setattr(students, "START", 8)
    monkeypatch.setattr(students, "OPTIONS", {**students.OPTIONS, "batch_size": 8})
    teacher = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE(), "velocity", shape=(2,))
    points = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    made = {n: students.trained("progressive", n, teacher, points, tmp_path) for n in (1, 2, 4)}
    assert {n: len(found.model.sampler.rows) for n, found in made.items()} == {1: 1, 2: 2, 4: 4}
    assert [made[n].seconds / made[1].seconds for n in (4, 2, 1)] == pytest.approx([1 / 3, 2 / 3, 1])
    monkeypatch.setattr(students, "distill", None)
    again = students.trained("progressive", 2, teacher, points, tmp_path)
    for name, value in made[2].model.network.state_dict().items():
        assert torch.equal(value, again.model.network.state_dict()[name])


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
        "consistency, 2": row("student", 3.0, solver="consistency", training=200.0),
    }
    page.write(rows, tmp_path, tmp_path / "trilemma.html", tmp_path / "figure.png")
    text = (tmp_path / "trilemma.md").read_text()
    assert "| vae | 1 | 4.00 +- 0.10 |" in text and "| pf-ode | 1 | 2.00 +- 0.10 |" in text
    assert "| consistency | 1 | 3.00 +- 0.10 |" in text and "| student |" not in text
    assert "6.00" not in text and "5.0, 4.0 to 6.0" in text
    assert "bound, 3.10 +- 0.02 bits/dim" in text and "exact, by the flow, 1.20 +- 0.10 bits/dim" in text
    text = (tmp_path / "trilemma.html").read_text()
    assert "The generative trilemma" in text and "Curves against time of a sample, ms" in text
    assert text.count("<tr>") == 1 + len(page.first_seeds(rows))
    assert (tmp_path / "figure.png").stat().st_size > 5000
