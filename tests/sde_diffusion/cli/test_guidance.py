"""Labels and guidance from the command line, on a network of labelled digits that a few steps have trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion.data import load_data
from sde_diffusion.guidance import Guided, projected, rescaled
from sde_diffusion.likelihood import log_likelihood
from sde_diffusion.likelihood.report import chosen_rows, likelihood_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.sampler import noise_for, sample
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.checkpoint import load
from tests.command import invoke, refused, run

TRAIN = "train --data digits --sde vp --batch-size 16 --lr 0.01 --channels 8 --ema 0.5 --device cpu"
LABELS = "--labels --drop-label 0.3"
TUNE = "tune run --nfe 4 --noise-samples 16 --held-out 8"


def read(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of labelled digits, a weaker one, and one without labels."""
    folder = tmp_path_factory.mktemp("trained")
    run(f"{TRAIN} {LABELS} --steps 12 --out {folder}/run")
    run(f"{TRAIN} {LABELS} --steps 3 --seed 5 --out {folder}/weak")
    run(f"{TRAIN} --steps 1 --out {folder}/plain")
    return folder


@pytest.fixture(autouse=True)
def here(trained: Path, empty_directory: None) -> None:
    for name in ("run", "weak", "plain"):
        shutil.copytree(trained / name, name)


RULES = {
    "--label 3,5 --guidance 2": {},
    "--label 3,5 --guidance 2 --guidance-interval 0.3,3": {"interval": [0.3, 3.0]},
    "--label 3,5 --guidance 2 --rescale 0.7": {"rescale": 0.7},
    "--label 3,5 --guidance 2 --apg": {"eta_parallel": 0.0, "norm": 15.0},
    "--label 3,5 --guidance 2 --apg --eta-parallel 0.5": {"eta_parallel": 0.5, "norm": 15.0},
    "--label 3,5 --guidance 2 --autoguide weak": {"guide": None},
    "--guidance 2 --autoguide weak": {"guide": None},
}


def by_hand(options: str) -> ScoreModel:
    """The model that the options mean, in the terms of the library."""
    model = load("run")
    if "interval" in options:
        return Guided(model, 2.0, interval=(0.3, 3.0))
    if "rescale" in options:
        return Guided(model, combine=rescaled(2.0, 0.7), on="output")
    if "apg" in options:
        return Guided(model, combine=projected(2.0, 0.5 if "eta" in options else 0.0))
    return Guided(model, 2.0, guide=load("weak") if "autoguide" in options else None)


@pytest.mark.parametrize("options", RULES, ids=lambda o: o.replace("--", "").replace(" ", "-"))
def test_sample_draws_what_the_library_draws_and_its_record_draws_it_again(options: str) -> None:
    shown = run(f"sample run --n 4 --nfe 8 --batch-size 3 --out made {options}")
    assert "8 evaluations each" in shown
    record = read("made/samples.json")
    rule = record.get("guidance_rule", {})
    assert record["guidance"] == 2 and rule.keys() == RULES[options].keys()
    assert all(rule[name] == value for name, value in RULES[options].items() if value is not None)
    assert len(record["grid"]["times"]) - 1 == 4 and record["nfe"]["most"] == 8  # two evaluations for each step
    condition = {"label": torch.tensor([3, 5, 3, 5])} if "label" in options else {}
    x = np.load("made/samples.npz")["x"]
    expected = sample(by_hand(options), 4, nfe=8, batch_size=3, condition=condition)
    assert torch.allclose(torch.from_numpy(x), expected, atol=1e-5)
    plain = sample(load("run"), 4, steps=4, batch_size=3, condition=condition)
    assert not torch.allclose(expected, plain, atol=1e-2)
    guide = "--autoguide weak" if "autoguide" in options else ""
    assert "bit-equal to the samples of the record" in run(f"sample run --record made/samples.json --out b {guide}")


def test_the_guide_of_a_record_is_named_and_compared() -> None:
    run("sample run --n 2 --nfe 4 --guidance 2 --autoguide weak --out made")
    record = "sample run --record made/samples.json --out again"
    assert "name it: --autoguide RUN" in refused(record)
    assert "made with a guide of the weights" in refused(f"{record} --autoguide run")
    run("sample run --n 2 --nfe 4 --out without")
    assert "leave out --autoguide" in refused("sample run --record without/samples.json --autoguide weak")
    assert "leave out --guidance" in refused(f"{record} --autoguide weak --guidance 3")
    Path("runs").mkdir()
    shutil.move("weak", "runs/weak")
    run("sample run --n 2 --nfe 4 --guidance 2 --autoguide runs/weak --out other")
    assert "bit-equal" in run("sample run --record other/samples.json --out same")  # runs/ needs no word


def test_compare_measures_the_guided_model() -> None:
    options = "--solvers ddim --nfe 8 --n 12 --paired 4 --reference-steps 16"
    run(f"compare run {options} --label 3,5 --guidance 2 --rescale 0.7 --out made")
    found = read("made/compare.json")
    assert found["labels"] == [3, 5] and found["guidance"] == 2 and found["guidance_rule"] == {"rescale": 0.7}
    model = by_hand("--rescale")
    label = torch.tensor([3, 5, 3, 5])
    end, _ = converged(model, noise_for(model, (1, 8, 8), seeds_of(0, 4)), steps=16, label=label)
    x = sample(model, 4, solver="ddim", nfe=8, label=label)
    expected = float(rms(x.double() - model.units.to_data(end)).mean())
    assert found["rows"][0]["error"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_evaluate_draws_the_guided_samples_in_any_number_of_processes(launch: Callable[..., Any]) -> None:
    options = "--label all --guidance 2 --apg --nfe 4 --n 110 --batch-size 40 --features pixels --metrics kid --draws 4"
    run(f"evaluate run {options} --processes 1 --out one")
    found = read("one/evaluation.json")
    assert found["source"]["labels"] == list(range(10)) and found["source"]["guidance_rule"]["eta_parallel"] == 0
    assert found["runs"][0]["nfe"] == 4
    launch(2, lambda: run(f"evaluate run {options} --out two") and None)
    assert read("two/evaluation.json")["runs"][0]["figures"] == found["runs"][0]["figures"]
    # The same as of the samples that sample writes.
    run("sample run --label all --guidance 2 --apg --nfe 4 --n 110 --batch-size 40 --out s")
    run("evaluate s --reference digits --features pixels --metrics kid --draws 4 --out files")
    of_files = read("files/evaluation.json")["runs"][0]["figures"]["kid"]["value"]
    assert found["runs"][0]["figures"]["kid"]["value"] == pytest.approx(of_files, rel=1e-3)
    run(f"evaluate run {options.replace('--guidance 2 --apg', '')} --processes 1 --out unguided")
    assert read("unguided/evaluation.json")["runs"][0]["figures"] != found["runs"][0]["figures"]


def test_likelihood_is_conditional_on_a_class_or_on_the_labels_of_the_data() -> None:
    options = "likelihood run --n 4 --solver adams --steps 6 --t-min 1e-3 --trace hutchinson --batch-size 3"
    run(f"{options} --label own --elbo 3 --out own")
    digits = load_data("digits", split="test")
    assert digits.labels is not None
    labels = digits.labels[chosen_rows(digits, 4, 0)]
    assert len(set(labels.tolist())) > 1
    expected = log_likelihood(
        load("run"), likelihood_data(digits, 4, 0)[0], trace="hutchinson", n_probes=2, seeds=seeds_of(0, 4),
        solver="adams", steps=6, t_min=1e-3, label=labels,
    )  # fmt: skip
    found = read("own/likelihood.json")
    assert found["labels"] == "own" and found["nats"]["mean"] == pytest.approx(float(expected.nats.mean()), rel=1e-6)
    run(f"{options} --label 3 --guidance 2 --guidance-interval 0.3,3 --out three")
    three = read("three/likelihood.json")
    assert three["labels"] == [3] and three["guidance_rule"] == {"interval": [0.3, 3.0]}
    assert three["nats"]["mean"] != pytest.approx(found["nats"]["mean"], rel=1e-6)
    assert three["nfe"] == 2 * found["nfe"]
    run(f"{options} --out none")
    assert "labels" not in read("none/likelihood.json")


@pytest.mark.slow
def test_a_solver_is_tuned_for_guided_samples_and_used_for_these_alone() -> None:
    shown = run(f"{TUNE} --label all --guidance 2")
    assert "--label all --guidance 2.0 --nfe 4" in shown
    found = read("run/tuned/nfe-4-label-w2.json")
    assert found["condition"] == "label-w2" and found["settings"]["guidance"] == 2
    assert "by tuned, 4 evaluations" in run("sample run --label 3 --guidance 2 --nfe 4 --n 2 --out a")
    for other in ("", "--label 3", "--label 3 --guidance 3", "--label 3 --guidance 2 --rescale 0.5"):
        name = f"o{len(other)}"
        said = invoke(f"sample run --nfe 4 --n 2 --out {name} {other}")
        assert "by pf-ode" in said.stdout and "the solver tuned for 4 evaluations is for label-w2" in said.stderr
    for name in ("--nfe 5", "--nfe 4 --solver pf-ode"):
        assert "tuned" not in invoke(f"sample run {name} --n 2 --out o{name[-1]}").stderr
    assert "with the same --label and --guidance" in refused(
        "sample run --label 3 --guidance 3 --solver tuned --nfe 4 --n 2 --out b"
    )
    shutil.copy("run/tuned/nfe-4-label-w2.json", "run/tuned/nfe-4.json")
    assert "is made for label-w2" in refused("sample run --solver tuned --nfe 4 --n 2 --out c")
    compared = "compare run --label 3 --guidance 2 --solvers pf-ode,tuned --nfe 4 --n 8 --paired 4 --reference-steps 16"
    assert "tuned" in run(compared)
    run("tune run --nfe 4 --minutes 0.02 --guidance 2 --autoguide weak")
    assert "by tuned" in run("sample run --guidance 2 --autoguide weak --nfe 4 --n 2 --out d")


GIVEN = """
import torch
from sde_diffusion import ScoreModel, VPSDE
from sde_diffusion.guidance import Guided
from sde_diffusion.networks import build


def built():
    torch.manual_seed(0)
    network = build("mlp", shape=(2,), width=8, depth=1, classes=3)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return ScoreModel(network, VPSDE(), shape=(2,))


def own():
    return ScoreModel(lambda x, t, label: x * 0.1 * label[:, None], VPSDE(), shape=(2,))


def unlabelled():
    return ScoreModel(lambda x, t: 0 * x, VPSDE(), shape=(2,))
"""


def test_a_model_of_ones_own_takes_labels() -> None:
    Path("given.py").write_text(GIVEN)
    run("sample --model given.py:built --label all --guidance 3 --nfe 6 --n 6 --out a")
    assert read("a/samples.json")["labels"] == [0, 1, 2]
    run("sample --model given.py:own --label 7,1 --nfe 6 --n 6 --out b")
    assert read("b/samples.json")["labels"] == [7, 1]
    assert "null=" in refused("sample --model given.py:own --label 7,1 --guidance 2 --nfe 6 --n 6 --out c")
    assert "number of classes" in refused("sample --model given.py:own --label all --nfe 6 --n 6 --out c")
    assert "cannot take one" in refused("sample --model given.py:unlabelled --label 1 --nfe 6 --n 6 --out c")


COMMANDS = {
    "sample": "sample {run} --n 2 --nfe 4",
    "compare": "compare {run} --solvers ddim --nfe 4 --n 4 --paired 2 --reference-steps 8",
    "tune": "tune {run} --nfe 4 --noise-samples 16 --held-out 8",
    "evaluate": "evaluate {run} --n 8 --nfe 4 --features pixels --metrics kid --processes 1",
    "likelihood": "likelihood {run} --n 2 --solver adams --steps 2",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_options_that_mean_nothing_are_refused_by_every_command(command: str) -> None:
    on = command.format(run="run")
    guided = f"{on} --label 3 --guidance 2"
    for options, message in {
        "--guidance-interval 3,0.5": "0 <= LOW < HIGH, both finite; got 3,0.5",
        "--guidance-interval 0.5,0.5": "0 <= LOW < HIGH",
        "--guidance-interval 0.5": "takes 2 numbers separated by a comma",
        "--rescale 1.5": "from 0 to 1; got 1.5",
        "--rescale=-0.1": "from 0 to 1; got -0.1",
        "--rescale 0.5 --apg": "not both",
        "--eta-parallel 0.5": "add --apg",
        "--autoguide nowhere": "no model at nowhere",
        "--autoguide plain": "trained with no classes and the model with 10",
    }.items():
        assert message in refused(f"{guided} {options}"), options
    assert "is a finite number; got nan" in refused(f"{on} --label 3 --guidance nan")
    assert "there is none: give --guidance" in refused(f"{on} --label 3 --rescale 0.5")
    assert "needs labels to guide to" in refused(f"{on} --guidance 2")
    assert "the class '12'" in refused(f"{on} --label 12")
    unlabelled = command.format(run="plain")
    assert "trained without labels" in refused(f"{unlabelled} --label 3")


def test_files_and_error_budgets_have_no_guidance() -> None:
    run("sample run --n 12 --nfe 2 --out s")
    assert "leave out --label" in refused("evaluate s --reference digits --label 3")
    assert "leave out --label" in refused("evaluate run --budget --label 3")
    data = "np.npy"
    np.save(data, np.zeros((20, 1, 8, 8), np.float32))
    assert "has none; name a class" in refused(f"likelihood run --label own --data {data} --n 2")
