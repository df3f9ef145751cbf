from __future__ import annotations

import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.main import get_command

from sde_diffusion.cli import app
from sde_diffusion.cli.commands import train
from sde_diffusion.data import load_data
from sde_diffusion.storage.checkpoint import checkpoint_at
from sde_diffusion.storage.run_folder import checkpoints
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import default_model
from tests import command

run, refused = partial(command.invoke, "train"), partial(command.refused, "train")

TINY = ["--steps=4", "--batch-size=8", "--width=8", "--depth=1", "--schedule=constant"]
SMALL_UNET = ["--steps", "2", "--batch-size", "4", "--channels", "8", "--device", "cpu"]


def trained(*args: str) -> list[str]:
    """The lines that a successful training prints."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def config(out: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(out) / "config.json").read_text())
    return loaded


def test_the_help_says_which_embedding_a_network_gets() -> None:
    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    said = next(p.show_default for p in command.params if "--embedding" in p.opts)
    usual, edm = (default_model(load_data("moons"), predicts=predicts) for predicts in ("noise", "edm"))
    settings = [model.network.settings["embedding"] for model in (usual, edm)]
    assert said == f"{settings[0]}; with edm {settings[1]}"


def test_with_nothing_else_given_the_digits_are_learned_in_a_run_of_their_own() -> None:
    lines = trained("--sde", "vp", *SMALL_UNET)
    assert config("runs/digits-vp")["data"]["name"] == "digits"
    assert lines[-1] == "picture runs/digits-vp/samples/pf-ode-step-000002/samples.png"
    with Image.open(lines[-1].split(" ", 1)[1]) as picture:
        assert picture.size == (8 * 66 + 2, 8 * 66 + 2)
    assert lines[-2] == "next: sdediff sample runs/digits-vp --nfe 20"
    assert trained("--sde", "vp", *SMALL_UNET)[-1].startswith("picture runs/digits-vp-2/")
    assert checkpoint_at("runs/digits-vp").sha256 == checkpoint_at("runs/digits-vp-2").sha256


def test_every_option_reaches_the_run() -> None:
    options = {
        "steps": 3, "batch_size": 5, "lr": 0.01, "warmup": 1, "schedule": "constant",
        "weight_decay": 0.1, "clip": 0.5, "weight": "likelihood", "time_sampling": "uniform", "t_min": 0.001,
        "ema": 0.9,
        "seed": 7, "device": "cpu", "log_every": 2, "checkpoint_every": 1, "keep": 3,
        "precision": "bf16", "accumulate": 5, "tracker": "none", "snapshot_every": 2, "ema_widths": 0.1,
        "sample_every": 2, "hold_out": 0.1,
    }  # fmt: skip
    model = {
        "sde": "ve", "sigma_min": 0.02, "sigma_max": 9.0, "predicts": "edm", "width": 6,
        "depth": 2, "dropout": 0.25, "embedding": "fourier",
    }  # fmt: skip
    args = [f"--{k.replace('_', '-')}={v}" for k, v in {**options, **model}.items()]
    trained("--data", "rings", "--out", "here", *args)
    written = config("here")
    options["learning_rate"] = options.pop("lr")
    assert written["train"] == {
        **options,
        "drop_label": 0.1,
        "drop_condition": 0.1,
        "condition_noise": 0.0,
        "labels": False,
        "flip": False,
        "augment": 0.0,
        "ema_widths": [0.1],
        "normalize": "auto",
        "kl_weight": 0.001,
        "commitment": 0.25,
        "perceptual": 0.1,
        "adversarial": 0.0,
        "adversarial_after": 500,
    }
    assert written["model"]["sde"] == {
        "name": "ve", "settings": {"sigma_min": 0.02, "sigma_max": 9.0}
    }  # fmt: skip
    assert written["model"]["predicts"] == "edm" and written["model"]["sigma_data"] == 1.0
    network = written["model"]["network"]["settings"]
    assert (network["width"], network["depth"], network["dropout"]) == (6, 2, 0.25)
    assert network["embedding"] == "fourier"
    assert [c.name for c in checkpoints(Path("here"))] == [
        "step-000003", "step-000002", "step-000001"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spelling", "name", "value", "kept"),
    [
        ("--lr", "learning_rate", "0.25", 0.25),
        ("--learning-rate", "learning_rate", "0.25", 0.25),
        ("--ema-width", "ema_widths", "0.1", (0.1,)),
        ("--ema-widths", "ema_widths", "0.1", (0.1,)),
        ("--ema", "ema", "0.5", 0.5),
    ],
)
def test_both_spellings_reach_the_options(
    spelling: str, name: str, value: str, kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        """Instead of a training."""

    def seen(model: object, data: object, config: TrainConfig, **_: object) -> None:
        assert getattr(config, name) == kept
        raise StopError

    monkeypatch.setattr(train, "run_training", seen)
    assert isinstance(run("--data", "moons", spelling, value, *TINY).exception, SystemExit)
    monkeypatch.setenv("SDEDIFF_TRACEBACK", "1")
    assert isinstance(run("--data", "moons", spelling, value, *TINY).exception, StopError)


def test_a_run_and_a_file_with_the_names_of_earlier_versions_are_read() -> None:
    trained("--data", "moons", "--out", "old", *TINY, "--time-sampling", "uniform", "--steps", "4")
    content = config("old")
    content["train"]["times"] = content["train"].pop("time_sampling")
    Path("old/config.json").write_text(json.dumps(content))
    trained("--resume", "--out", "old", "--steps", "6")
    assert config("old")["train"]["time_sampling"] == "uniform" and "times" not in config("old")["train"]
    Path("old.toml").write_text('times = "uniform"\ndata = "moons"\n')
    trained("--config", "old.toml", "--out", "new", *TINY)
    assert config("new")["train"]["time_sampling"] == "uniform"
    with pytest.raises(ValueError, match="'times' is called 'time_sampling' now"):
        TrainConfig().with_options({"times": "uniform"})


def test_augmentation_gives_the_network_a_context_and_samples_need_none() -> None:
    lines = trained("--augment", "0.12", "--out", "here", *SMALL_UNET)
    assert lines[-1].startswith("picture here/")
    assert config("here")["train"]["augment"] == 0.12
    assert config("here")["model"]["network"]["settings"]["context"] == 9


def test_the_seed_is_that_of_the_first_weights_too() -> None:
    def start(out: str, seed: str) -> torch.Tensor:
        trained("--data", "moons", "--out", out, "--seed", seed, *TINY)
        return load_file(f"{out}/checkpoints/step-000000/model.safetensors")["enter.weight"]

    assert torch.equal(first := start("one", "1"), start("same", "1"))
    assert not torch.equal(first, start("other", "2"))


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_where_alpha_ends_at_0_the_velocity_is_learned(name: str) -> None:
    trained("--data", "moons", "--sde", name, "--out", "run", *TINY)
    assert config("run")["model"]["predicts"] == "velocity"


def test_a_resumed_run_is_as_if_it_had_not_stopped() -> None:
    common = ["--data", "moons", "--checkpoint-every", "2", *TINY]
    trained("--out", "whole", *common, "--steps", "8")
    trained(*common)
    lines = trained("--resume", "--steps", "8")
    assert lines[-1].startswith("picture runs/moons-vp/samples/pf-ode-step-000008")
    for file in ("model", "ema", "optimizer"):
        one, other = (
            load_file(Path(out) / "checkpoints/step-000008" / f"{file}.safetensors")
            for out in ("whole", "runs/moons-vp")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    # the same command line again, and one that contradicts the run
    trained("--resume", "--out", "runs/moons-vp", *common, "--steps", "9", "--sde", "vp")
    for given, stored in (["--sde", "ve"], "sde"), (["--lr", "1"], "learning_rate"):
        assert f"{stored}: " in refused("--resume", *given)
    assert "another data" in refused("--resume", "--data", "rings")


def test_your_own_data_needs_only_its_path() -> None:
    Path("my data").mkdir()
    rng = np.random.default_rng(0)
    np.save("my data/points.npy", rng.normal(size=(20, 3)).astype(np.float32))
    lines = trained("--data", "my data/points.npy", *TINY)
    assert lines[-1] == "picture runs/points-vp/samples/pf-ode-step-000004/samples.png"
    for k in range(4):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"my data/{k}.png")
    trained("--data", "my data", *SMALL_UNET)
    assert checkpoint_at("runs/my-data-vp").model["shape"] == [3, 4, 4]


def test_a_run_is_repeated_by_the_file_it_keeps() -> None:
    options = [
        "--data",
        "moons",
        "--sde",
        "ve",
        "--sigma-max",
        "9",
        "--ema",
        "0.9",
        "--ema",
        "0.99",
        "--ema-width",
        "0.1",
    ]
    trained("--out", "one", *options, *TINY, "--time-sampling", "log-normal", "--seed", "3")
    trained("--config", "one/config.toml", "--out", "two")
    first, second = config("one"), config("two")
    assert first == second and first["train"]["ema"] == [0.9, 0.99]
    for file in ("model", "ema-0.99", "power-0.1"):
        names = [f"{out}/checkpoints/step-000004/{file}.safetensors" for out in ("one", "two")]
        assert Path(names[0]).read_bytes() == Path(names[1]).read_bytes()


def test_what_is_typed_wins_over_the_file_and_the_file_over_the_run() -> None:
    Path("o.toml").write_text(
        'data = "rings"\nout = "here"\nsteps = 3\nbatch_size = 8\n[network]\nwidth = 8\ndepth = 1\n'
    )
    trained("--config", "o.toml", "--steps", "2", "--schedule", "constant")
    written = config("here")
    assert (written["data"]["name"], written["train"]["steps"]) == ("rings", 2)
    assert written["model"]["network"]["settings"]["width"] == 8
    trained("--resume", "--config", "o.toml")
    assert config("here")["train"] == {**written["train"], "steps": 3}
    Path("o.toml").write_text('out = "here"\nclip = 0.5\n')
    assert "train (clip: 1.0 in the run, 0.5 now)" in refused("--resume", "--config", "o.toml")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trained("--resume", "--config", "o.toml", "--force", "--steps", "4")
    assert config("here")["train"]["clip"] == 0.5


def test_labels_make_a_conditional_network() -> None:
    trained("--labels", "--drop-label", "0.2", "--out", "run", *SMALL_UNET)
    assert config("run")["model"]["network"]["settings"]["classes"] == 10
    trained("--resume", "--out", "run", "--steps", "3")
    np.save("points.npy", np.zeros((9, 2), np.float32))
    assert "labels=True, but points.npy has no labels" in refused("--labels", "--data", "points.npy", *TINY)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "stepz = 4",
            "o.toml: unknown key stepz = 4; allowed: accumulate, adversarial, adversarial_after, augment, autoencoder",
        ),
        ('steps = "four"', "o.toml: steps must be a whole number; got 'four'"),
        ("steps = 0", "o.toml: steps must be at least 1; got 0"),
        ("sde = 3", "o.toml: sde must be text; got 3"),
        ("network = 3", "o.toml: network must be a table of settings, [network]; got 3"),
        ("steps = ", "o.toml is not TOML: Invalid value"),
        ("[network]\ncolour = 3", "has no setting 'colour'"),
        ('[network]\nchannels = "many"', "the network unet: channels must be of the kind of 32; got 'many'"),
        ('[process]\nbeta_max = "high"', "the process vp: beta_max must be of the kind of 20.0; got 'high'"),
        ('[network]\nname = "unit"', "unknown network 'unit'; did you mean 'unet'"),
    ],
)
def test_a_bad_file_of_options_is_one_sentence(toml: str, message: str) -> None:
    Path("o.toml").write_text(toml)
    assert message in refused("--config", "o.toml")
    assert [p.name for p in Path().iterdir()] == ["o.toml"]


def bad_data() -> None:
    np.save("nan.npy", np.array([[0.0, np.nan]]))
    Path("mixed").mkdir()
    for side in (4, 6):
        Image.new("L", (side, side)).save(f"mixed/{side}.png")
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no image")
    np.save("odd.npy", np.zeros((2, 3, 9, 9), np.float32))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--sde pv", "unknown SDE 'pv'. Choices: cosine, ddpm, edm, flow, subvp, ve, vp"),
        ("--data mons", "'mons'; did you mean 'moons'?"),
        ("--predicts nois", "did you mean 'noise'?"),
        ("--weight simpel", "did you mean 'simple'?"),
        ("--schedule cosin", "did you mean 'cosine'?"),
        ("--device gpu", "unknown device 'gpu'"),
        ("--steps 0", "steps must be at least 1; got 0"),
        ("--lr -1", "learning_rate must be positive; got -1.0"),
        ("--data moons --channels 8", "the network mlp has no setting 'channels'"),
        ("--embedding logg", "unknown time embedding 'logg'; did you mean 'log'?"),
        ("--sde flow --beta-max 2", "the process flow has no setting 'beta_max'"),
        ("--sde cosine --predicts noise", "use predicts='velocity' or 'data'"),
        ("--data mnist", "say where they are with data_dir (--data-dir)"),
        ("--data mnist --data-dir gone", "no MNIST in gone"),
        ("--data gone.npy", "no data at gone.npy"),
        ("--data nan.npy", "not finite, the first at index (0, 1)"),
        ("--data mixed", "mixed/6.png is 6 x 6 gray, but mixed/4.png is 4 x 4 gray"),
        ("--data broken", "cannot read the image broken/a.png"),
        ("--out mixed", "mixed exists already; continue it with resume=True (--resume)"),
        ("--config gone.toml", "no config file at gone.toml"),
        ("--accumulate 3", "128; it must be a multiple of 3"),
        ("--data mixed/4.png --precision half", "unknown precision 'half'"),
        ("--resume", "nothing to resume: no run in runs/"),
        ("--resume --out gone", "nothing to resume at gone"),
    ],
)
def test_bad_input_is_one_sentence_and_starts_nothing(args: str, message: str) -> None:
    bad_data()
    before = sorted(Path().rglob("*"))
    assert message in refused(*args.split())
    assert sorted(Path().rglob("*")) == before


def test_a_torn_config_is_refused() -> None:
    trained("--data", "moons", *TINY)
    Path("runs/moons-vp/config.json").write_text('{"format": 1, ')
    assert "config.json is torn" in refused("--resume")


def test_a_torn_checkpoint_is_passed_over_with_a_warning() -> None:
    trained("--data", "moons", "--checkpoint-every", "2", *TINY)
    torn = Path("runs/moons-vp/checkpoints/step-000004/model.safetensors")
    os.truncate(torn, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("--resume")
    assert result.exit_code == 0, result.output
    assert f"warning: {torn} is torn: 100 bytes" in result.stderr
    assert "using step-000002 instead" in result.stderr


def test_several_processes_need_the_folder_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "give the folder of the run by --out" in refused("--data", "moons", *TINY)


def test_an_interruption_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_training", interrupted)
    result = run("--data", "moons", *TINY)
    assert result.exit_code == 130
    assert "sdediff train --resume --out runs/moons-vp" in result.stdout
    assert result.stderr == "stopped\n"
