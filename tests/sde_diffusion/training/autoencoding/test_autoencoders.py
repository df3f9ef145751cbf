"""Autoencoders: losses in closed form, resumed runs, what is refused, the use of the codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.data import as_data, load_data
from sde_diffusion.models.autoencoder import AutoencoderModel, principal_components
from sde_diffusion.networks import build
from sde_diffusion.networks.autoencoder import Autoencoder
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.checkpoint import export, load
from sde_diffusion.storage.locate import find_autoencoder, find_model
from sde_diffusion.storage.run_folder import latest_run
from sde_diffusion.training.autoencoding.loss import AutoencoderLoss, gaussian_kl
from sde_diffusion.training.autoencoding.reconstruction import quality
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import set_up
from sde_diffusion.training.training_run import train
from solvers.errors import InputError

FAST: dict[str, Any] = {"batch_size": 16, "warmup": 2, "device": "cpu", "progress": False}
SMALL: dict[str, Any] = {"channels": 4, "latent_channels": 2, "codes": 8}


def autoencoder(kind: str, **settings: Any) -> AutoencoderModel:
    torch.manual_seed(0)
    network = build("autoencoder", shape=(1, 8, 8), bottleneck=kind, multipliers=(1, 2), **{**SMALL, **settings})
    return AutoencoderModel(network, VPSDE(), (1, 8, 8))


def test_kl_of_normal_laws() -> None:
    mean, log_variance = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    law = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum((1, 2))
    assert torch.allclose(gaussian_kl(mean, log_variance), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_loss_has_the_weights_of_the_options(kind: str) -> None:
    model = autoencoder(kind).eval()
    x, ones = load_data("digits").batch(slice(0, 6)), torch.ones(6)

    def loss(**options: Any) -> torch.Tensor:
        return AutoencoderLoss(model, model.network, TrainConfig(**options))(x, ones, x, ones)[1]

    squared = loss(kl_weight=0.0, commitment=0.0)
    assert torch.allclose(squared, (model.decode(model.encode(x)) - x).square().flatten(1).mean(1), rtol=1e-5)
    z, log_variance = model.network.posterior(x)
    if log_variance is None:
        extra = (z - model.network.quantizer(z)[0]).square().flatten(1).mean(1)
        assert torch.allclose(loss(commitment=3.0) - squared, 3 * extra, rtol=1e-4)
    else:
        extra = gaussian_kl(z, log_variance) / 64
        assert torch.allclose(loss(kl_weight=3.0) - squared, 3 * extra, rtol=1e-4)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_resumed_run_is_bit_identical(kind: str, tmp_path: Path) -> None:
    data = load_data("digits")
    options = {**FAST, "checkpoint_every": 2, "log_every": 2}
    whole = train(autoencoder(kind), data, steps=4, schedule="constant", out=tmp_path / "a", **options)
    train(autoencoder(kind), data, steps=2, schedule="constant", out=tmp_path / "b", **options)
    again = train(autoencoder(kind), data, steps=4, out=tmp_path / "b", resume=True, progress=False)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    a, b = ((tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in "ab")
    strip = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in (*a, *b)]
    assert strip[:2] == strip[2:] and "reconstruction" in strip[0]
    assert ("perplexity" in strip[0]) == (kind == "vq")


def test_a_run_is_described_and_loaded(tmp_path: Path) -> None:
    trained = train(autoencoder("vq"), load_data("digits"), steps=2, out=tmp_path / "vq", **FAST)
    loaded = load(find_autoencoder(tmp_path / "vq"))
    assert isinstance(loaded, AutoencoderModel) and loaded.latent_shape == (2, 4, 4)
    x = load_data("digits").batch(slice(0, 300))
    assert torch.equal(loaded.encode(x), trained.encode(x))
    assert torch.equal(loaded.decode(loaded.encode(x)), trained.decode(trained.encode(x)))
    assert latest_run(tmp_path, classifiers=False) is None
    with pytest.raises(InputError, match=r"autoencoder, from which nothing is sampled; .*--latent"):
        find_model(tmp_path / "vq")
    with pytest.raises(InputError, match="no score model"):
        loaded(x[:1], torch.ones(1))


def test_only_an_autoencoder_is_taken_for_one() -> None:
    with pytest.raises(InputError, match=r"bundled predicts .* and is no autoencoder"):
        find_autoencoder("bundled")


def test_units_of_the_data_are_kept() -> None:
    data = as_data(300 + 20 * torch.randn(64, 5, 4, 4, generator=torch.Generator().manual_seed(0)))
    network = build("autoencoder", shape=(5, 4, 4), channels=4, multipliers=(1,))
    trained = train(AutoencoderModel(network, VPSDE(), (5, 4, 4)), data, steps=60, learning_rate=1e-2, **FAST)
    assert quality(trained, data).rmse < 20  # that of the mean alone
    assert float(trained.encode(data.x).abs().max()) < 30


def test_principal_components_have_the_least_error_and_are_stored(tmp_path: Path) -> None:
    data = load_data("digits")
    model = principal_components(data, 10)
    x = data.batch(slice(None)).flatten(1).double()
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    lost = float(values[:-10].sum() / 64)
    assert quality(model, data, len(data)).rmse ** 2 == pytest.approx(lost, rel=1e-4)
    loaded = load(export(model, tmp_path / "pca.safetensors"))
    assert isinstance(loaded, AutoencoderModel)
    assert torch.equal(loaded.encode(data.batch([3])), model.encode(data.batch([3])))
    with pytest.raises(InputError, match="not trained by gradients"):
        AutoencoderLoss(model, model.network, TrainConfig())


def test_other_shapes_are_refused() -> None:
    model = autoencoder("kl")
    with pytest.raises(InputError, match=r"for samples of shape \(1, 8, 8\); got samples of shape \(1, 6, 6\)"):
        model.encode(torch.zeros(1, 1, 6, 6))
    with pytest.raises(InputError, match=r"latents of shape \(2, 4, 4\); got latents of shape \(3, 4, 4\)"):
        model.decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="4 does not divide 6 x 8"):
        Autoencoder((1, 6, 8))
    with pytest.raises(InputError, match=r"the latents of vectors are principal components|works on"):
        Autoencoder((5,))
    with pytest.raises(InputError, match="the model is for samples"):
        train(model, torch.zeros(20, 1, 16, 16), steps=1, **FAST)


@pytest.mark.parametrize("name", ["sde", "predicts", "condition"])
def test_options_of_score_models_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} \(--{name}\) is not of the training of an autoencoder"):
        set_up({"autoencoder": "kl", name: "noise"})


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="unknown bottleneck of an autoencoder 'vae'"):
        set_up({"autoencoder": "vae"})


def test_labels_are_refused() -> None:
    with pytest.raises(InputError, match="trained on samples alone"):
        train(autoencoder("kl"), load_data("digits"), steps=1, labels=True, drop_label=0.0, **FAST)


def test_a_collapsed_codebook_is_said_with_the_cure() -> None:
    model = autoencoder("vq", codes=64).eval()
    model.network.quantizer.codebook[1:] = 1e3
    found = quality(model, load_data("digits"), 50)
    assert found.perplexity == 1.0 and found.used == 1
    assert "has collapsed: perplexity 1.0, 1 of 64 codes" in found.advice() and "--codes" in found.advice()


def test_the_command_trains_and_reports(tmp_path: Path) -> None:
    run = tmp_path / "kl"
    words = ["--steps", "3", "--batch-size", "16", "--channels", "4", "--latent-channels", "2", "--out", str(run)]
    result = CliRunner().invoke(app, ["train", "--autoencoder", "kl", *words])
    assert result.exit_code == 0, result.output
    assert "RMSE" in result.output and "--latent" in result.output
    found = json.loads((run / "autoencoder.json").read_text())
    assert found["latent_shape"] == [2, 4, 4] and found["split"] == "test" and found["kl_nats"] > 0
    assert (run / "reconstructions.png").is_file()
    page = (run / "index.html").read_text()
    for text in (result.output, page):
        assert "VPSDE" not in text and "samples every" not in text and "The error falls fast" in " ".join(text.split())
    assert "Samples" not in page
    again = CliRunner().invoke(app, ["train", "--resume", "--steps", "4", "--out", str(run)])
    assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_64_codes_of_8x8_digits_are_used() -> None:
    torch.manual_seed(0)
    network = build("autoencoder", shape=(1, 8, 8), bottleneck="vq", channels=8, multipliers=(1, 2), codes=64)
    data = load_data("digits")
    trained = train(AutoencoderModel(network, VPSDE(), (1, 8, 8)), data, steps=150, batch_size=64, progress=False)
    found = quality(trained, load_data("digits", split="test"))
    assert found.perplexity is not None and found.perplexity > 30
    assert found.rmse < 0.35 and not found.collapsed
