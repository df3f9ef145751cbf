"""The perceptual distance and the discriminator of an autoencoder: values, gradients, resumed runs, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.networks import build
from sde_diffusion.networks.classifier import Classifier
from sde_diffusion.networks.discriminator import PatchDiscriminator
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.atomic_folder import unpack
from sde_diffusion.training.autoencoding.adversarial import AdversarialTerm
from sde_diffusion.training.autoencoding.loss import AutoencoderLoss
from sde_diffusion.training.autoencoding.perceptual import TIME, perceptual_distance
from sde_diffusion.training.autoencoding.readers import FEATURES
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import set_up
from sde_diffusion.training.training_run import train
from solvers.errors import InputError

FAST: dict[str, Any] = {"batch_size": 16, "warmup": 2, "device": "cpu", "progress": False, "schedule": "constant"}
SIDE = (1, 8, 8)


def reader(seed: int = 1, shape: tuple[int, ...] = SIDE) -> NoisyClassifier:
    torch.manual_seed(seed)
    network = Classifier(shape, 10, channels=8)
    for block in network.modules():  # their last layers start at zero
        if hasattr(block, "conv2"):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    return NoisyClassifier(network, VPSDE(), shape).eval()


def autoencoder(kind: str = "kl", features: NoisyClassifier | None = None) -> AutoencoderModel:
    torch.manual_seed(0)
    network = build(
        "autoencoder", shape=SIDE, bottleneck=kind, multipliers=(1, 2), channels=4, latent_channels=2, codes=8
    )
    return AutoencoderModel(network, VPSDE(), SIDE, reader=features)


def loss_of(model: AutoencoderModel, step: int = 1, **options: Any) -> AutoencoderLoss:
    found = AutoencoderLoss(model, model.network, TrainConfig(**options), model.reader)
    found.begin(step)
    return found


def call(loss: AutoencoderLoss, x: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones(len(x))
    return loss(x, ones, x, ones)


@torch.no_grad()
def test_the_distance_is_that_of_the_angles_of_features() -> None:
    found, digits = reader(), load_data("digits")
    x, y = digits.batch(slice(0, 5)), digits.batch(slice(5, 10))
    seen: list[Tensor] = []
    hooks = [level[-1].register_forward_hook(lambda *given: seen.append(given[2])) for level in found.network.levels]
    for sample in (x, y):
        found.network(sample, torch.full((5,), TIME))
    for hook in hooks:
        hook.remove()
    levels = len(seen) // 2
    cosines = [torch.cosine_similarity(a, b, dim=1) for a, b in zip(seen[:levels], seen[levels:], strict=True)]
    expected = torch.stack([(2 - 2 * c).flatten(1).mean(1) for c in cosines]).mean(0)
    assert levels == 3
    assert torch.allclose(perceptual_distance(found, x, y, autoencoder().units), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_distance_has_the_weight_of_the_option(kind: str) -> None:
    model, x = autoencoder(kind, reader()).eval(), load_data("digits").batch(slice(0, 6))
    plain, more = (call(loss_of(model, perceptual=w), x)[1] for w in (0.0, 3.0))
    assert model.reader is not None
    distance = perceptual_distance(model.reader, model.decode(model.encode(x)), x, model.units)
    assert torch.allclose(more - plain, 3 * distance, atol=1e-5) and bool((distance > 0.01).all())


def slope(loss: AutoencoderLoss, x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(call(loss, x)[1].mean(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_each_side_has_its_own_gradient() -> None:
    model, x = autoencoder().eval(), load_data("digits").batch(slice(0, 6))
    weights, last = list(model.network.parameters()), [model.network.last_weight]
    plain = loss_of(model)
    waits, plays = (loss_of(model, step=k, adversarial=0.5, adversarial_after=3) for k in (3, 4))
    for a, b in zip(slope(plain, x, weights), slope(waits, x, weights), strict=True):
        assert torch.equal(a, b)  # until then the discriminator alone learns
    apart = slope(plays, x, last)[0] - slope(plain, x, last)[0]
    of_pixels = slope(loss_of(model, kl_weight=0.0), x, last)[0]
    assert float(apart.norm()) == pytest.approx(0.5 * float(of_pixels.norm()), rel=1e-2)
    # The autoencoder raises the logits of its reconstructions.
    term = plays.learned
    assert isinstance(term, AdversarialTerm)
    logit = term.discriminator(model.network(x).x).mean()
    assert float((torch.autograd.grad(logit, last)[0] * apart).sum()) < 0
    # The discriminator has the gradient of the hinge loss, and nothing of the autoencoder's.
    own = list(term.parameters())
    made = model.network(x).x.detach()
    hinge = (1 - term.discriminator(x)).clamp_min(0).mean() + (1 + term.discriminator(made)).clamp_min(0).mean()
    for a, b in zip(torch.autograd.grad(hinge, own), slope(plays, x, own), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    figures = plays.figures()
    assert {"reconstruction", "kl_nats", "discriminator", "adversarial", "lambda"} <= set(figures)


def test_a_resumed_run_is_bit_identical_with_its_discriminator(tmp_path: Path) -> None:
    data, options = load_data("digits"), {**FAST, "adversarial": 0.5, "adversarial_after": 1, "perceptual": 0.3}
    whole = train(autoencoder(features=reader()), data, steps=4, out=tmp_path / "a", **options)
    train(autoencoder(features=reader()), data, steps=2, out=tmp_path / "b", **options)
    made = set_up({"out": str(tmp_path / "b"), "steps": 4}, resume=True)
    again = train(made.model, made.data, made.config, out=tmp_path / "b", resume=True, progress=False)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    a, b = (unpack(tmp_path / run / "checkpoints" / "step-000004" / "weight.safetensors") for run in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    first = AdversarialTerm(SIDE).state_dict()
    assert any(not torch.equal(a[name], first[name]) for name in a)


def test_two_networks_have_no_common_limit_of_their_gradients() -> None:
    assert set_up({"autoencoder": "kl"}).config.clip == 1.0
    assert set_up({"autoencoder": "kl", "adversarial": 0.5}).config.clip > 1e6
    assert set_up({"autoencoder": "kl", "adversarial": 0.5, "clip": 2.0}).config.clip == 2.0


def test_a_run_keeps_its_classifier(tmp_path: Path) -> None:
    data = load_data("digits")
    train(autoencoder(features=reader()), data, steps=1, out=tmp_path / "a", **FAST)
    with pytest.raises(InputError, match="with another classifier of --features"):
        train(autoencoder(features=reader(2)), data, out=tmp_path / "a", resume=True, steps=2, progress=False)
    (tmp_path / "a" / FEATURES).unlink()
    made = set_up({"out": str(tmp_path / "a"), "steps": 2}, resume=True)
    with pytest.raises(InputError, match="with another classifier of --features"):
        train(made.model, made.data, made.config, out=tmp_path / "a", resume=True, progress=False)


def test_patches_of_signals_volumes_and_small_samples() -> None:
    sizes = {(2, 12): (1, 6), (1, 8, 8, 8): (1, 4, 4, 4), (3, 32, 32): (1, 4, 4), (1, 5, 7): (1, 5, 7)}
    for shape, expected in sizes.items():
        assert PatchDiscriminator(shape, channels=4)(torch.zeros(2, *shape)).shape[1:] == expected
    with pytest.raises(InputError, match=r"a discriminator works on .* got shape \(5,\)"):
        PatchDiscriminator((5,))


def test_other_classifiers_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"samples of shape \(1, 16, 16\), the autoencoder for \(1, 8, 8\)"):
        loss_of(autoencoder(features=reader(shape=(1, 16, 16))))
    flat = NoisyClassifier(Classifier((64,), 10), VPSDE(), (64,))
    with pytest.raises(InputError, match="classifier of images, signals or volumes"):
        loss_of(autoencoder(features=flat))
    with pytest.raises(InputError, match=r"bundled predicts .* and is no classifier"):
        set_up({"autoencoder": "kl", "features": "bundled"})
    for option, value in (("adversarial", 0.5), ("features", "runs/none"), ("kl_weight", 0.1)):
        with pytest.raises(InputError, match=rf"\(--{option.replace('_', '-')}\) is of the training of an autoencoder"):
            set_up({option: value})
    words = ["train", "--autoencoder", "kl", "--steps", "1", "--out", str(tmp_path / "x")]
    for more, needed in ((["--perceptual", "1"], "--features"), (["--adversarial-after", "2"], "--adversarial")):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code != 0 and f"would have no effect without {needed}" in str(result.exception or "") + (
            result.output
        )
    with pytest.raises(InputError, match="adversarial must be at least 0; got -1"):
        TrainConfig(adversarial=-1.0)
