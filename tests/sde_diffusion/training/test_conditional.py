"""Training with conditions and of classifiers: resumed runs, exact regressions, what is dropped and noised."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.data import Data, as_data, load_data
from sde_diffusion.data.conditions import as_conditions
from sde_diffusion.guidance import ClassifierGuided, Guided
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.networks.classifier import Classifier
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import find_classifier, find_model
from sde_diffusion.storage.run_folder import latest_run, run_config
from sde_diffusion.training.conditional.accuracy import accuracy_by_time
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.training_run import train
from solvers.errors import InputError

FAST: dict[str, Any] = {"batch_size": 16, "warmup": 2, "device": "cpu", "progress": False}


def pairs(n: int = 40) -> Data:
    """Images and condition images, flipped together, with labels."""
    draw = np.random.default_rng(0)
    high = draw.normal(size=(n, 1, 4, 4)).astype(np.float32)
    return as_data(high, labels=np.arange(n) % 3, condition=300 + 20 * high[:, :, ::2, ::2])


def unet(**more: Any) -> ScoreModel:
    torch.manual_seed(0)
    image = {"image": (1, 2, 2), "resize": "nearest"}
    network = build("unet", shape=(1, 4, 4), channels=4, multipliers=(1,), blocks=1, classes=3, **image, **more)
    return ScoreModel(network, VPSDE(), "velocity")


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*.safetensors")}


def test_a_resumed_run_with_conditions_is_bit_equal(tmp_path: Path) -> None:
    options = {**FAST, "labels": True, "flip": True, "condition_noise": 0.5, "drop_condition": 0.3, "keep": 1}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    train(unet(), pairs(), steps=6, out=whole, schedule="constant", **options)
    train(unet(), pairs(), steps=3, out=torn, schedule="constant", **options)
    train(unet(), pairs(), steps=6, out=torn, resume=True, schedule="constant", **options)
    assert files(whole) == files(torn)
    entry = run_config(torn)["data"]["condition"]
    assert entry["kind"] == "image" and entry["shape"] == [1, 2, 2] and entry["dropped"] == 0.3
    other = replace(pairs(), condition=as_conditions(np.ones((40, 1, 2, 2)), (1, 4, 4)))
    with pytest.raises(InputError, match="cannot be resumed with another data"):
        train(unet(), other, steps=8, out=torn, resume=True, **options)
    with pytest.raises(InputError, match="has none: give Data"):
        train(unet(), replace(pairs(), condition=None), steps=8, out=torn, resume=True, **options)


def test_micro_batches_have_the_conditions_and_noise_of_the_whole() -> None:
    found = []
    for accumulate in (1, 2):
        config = TrainConfig(
            steps=1, batch_size=16, device="cpu", condition_noise=1.0, drop_condition=0.5, accumulate=accumulate
        )
        feed = Trainer(unet(), pairs(), config).feed
        index, drawn = feed.draws.index(1), feed.draw(1)
        size = 16 // accumulate
        parts = [slice(k, k + size) for k in range(0, 16, size)]
        found.append([feed.batch(1, index[rows], drawn, rows, None) for rows in parts])
    for name in ("image", "image_noise"):
        whole, halves = found[0][0][name], torch.cat([part[name] for part in found[1]])
        assert torch.equal(whole.nan_to_num(7.0), halves.nan_to_num(7.0))
    lost = found[0][0]["image"].flatten(1).isnan()
    assert (lost.all(1) == lost.any(1)).all() and 2 <= lost.any(1).sum() <= 14


def test_a_noised_condition_has_the_noise_of_its_level() -> None:
    config = TrainConfig(steps=1, batch_size=256, device="cpu", condition_noise=0.8, drop_condition=0.0)
    data = pairs(300)
    feed = Trainer(unet(), data, config).feed
    index = feed.draws.index(1)
    found = feed.batch(1, index, feed.draw(1), slice(0, 256), None)
    assert data.condition is not None
    clean, level = data.condition.batch(index), found["image_noise"][:, None, None, None]
    mean, std = data.condition.moments()
    eps = (found["image"] - mean - torch.sqrt(1 - level**2) * (clean - mean)) / (level * std)
    assert float(level.min()) >= 0 and 0.7 < float(level.max()) <= 0.8
    assert float(eps.mean()) == pytest.approx(0, abs=4 / math.sqrt(eps.numel()))
    assert float(eps.std()) == pytest.approx(1, rel=4 / math.sqrt(2 * eps.numel()))


def test_a_flip_turns_the_condition_image_too() -> None:
    config = TrainConfig(steps=1, batch_size=16, device="cpu", flip=True, drop_condition=0.0)
    trainer = Trainer(unet(), pairs(), config)
    assert trainer.augmentation is not None
    altered = trainer.augmentation.draw(16, trainer.draws.generator("augment", 1))
    index = trainer.draws.index(1)
    x, _ = trainer.augmentation.apply(trainer.data.batch(index), altered)
    image = trainer.feed.batch(1, index, trainer.feed.draw(1), slice(0, 16), altered)["image"]
    flipped = altered[:, 0].bool()
    assert 0 < flipped.sum() < 16
    # The condition is every second pixel of the sample: from the other side where it was flipped.
    expected = torch.where(flipped[:, None, None, None], x[..., ::2, 1::2], x[..., ::2, ::2])
    torch.testing.assert_close(image, 300 + 20 * expected)


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (pairs(), {}, "which the network does not take: build it with image="),
        (pairs(), {"image": (2, 2, 2), "resize": "area"}, r"this network has image=\[2, 2, 2\]"),
        (replace(pairs(), condition=None), {"image": (1, 4, 4)}, "has none: give Data"),
        (pairs(), {"image": (1, 2, 2), "resize": "area", "required": True}, "use drop_condition=0"),
    ],
)
def test_network_and_conditions_that_do_not_fit_are_refused(data: Data, more: dict[str, Any], message: str) -> None:
    model = ScoreModel(build("unet", shape=(1, 4, 4), channels=4, multipliers=(1,), blocks=1, **more), VPSDE())
    with pytest.raises(InputError, match=message):
        Trainer(model, data, TrainConfig(batch_size=16, device="cpu"))


def test_a_vector_condition_gives_the_regression_that_is_known() -> None:
    # x = c / 50 + 0.5 e: E[x | c] is c / 50 and the deviation 0.5; without c, x has deviation sqrt(1.25).
    draw = torch.Generator().manual_seed(0)
    c = 50 * torch.randn(4000, 1, generator=draw)
    x = c / 50 + 0.5 * torch.randn(4000, 1, generator=draw)
    torch.manual_seed(0)
    network = build("mlp", shape=(1,), width=32, depth=2, embedding="log", vector=1)
    data, options = as_data(x, condition=c), {**FAST, "batch_size": 256, "drop_condition": 0.2}
    model = train(ScoreModel(network, VPSDE(), "velocity"), data, steps=400, learning_rate=4e-3, ema=0.99, **options)
    for value in (-75.0, 0.0, 60.0):
        drawn = sample(model, 1000, nfe=10, vector=torch.full((1000, 1), value))
        assert abs(float(drawn.mean()) - value / 50) < 0.12 and abs(float(drawn.std()) - 0.5) < 0.1, value
    free = sample(model, 1000, nfe=10)
    assert abs(float(free.mean())) < 0.2 and abs(float(free.std()) - 1.25**0.5) < 0.2
    pushed = sample(Guided(model, 2.0), 1000, nfe=20, vector=torch.full((1000, 1), 50.0))
    assert 1.0 < float(pushed.mean()) < 1.8 and float(pushed.std()) < 0.5


def exact_pair() -> tuple[ScoreModel, Tensor]:
    from sde_diffusion.models.analytic import GaussianMixture

    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], dtype=torch.float64)
    return GaussianMixture(means, std=0.4, weights=torch.tensor([0.5, 0.2, 0.3]), sde=VPSDE()), means


def test_a_trained_classifier_guides_and_refuses_to_be_sampled(tmp_path: Path) -> None:
    mixture, means = exact_pair()
    labels = torch.multinomial(torch.tensor([0.5, 0.2, 0.3]), 3000, True, generator=torch.Generator().manual_seed(0))
    x = means.float()[labels] + 0.4 * torch.randn(3000, 2, generator=torch.Generator().manual_seed(1))
    data = as_data(x, labels)
    torch.manual_seed(0)
    model = NoisyClassifier(Classifier((2,), classes=3, channels=8), VPSDE())
    options = {**FAST, "batch_size": 256, "labels": True, "drop_label": 0.0, "normalize": "none"}
    train(model, data, steps=150, ema=0.95, out=tmp_path / "runs" / "c", learning_rate=4e-3, **options)
    trained = load(tmp_path / "runs" / "c")
    assert isinstance(trained, NoisyClassifier) and trained.classes == 3
    early, late = accuracy_by_time(trained, data, times=(0.02, 1.0), n=1000)
    assert early.accuracy > 0.93 and late.accuracy < 0.6 and abs(late.nats - 1.03) < 0.1  # entropy of the classes
    guided = ClassifierGuided(mixture, trained.log_prob, 1.0)
    drawn = sample(guided, 500, nfe=20, label=torch.ones(500, dtype=torch.int64))
    assert float((drawn.float() - means[1].float()).norm(dim=1).lt(1.2).float().mean()) > 0.9
    with pytest.raises(InputError, match="is no score model"):
        sample(trained, 2)
    with pytest.raises(InputError, match="is a classifier of noisy samples"):
        find_model(tmp_path / "runs" / "c")
    assert find_classifier(tmp_path / "runs" / "c").model["predicts"] == "class"
    assert latest_run(tmp_path / "runs", classifiers=False) is None and latest_run(tmp_path / "runs") is not None


def test_a_resumed_classifier_is_bit_equal(tmp_path: Path) -> None:
    def new() -> NoisyClassifier:
        torch.manual_seed(0)
        return NoisyClassifier(Classifier((1, 8, 8), classes=10, channels=4), VPSDE())

    options = {**FAST, "labels": True, "drop_label": 0.0, "schedule": "constant", "keep": 1}
    data = load_data("digits")
    train(new(), data, steps=4, out=tmp_path / "whole", **options)
    train(new(), data, steps=2, out=tmp_path / "torn", **options)
    train(new(), data, steps=4, out=tmp_path / "torn", resume=True, **options)
    assert files(tmp_path / "whole") == files(tmp_path / "torn")
    with pytest.raises(InputError, match="drop_label=0"):
        train(new(), data, **{**options, "drop_label": 0.1})
