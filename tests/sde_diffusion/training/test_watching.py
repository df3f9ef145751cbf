"""Training that one can watch: cost beforehand, samples, held-out loss and a page; none of it changes the training."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from sde_diffusion import VPSDE, ScoreModel, train
from sde_diffusion.cli import app
from sde_diffusion.data import as_data, load_data
from sde_diffusion.networks import build, default_settings, default_size
from sde_diffusion.report.page_of_training import Preview, training_page
from sde_diffusion.training import training_run
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import default_model, set_up
from sde_diffusion.training.distributed import _track_image
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.watching import watcher
from sde_diffusion.training.watching.cost import Cost, measure_cost
from sde_diffusion.training.watching.held_out import loss_on, split

FEW: dict[str, Any] = {"steps": 8, "batch_size": 16, "log_every": 2, "checkpoint_every": 4, "progress": False}


def points(n: int = 64) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def mlp(**settings: Any) -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(build("mlp", shape=(2,), width=8, dropout=0.2, **settings), VPSDE())


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def log(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_watching_does_not_change_the_training(tmp_path: Path) -> None:
    train(mlp(), points(), out=tmp_path / "watched", sample_every=2, held_out=points(20) + 0.5, **FEW)
    train(mlp(), points(), out=tmp_path / "alone", sample_every=0, **FEW)
    assert weights(tmp_path / "watched", 8) == weights(tmp_path / "alone", 8)
    assert log(tmp_path / "watched") == log(tmp_path / "alone")
    assert sorted(p.name for p in (tmp_path / "watched/samples").iterdir()) == [
        f"step-00000{k}.png" for k in (2, 4, 6, 8)
    ]
    assert not list((tmp_path / "alone/samples").iterdir())


def test_a_resumed_run_has_the_samples_and_the_page_of_a_whole_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "a" / "run", tmp_path / "b" / "run"
    how = {**FEW, "sample_every": 2, "held_out": points(20), "schedule": "constant"}
    train(mlp(), points(), out=whole, **how)
    train(mlp(), points(), out=parts, **{**how, "steps": 4})
    train(mlp(), points(), out=parts, resume=True, **how)
    assert weights(whole, 8) == weights(parts, 8)
    for name in ("watch.json", "index.html", *(f"samples/step-00000{k}.png" for k in (2, 4, 6, 8))):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(mlp(), points(), out=run, **{**FEW, "steps": 4}, sample_every=2)
    found = json.loads((run / "watch.json").read_text())
    found["previews"].append({"step": 6, "picture": "samples/step-000006.png", "held_out_loss": 1e9})
    found["previews"].append({"step": 1, "picture": "../../secret.png"})
    (run / "watch.json").write_text(json.dumps(found))
    train(mlp(), points(), out=run, resume=True, sample_every=2, **FEW)
    entries = json.loads((run / "watch.json").read_text())["previews"]
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8]  # and none with a path that the file chose
    assert max(entry.get("held_out_loss", 0) for entry in entries) < 1e9


def test_the_held_out_loss_grows_where_the_network_memorises(tmp_path: Path) -> None:
    few, others = as_data(points(16)), as_data(points(200)[100:])
    model, config = mlp(), TrainConfig(steps=1, batch_size=16)
    model.eval()
    before = loss_on(model, few, torch.arange(16), config)
    assert before == loss_on(model, few, torch.arange(16), config)  # nothing in it is random

    class Memory(nn.Module):
        """E[eps | x_t] of the 16 points: the training data itself."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (s[:, None] for s in VPSDE().marginal(t))
            distance = (x[:, None] - alpha[:, None] * few.x).square().sum(-1)
            nearest = torch.softmax(-distance / (2 * sigma**2), 1).to(x) @ few.x
            return (x - alpha * nearest) / sigma

    memory = ScoreModel(Memory(), VPSDE(), predicts="noise")
    seen, unseen = (loss_on(memory, d, torch.arange(len(d)), config) for d in (few, others))
    assert unseen > 2 * seen


def test_held_out_samples_never_reach_the_network(tmp_path: Path) -> None:
    data = as_data(torch.arange(40.0)[:, None].expand(-1, 2) * 1.0)
    trainer = Trainer(
        ScoreModel(build("mlp", shape=(2,), width=8), VPSDE()), data, TrainConfig(steps=9, batch_size=8, hold_out=0.25)
    )
    seen: set[int] = set()
    original = type(data).batch

    def batch(self: Any, index: Any) -> Tensor:
        seen.update(torch.as_tensor(index).tolist())
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(data), "batch", batch)
        for _ in trainer:
            pass
    assert seen == set(trainer.kept.tolist()) and len(trainer.held) == 10
    assert set(split(data, 0.25, 0)[1].tolist()) == set(trainer.held.tolist()) != set(split(data, 0.25, 1)[1].tolist())
    with pytest.raises(ValueError, match="30 samples, without the 10 held out"):
        Trainer(mlp(), data, TrainConfig(batch_size=32, hold_out=0.25))


def test_the_cost_is_that_of_the_updates_and_nothing_changes() -> None:
    model, data = mlp(), as_data(points())
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    cost = measure_cost(model, data, TrainConfig(steps=1000, batch_size=16), done=400)
    assert (cost.updates, cost.measured, cost.device) == (600, 3, "cpu")
    assert cost.parameters == sum(p.numel() for p in model.network.parameters())
    assert cost.seconds > 0 and cost.total == 600 * cost.seconds
    assert torch.equal(state, torch.get_rng_state()) and model.normalization is None
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())


def test_an_expensive_run_says_how_to_train_for_less() -> None:
    assert Cost(1, 1.0, 3, 100, "cpu").advice("large") == ""
    assert "medium or small" in Cost(1, 5.0, 3, 3000, "cpu").advice("large")
    assert "network-size" not in Cost(1, 5.0, 3, 3000, "cuda").advice("small")


class NeedsMore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("only for training")
        return self.layer(x)


def test_samples_that_fail_are_a_warning_and_training_goes_on(tmp_path: Path) -> None:
    network = NeedsMore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_try", lambda self, objective: False)
        with pytest.warns(UserWarning, match="no samples are drawn during training: only for training"):
            train(ScoreModel(network, VPSDE(), shape=(2,)), points(), out=tmp_path / "run", sample_every=2, **FEW)
    assert (tmp_path / "run/checkpoints/step-000008").is_dir()


def test_ctrl_c_leaves_samples_and_a_page_that_says_how_to_go_on(tmp_path: Path) -> None:
    loop, run = training_run.Meter.update, tmp_path / "run"

    def interrupt(self: Any, step: int) -> None:
        loop(self, step)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run.Meter, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(mlp(), points(), out=run, sample_every=100, **FEW)
    assert pixels(run / "samples/step-000003.png").shape[1] > 100
    page = (run / "index.html").read_text()
    assert f"sdediff train --resume --out {run}" in page and "refresh" not in page and page.count("<img") == 1


def test_the_command_says_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = training_run.Meter.update

    def interrupt(self: Any, step: int) -> None:
        loop(self, step)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training_run.Meter, "update", interrupt)
    monkeypatch.chdir(tmp_path)
    args = ["train", "--data", "moons", "--steps", "9", "--batch-size", "16", "--width", "8", "--out", "run"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 130
    assert re.search(r"[\d,]+ parameters, .* an update on cpu \(3 measured\): 9 updates take about", done.stdout)
    assert "stopped after update 3 of 9, which is saved" in done.stdout
    assert "picture run/samples/step-000003.png" in done.stdout and Path("run/samples/step-000003.png").is_file()
    assert "go on: sdediff train --resume --out run" in done.stdout


def test_the_page_loads_nothing_and_reloads_while_the_run_goes_on(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    losses = [(k, 1 / k) for k in range(1, 2000)]
    previews = [Preview(100 * k, tmp_path / "a.png", 0.5, 0.4) for k in range(1, 60)]
    pages = {s: training_page("<b>", "x & y", 2000, losses, previews, s, "image") for s in ("running", "done")}
    assert 'http-equiv="refresh"' in pages["running"] and "refresh" not in pages["done"]
    assert not re.search(r"https?:|src=\"(?!data:)|<link|<script", pages["running"])
    assert "<b>" not in pages["done"] and "x &amp; y" in pages["done"]
    assert pages["done"].count("<img") == 24 and "update 5,900" in pages["done"] and "update 100," in pages["done"]
    assert len(re.findall(r"[\d.]+,[\d.]+", re.findall(r'points="([^"]+)"', pages["done"])[0])) <= 600


def test_conditional_samples_have_their_classes(tmp_path: Path) -> None:
    data = load_data("digits")
    config = TrainConfig(steps=2, batch_size=16, labels=True, sample_every=2)
    model = default_model(data, network_settings={"classes": 10, "channels": 8, "blocks": 1})
    train(model, data, config, out=tmp_path / "run", progress=False)
    assert len(pixels(tmp_path / "run/samples/step-000002.png")) == 10 * 66 + 2  # a row for each class


def test_signals_and_vectors_have_pictures(tmp_path: Path) -> None:
    for name, shape in (("signal", (2, 16)), ("vector", (5,))):
        x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
        model = ScoreModel(build("mlp", shape=shape, width=8), VPSDE())
        train(model, x, out=tmp_path / name, steps=1, batch_size=8, sample_every=1, progress=False)
        assert (pixels(tmp_path / name / "samples/step-000001.png") < 200).mean() > 0.005  # lines are drawn


def test_trackers_that_take_images_get_them() -> None:
    class Tracker:
        def __init__(self, name: str) -> None:
            self.name, self.calls = name, list[Any]()

        def log_images(self, values: Any, step: int, **settings: Any) -> None:
            self.calls.append((values["samples"], step, settings))

    image = np.zeros((4, 6, 3), np.uint8)
    board, wandb, other = (Tracker(name) for name in ("tensorboard", "wandb", "csv"))
    for tracker in (board, wandb, other):
        _track_image(tracker, image, 7)
    assert board.calls[0][0].shape == (1, 4, 6, 3) and board.calls[0][1:] == (7, {"dataformats": "NHWC"})
    assert wandb.calls[0][0][0] is image and other.calls == []


@pytest.mark.parametrize(
    ("shape", "name", "sizes"),
    [((3, 32, 32), None, (0.9, 9, 28)), ((1, 28, 28), None, (0.2, 1.1, 4.5)), ((1, 16, 16), "dit", (4, 32, 130))],
)
def test_sizes_of_a_network_are_some_times_apart(shape: Any, name: Any, sizes: Any) -> None:
    counts = []
    for size in ("small", "medium", "large"):
        known, settings = default_settings(shape, name, size)
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in build(known, **settings).parameters()) / 1e6)
    assert all(0.6 * wanted < count < 1.7 * wanted for count, wanted in zip(counts, sizes, strict=True)), counts


def test_the_default_size_is_that_of_the_data_and_the_device() -> None:
    for shape, size in (((1, 8, 8), "medium"), ((1, 28, 28), "medium"), ((2,), "medium"), ((3, 32, 32), "large")):
        assert default_settings(shape) == default_settings(shape, size=size)
        assert default_size(shape, "cuda") == size
    assert default_size((3, 32, 32), "cpu") == "small"
    made = set_up({"network": {"size": "large", "blocks": 1}})
    assert made.model.network.settings["channels"] == 64 and made.model.network.settings["blocks"] == 1  # type: ignore[union-attr,index]
    with pytest.raises(ValueError, match="unknown size 'huge'"):
        set_up({"network": {"size": "huge"}})


def photos(folder: Path, n: int = 6) -> None:
    rng = np.random.default_rng(0)
    for k in range(n):
        path = folder / ("cat" if k % 2 else "ship") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)).save(path)


def test_a_folder_is_resized_and_trained_on_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"))
    few = ["--batch-size", "4", "--channels", "8", "--blocks", "1", "--steps", "1", "-q"]
    for name in ("one", "two"):  # resized once
        done = CliRunner().invoke(app, ["train", "--data", "photos", "--size", "8x16", *few, "--out", name])
        assert done.exit_code == 0, done.output
    assert load_data("photos-8x16").shape == (3, 8, 16)
    assert json.loads((tmp_path / "one/config.json").read_text())["data"]["class_names"] == ["cat", "ship"]
    photos(Path("photos"), 8)
    done = CliRunner().invoke(app, ["train", "--data", "photos", "--size", "8x16", *few])
    assert done.exit_code == 2 and "holds 6 images and photos has 8 now; remove photos-8x16" in done.stderr
    Path("photos-9x9").mkdir()
    Path("photos-9x9/mine.txt").write_text("x")
    done = CliRunner().invoke(app, ["train", "--data", "photos", "--size", "9", *few])
    assert done.exit_code == 2 and "photos-9x9 exists and does not hold photos at this size" in done.stderr
    for wrong in (["--data", "digits", "--size", "9"], ["--size", "many"]):
        done = CliRunner().invoke(app, ["train", *wrong, *few])
        assert done.exit_code == 2 and "--size" in done.stderr, done.output


def test_the_page_is_not_written_without_a_folder() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher, "training_page", lambda *_: sys.exit("written"))
        train(mlp(), points(), sample_every=1, **FEW)
