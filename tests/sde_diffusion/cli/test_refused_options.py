"""Options without effect, and work that cannot succeed, are refused before the work, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.cli.commands import evaluate as evaluate_command
from sde_diffusion.cli.commands import sample as sample_command
from sde_diffusion.evaluation.metrics import METRICS, Sets, measure
from solvers.errors import InputError
from tests import command


def files() -> None:
    """What the commands below read."""
    np.save("x.npy", np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32))
    np.savez("set.npz", x=np.zeros((16, 1, 8, 8), np.uint8))
    Path("images").mkdir()
    for k in range(2):
        Image.new("L", (8, 8), 100 * k).save(f"images/{k}.png")


def refused(*args: str) -> str:
    """The message of a refusal, after which every file is as before."""
    before = sorted(Path().rglob("*"))
    message = command.refused(*args)
    assert sorted(Path().rglob("*")) == before
    return message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("inspect x.npy --force", "--force would have no effect: it lets --picture replace"),
        ("inspect x.npy --data-dir .", "x.npy has no files there"),
        ("inspect digits --data-dir .", "applies to mnist, cifar10, mnist-pairs; digits has no files"),
        ("train --data x.npy --data-dir . --out o", "x.npy has no files there"),
        ("train --layout channels-first --out o", "digits has one already"),
        ("train --data images/ --layout channels-first --out o", "images is a folder"),
        ("train --force --out o", "--force would have no effect: it lets --resume change options"),
        ("train --drop-label 0.2 --out o", "--drop-label would have no effect without --labels"),
        ("train --snapshot-every 5 --out o", "--snapshot-every would have no effect without --ema-width"),
        ("sample bundled --partial", "--partial would have no effect"),
        ("sample bundled --partial --grid karras", "--partial would have no effect"),
        ("likelihood bundled --probes 4", "--probes would have no effect: the trace is exact"),
        ("likelihood bundled --trace exact --probe gaussian", "--probe would have no effect: the trace is exact"),
        ("likelihood bundled --steps 5", "--steps would have no effect: rk45 chooses its own steps"),
        ("likelihood bundled --solver heun --steps 5 --tolerance 0.1", "--tolerance would have no effect: heun has"),
        ("likelihood bundled --data-dir .", "digits has no files there"),
        ("compare bundled --data-dir .", "digits has no files there"),
        ("doctor bundled --data-dir .", "digits has no files there"),
        ("prepare images --split test", "--split would have no effect: it applies to hf:NAME"),
        ("prepare images --image-column a --label-column b", "--image-column, --label-column would have no effect"),
        ("prepare images --layout channels-last", "--layout would have no effect"),
        ("prepare x.npy --size 8", "--size would have no effect"),
        ("prepare x.npy --skip-bad --background red", "--background, --skip-bad would have no effect"),
        ("tune bundled --minutes 1 --noise-samples 32", "--noise-samples would have no effect: with --minutes"),
        ("tune bundled --minutes 1 --noises 32", "--noises would have no effect: with --minutes"),
        ("tune bundled --noises 3 --held-out 4", "got 3 and 4"),
        ("tune bundled --minutes 1 --held-out 32", "--held-out would have no effect: with --minutes"),
        ("restore deblur images/0.png --factor 2", "--factor would have no effect: it applies to superres"),
        ("restore superres images/0.png --blur 2", "--blur would have no effect: it applies to deblur"),
        ("restore superres images/0.png --mask images/0.png", "superres takes no --mask; only inpaint does"),
        ("restore superres images/0.png --n 99999999999999999999", "--n must be at most"),
        ("doctor bundled --n -1", "--n must be at least 1"),
        ("show reverse bundled --n 99999999999999999999", "--n must be at most"),
        ("doctor bundled --n 8 --seed 99999999999999999999", "seed must be at most"),
        ("likelihood bundled --n 1 --seed -1", "seed must be at least 0"),
        ("restore superres images/0.png --simulate --run bundled --seed 99999999999999999999", "seed must be at most"),
        ("evaluate set.npz --reference digits --metrics kid --seed 99999999999999999999", "seed must be at most"),
        ("show schedule bundled", "takes no model"),
        ("show schedule --nfe 5 --n 3", "--nfe, --n would have no effect"),
        ("show forward bundled --solver ddim", "--solver would have no effect"),
        ("show score bundled --seed 1", "--seed would have no effect"),
        ("show reverse bundled --sde vp", "--sde would have no effect"),
        ("evaluate bundled --weights gone.pth", "only inception and dinov2 take weights (--weights)"),
        ("evaluate bundled --force", "--force would have no effect: it lets --save-reference"),
        ("evaluate bundled --data-dir .", "digits has no files there"),
        ("evaluate set.npz --reference digits --n 5 --nfe 4", "--n, --nfe would have no effect: set.npz holds samples"),
        ("evaluate set.npz --reference digits --solver ddim", "--solver would have no effect"),
        ("evaluate set.npz --reference digits --steps 2 --eta 0", "--steps, --eta would have no effect"),
        ("evaluate set.npz --reference digits --grid karras", "--grid would have no effect"),
        ("evaluate set.npz --reference digits --processes 1 --batch-size 3", "--batch-size, --processes would have no"),
        ("evaluate bundled --reference r.safetensors --split test", "--split would have no effect: the reference r.sa"),
        ("evaluate bundled --reference r.safetensors --data-dir .", "--data-dir would have no effect: the reference"),
        ("evaluate set.npz --reference r.safetensors --device cpu", "--device would have no effect"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(command: str, message: str) -> None:
    files()
    assert message in refused(*command.split())


def test_a_resumed_network_keeps_its_units_also_with_force() -> None:
    files()
    train = "train --data x.npy --steps 1 --batch-size 4 --width 8 --depth 1 --out run"
    assert CliRunner().invoke(app, train.split()).exit_code == 0
    resume = "train --resume --out run --steps 2 --force --normalize"
    assert "keeps the units that it was trained in" in refused(*resume.split(), "none")
    assert CliRunner().invoke(app, [*resume.split(), "auto"]).exit_code == 0


def test_the_same_options_are_taken_where_they_have_an_effect() -> None:
    files()
    for line in (
        "inspect x.npy --picture p.png --force",
        "prepare images --size 4 --mode L --skip-bad --background red --out a",
        "likelihood bundled --n 1 --trace hutchinson --probes 2 --solver heun --steps 1",
        "show schedule --sde vp",
    ):
        command.run(line)


def test_a_solver_without_an_estimate_has_no_profile_and_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(sample_command.generate, "run_job", draw)
    assert "ddim has no error estimate" in refused("sample", "bundled", "--solver", "ddim", "--nfe", "6", "--profile")


# What evaluate does with few samples.


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("d", [3, 17])
def test_each_metric_exists_from_its_least_number_of_samples_and_not_below(name: str, d: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(100, d, generator=random)
    p = torch.randn(100, 5, generator=random).softmax(1)
    least, real = METRICS[name].least(d)

    def measured(n: int, m: int) -> None:
        with pytest.warns(UserWarning, match="few"):
            measure(Sets(rows[:n], rows[-m:], probabilities=p[:n], draws=20), [name])

    measured(least, 50)
    measured(50, real)
    for n, m in ((least - 1, 50), *([(50, real - 1)] if real > 1 else [])):
        with pytest.raises(InputError):
            measure(Sets(rows[:n], rows[-m:], probabilities=p[:n], draws=20), [name])


FEW = ["evaluate", "bundled", "--n", "20", "--nfe", "8", "--draws", "2", "--processes", "1"]


@pytest.mark.filterwarnings("ignore:.*dimensions are few")
@pytest.mark.parametrize("chosen", [[], ["--metrics", "all"]])
def test_with_few_samples_the_metrics_that_exist_are_shown(chosen: list[str]) -> None:
    result = CliRunner().invoke(app, [*FEW, *chosen, "--out", "o"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "left out: frechet of 64 features takes 64 samples or more, not 20" in said
    figures = json.loads(Path("o/evaluation.json").read_text())["runs"][0]["figures"]
    assert "frechet" not in figures and {"kid", "precision"} <= set(figures)


def test_a_metric_that_was_chosen_and_does_not_exist_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sampler(*_: Any) -> None:
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(evaluate_command, "FeatureSampler", sampler)
    said = refused(*FEW, "--metrics", "frechet,kid", "--save-reference", "r.safetensors")
    assert (
        "frechet of 64 features takes 64 samples or more, not 20; these metrics take fewer: --metrics kid,mmd," in said
    )
    assert "takes 12 samples or more, not 5" in refused(*FEW, "--n", "5", "--metrics", "neighbours")
    assert "kid of 64 features takes 3 samples or more, not 2" in refused(*FEW, "--n", "2")
