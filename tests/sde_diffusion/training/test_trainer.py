"""One update: the split of a batch does not matter, labels arrive, and half precision stays in the network."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.data import as_data
from sde_diffusion.data.augment import Augmentation
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.training.checks import TrainingDivergedError
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.distributed import Distributed
from sde_diffusion.training.randomness import BLOCK, StepRandomness
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.training_run import train

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(96, 2, generator=GENERATOR)
LABELS = torch.randint(0, 4, (96,), generator=GENERATOR)
DATA = as_data(POINTS, LABELS)


def trainer(network: nn.Module, **options: Any) -> Trainer:
    config = TrainConfig(**{"batch_size": 32, "device": "cpu", "warmup": 0, **options})
    return Trainer(ScoreModel(network, VPSDE()), DATA, config, Distributed("cpu", config.precision))


def mlp(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build("mlp", shape=(2,), width=8, depth=1, **settings)


class Watched(nn.Module):
    """Remembers what it was called with while it was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x)
        if torch.is_grad_enabled():
            self.seen.append({"x": x, "t": t, "label": label, "dtype": out.dtype})
        return out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_update_does_not_depend_on_the_micro_batches(precision: str) -> None:
    whole, parts = (
        trainer(mlp(classes=4), accumulate=n, labels=True, precision=precision, weight="uncertainty") for n in (1, 4)
    )
    start = torch.cat([p.detach().flatten() for p in whole.parameters.values()])
    for _ in range(5):
        whole.advance()
        parts.advance()
    whole.read()
    parts.read()
    assert whole.losses == pytest.approx(parts.losses, rel=1e-6 if precision == "fp32" else 1e-3)
    one, other = (torch.cat([p.detach().flatten() for p in t.parameters.values()]) for t in (whole, parts))
    assert float((one - start).abs().max()) > 5e-3
    # Adam turns the sign of a gradient that is all rounding into a whole step: rare, and small in the mean.
    assert float((one - other).abs().mean()) < (1e-6 if precision == "fp32" else 1e-4)


def test_noise_of_a_row_is_that_row_of_the_whole_batch() -> None:
    draws, x0 = StepRandomness(3, 1000, 5 * BLOCK + 3), torch.zeros(5 * BLOCK + 3, 2, 3)
    whole = draws.noise(7, x0)
    for first, n in ((0, 1), (BLOCK - 1, 2), (BLOCK, BLOCK), (37, 3 * BLOCK), (5 * BLOCK, 3)):
        assert torch.equal(draws.noise(7, x0[:n], first), whole[first : first + n])
    # 2 x 3 x 163 normals, all different: no block repeats another
    assert len(whole.flatten().unique()) == whole.numel()


def test_labels_arrive_with_their_samples_and_are_dropped_at_random() -> None:
    network = Watched()
    training = trainer(network, labels=True, drop_label=0.25, batch_size=96, t_min=1e-5)
    network.seen.clear()
    shares, draws = [], StepRandomness(0, 96, 96)
    for k in range(1, 41):
        training.advance()
        label, index = network.seen[-1]["label"], draws.index(k)
        kept = label != 4  # the data have classes 0 to 3
        assert torch.equal(label[kept], LABELS[index][kept])
        shares.append(float(kept.float().mean()))
    n = 40 * 96
    assert abs(sum(shares) / 40 - 0.75) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert len(set(shares)) > 5


def test_half_of_the_images_are_mirrored_whatever_the_micro_batches() -> None:
    images = as_data(torch.randn(96, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    start, count = StepRandomness(0, 96, 96), 0
    for accumulate in (1, 4):
        network = Mirrored()
        config = TrainConfig(
            batch_size=96, device="cpu", normalize="none", flip=True, accumulate=accumulate, weight_decay=0.0
        )
        training = Trainer(ScoreModel(network, VPSDE(), "data"), images, config, Distributed("cpu", "fp32"))
        network.seen.clear()
        training.advance()
        t, _ = training.times.sample(96, 1e-5, start.generator("times", 1), training.model.sde, {})
        x0, eps = images.x[start.index(1)], start.noise(1, images.x)
        plain, mirrored = (training.model.sde.perturb(x, t, eps) for x in (x0, x0.flip(3)))
        seen = torch.cat(network.seen)
        which = (seen == mirrored).flatten(1).all(1)
        assert torch.equal(seen[~which], plain[~which])
        assert count in (0, int(which.sum()))
        count = int(which.sum())
    assert abs(count - 48) < 4 * 24**0.5
    with pytest.raises(ValueError, match="flip and augment change images; the samples of array are vectors"):
        trainer(mlp(), flip=True)


class Mirrored(nn.Module):
    """Remembers its inputs."""

    def __init__(self, context: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.settings = {"context": context}
        self.seen: list[Tensor] = []
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        self.seen.append(x)
        if context is not None:
            self.labels.append(context)
        return self.scale * x


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_network_receives_the_augmentation_labels(accumulate: int) -> None:
    images = as_data(torch.randn(96, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    config = TrainConfig(
        batch_size=96, device="cpu", normalize="none", augment=0.1, accumulate=accumulate, weight_decay=0.0
    )
    network = Mirrored(context=9)
    training = Trainer(ScoreModel(network, VPSDE(), "data"), images, config, Distributed("cpu", "fp32"))
    network.seen.clear()
    network.labels.clear()
    training.advance()
    labels, draws = torch.cat(network.labels), StepRandomness(0, 96, 96)
    nothing = labels.isnan().all(1)
    assert abs(int(nothing.sum()) - 96 * 0.9**4 * 0.95**2) < 4 * (96 * 0.6 * 0.4) ** 0.5
    assert not labels[~nothing].isnan().any()
    # The same numbers, drawn by hand, give the images that it saw.
    rows = torch.cat([torch.zeros(96, 1), labels.nan_to_num(0.0)], 1)
    x0, eps = images.x[draws.index(1)], draws.noise(1, images.x)
    t, _ = training.times.sample(96, 1e-5, draws.generator("times", 1), training.model.sde, {})
    expected = training.model.sde.perturb(Augmentation(probability=0.1).apply(x0, rows)[0], t, eps)
    torch.testing.assert_close(torch.cat(network.seen), expected, rtol=0, atol=1e-5)
    plain = (torch.cat(network.seen) == training.model.sde.perturb(x0, t, eps)).flatten(1).all(1)
    assert torch.equal(plain, nothing)


def test_augmentation_needs_a_network_with_a_context() -> None:
    images = as_data(torch.randn(32, 1, 4, 4))
    config = TrainConfig(batch_size=32, device="cpu", augment=0.1)
    with pytest.raises(ValueError, match=r"context of 9 values; build the network with context=9 \(it has None\)"):
        Trainer(ScoreModel(Mirrored(), VPSDE()), images, config, Distributed("cpu", "fp32"))


def test_labels_that_the_network_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="built without classes; build it with classes=4"):
        trainer(mlp(), labels=True)
    with pytest.raises(ValueError, match="labels of array run from 0 to 3; this network has 3 classes"):
        trainer(mlp(classes=3), labels=True)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_stays_inside_the_network(precision: str, dtype: torch.dtype) -> None:
    network, exact = Watched(), Watched()
    exact.load_state_dict(network.state_dict())
    half, full = trainer(network, precision=precision), trainer(exact)
    network.seen.clear()
    exact.seen.clear()
    half.advance()
    full.advance()
    seen, same = network.seen[0], exact.seen[0]
    assert seen["dtype"] == dtype and seen["x"].dtype == seen["t"].dtype == torch.float32
    # The input of the network has not been rounded: the process was computed as in full precision.
    assert torch.equal(seen["x"], same["x"]) and torch.equal(seen["t"], same["t"])
    assert half._unread[0].losses.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in half.parameters.values())
    half.read()
    full.read()
    assert half.losses == pytest.approx(full.losses, rel=2e-2)
    assert half.losses != full.losses


def test_an_overflow_in_float16_is_skipped_scaled_and_counted() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 30 * self.layer(x)  # gradients of about 1e2, times the first scale 65,536: beyond 65,504

    training = trainer(Steep(), precision="fp16", batch_size=32)
    before = [p.detach().clone() for p in training.parameters.values()]
    training.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, training.parameters.values(), strict=True))
    for _ in range(19):
        training.advance()
    training.read()
    record = training.take_record()
    assert 1 <= record["skipped"] < 20 and record["loss_scale"] == 65536 / 2 ** record["skipped"]
    assert not any(torch.equal(a, b) for a, b in zip(before, training.parameters.values(), strict=True))
    assert record["grad_norm"] > 0
    assert training.skipped == 0


def test_gradients_that_float16_can_never_hold_stop_the_training() -> None:
    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * float("inf")

    class Net(Watched):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return Cliff.apply(super().forward(x, t))  # type: ignore[no-untyped-call]

    training = trainer(Net(), precision="fp16")
    for _ in range(32):
        training.advance()
    with pytest.raises(FloatingPointError, match=r"step 32 does not fit into float16 .*precision='bf16'"):
        training.read()


def test_several_averages_are_kept_side_by_side(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 30, "batch_size": 32, "progress": False}
    model = ScoreModel(mlp(), VPSDE())
    trained = train(model, DATA, out=tmp_path / "run", ema=(0.5, 0.9), ema_widths=[0.2], **options)
    alone = train(ScoreModel(mlp(), VPSDE()), DATA, ema=0.9, **options)
    files = {name: load(tmp_path / "run", weights=name) for name in ("ema", "ema-0.9", "power-0.2", "model")}
    flat = {name: torch.cat([p.flatten() for p in m.parameters()]).detach() for name, m in files.items()}
    assert torch.equal(flat["ema"], torch.cat([p.detach().flatten() for p in trained.parameters()]))
    assert torch.equal(flat["ema-0.9"], torch.cat([p.detach().flatten() for p in alone.parameters()]))
    # the longer memory stays nearer to the start
    assert (flat["ema"] - flat["model"]).norm() < (flat["ema-0.9"] - flat["model"]).norm()
    with pytest.raises(ValueError, match=r"unknown weights 'ema-0.8'; did you mean 'ema-0.9'.*model, power-0.2"):
        load(tmp_path / "run", weights="ema-0.8")


def test_a_tracker_gets_the_lines_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options: dict[str, Any] = {"steps": 8, "batch_size": 32, "log_every": 4, "progress": False, "device": "cpu"}
    train(ScoreModel(mlp(), VPSDE()), DATA, out=tmp_path / "run", tracker="tensorboard", **options)
    events = EventAccumulator(str(tmp_path / "run/tracker"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines
    ]
    with pytest.raises(ValueError, match="out="):
        train(ScoreModel(mlp(), VPSDE()), DATA, tracker="tensorboard", **options)


def test_a_loop_of_ones_own_makes_the_updates_of_train() -> None:
    config = TrainConfig(steps=9, batch_size=8, warmup=2, device="cpu", log_every=4)
    whole = train(ScoreModel(mlp(), VPSDE()), DATA, config, progress=False)
    training = Trainer(ScoreModel(mlp(), VPSDE()), DATA, config)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    training.network.eval()
    first = [step.number for step in itertools.islice(training, 4)]
    assert torch.equal(torch.get_rng_state(), before) and not training.network.training
    rest = list(training)  # goes on where the first loop was left
    assert first + [step.number for step in rest] == list(range(1, 10))
    average, expected = training.averages["ema"].state(), whole.network.state_dict()
    assert all(torch.equal(average[name], expected[name]) for name in expected)
    assert rest[-1].learning_rate == 0 and float(rest[0].loss) > 0 and float(rest[0].grad_norm) > 0
    assert list(training) == []


def test_a_custom_loop_ends_at_non_finite_values() -> None:
    config = TrainConfig(steps=200, batch_size=8, device="cpu", learning_rate=1e30, warmup=0, log_every=5)
    training = Trainer(ScoreModel(mlp(), VPSDE()), DATA, config)
    with pytest.raises(TrainingDivergedError, match="is not finite"):
        for _ in training:
            pass
    assert training.step <= 20


def test_a_learned_weight_is_trained_and_stored_with_the_network() -> None:
    made = trainer(mlp(), steps=3, weight="uncertainty")
    assert made.weight is not None
    before = {name: value.clone() for name, value in made.weight.state_dict().items()}
    list(made)
    stored = made.groups()["weight"]
    assert any(not torch.equal(value, before[name]) for name, value in stored.items())
