"""A keyword is an argument, a condition of the network, or an error that names the nearest of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    GaussianMixture,
    Guided,
    ScoreModel,
    decode,
    encode,
    log_likelihood,
    sample,
    tune,
)
from sde_diffusion.comparison.comparison import compare
from sde_diffusion.guidance.classifier import ClassifierGuided
from sde_diffusion.models.conditions import condition_names
from sde_diffusion.networks import build
from solvers import SOLVERS

SDE = VPSDE()
MIXTURE = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.2, sde=SDE)
LABELLED = ScoreModel(build("mlp", shape=(2,), width=8, depth=1, classes=3), SDE, shape=(2,))


class Any_(nn.Module):
    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return x * sum(float(value.sum()) for value in condition.values() if isinstance(value, Tensor))


CALLS = {
    "sample": lambda **k: sample(MIXTURE, 4, nfe=2, **k),
    "tune": lambda **k: tune(MIXTURE, 2, shape=(1,), **k),
    "compare": lambda **k: compare(MIXTURE, {"ddim": SOLVERS["ddim"]}, [2], n=4, paired=2, **k),
    "encode": lambda **k: encode(MIXTURE, torch.zeros(1, 1), **k),
    "decode": lambda **k: decode(MIXTURE, torch.zeros(1, 1), **k),
    "log_likelihood": lambda **k: log_likelihood(MIXTURE, torch.zeros(1, 1), **k),
}


@pytest.mark.parametrize(
    ("name", "keyword", "nearest"),
    [
        ("sample", "sampler", None), ("sample", "solvr", "solver"), ("sample", "num_steps", "steps"),
        ("sample", "batchsize", "batch_size"), ("tune", "noise_sample", "noise_samples"),
        ("tune", "heldout", "held_out"), ("compare", "pair", "paired"), ("compare", "seeds", "seed"),
        ("encode", "tolerence", "tolerance"),
        ("decode", "sover", "solver"), ("log_likelihood", "n_probe", "n_probes"),
    ],
)  # fmt: skip
def test_a_mistyped_argument_is_named_with_the_nearest(name: str, keyword: str, nearest: str | None) -> None:
    hint = rf".*did you mean '{nearest}'" if nearest else ""
    with pytest.raises(TypeError, match=rf"^{name} has no argument '{keyword}'{hint}"):
        CALLS[name](**{keyword: torch.zeros(4)})


def test_a_mistyped_condition_is_named_with_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"'labels', and the network takes the conditions .*did you mean 'label'"):
        sample(LABELLED, 2, nfe=2, labels=torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"condition 'lable' is unknown.*did you mean 'label'"):
        sample(LABELLED, 2, nfe=2, condition={"lable": torch.tensor([0, 1])})
    with pytest.raises(TypeError, match="given twice"):
        sample(LABELLED, 2, nfe=2, condition={"label": torch.tensor([0, 1])}, label=torch.tensor([0, 1]))


def test_both_ways_to_give_a_condition_are_one() -> None:
    label = torch.tensor([0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in LABELLED.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    by_keyword = sample(LABELLED, 3, nfe=3, label=label)
    assert torch.equal(by_keyword, sample(LABELLED, 3, nfe=3, condition={"label": label}))
    assert not torch.equal(by_keyword, sample(LABELLED, 3, nfe=3))
    guided = sample(Guided(LABELLED, 2.0), 3, nfe=6, label=label)
    assert not torch.equal(guided, by_keyword)


def test_a_network_of_any_condition_takes_all_but_near_misses() -> None:
    model = ScoreModel(Any_(), SDE, shape=(2,))
    assert sample(model, 2, nfe=2, prompt=torch.ones(2, 3)).shape == (2, 2)
    with pytest.raises(TypeError, match=r"no argument 'solvers'; if the network takes it, pass condition=\{'solvers'"):
        sample(model, 2, nfe=2, solvers=torch.ones(2))
    assert sample(model, 2, nfe=2, condition={"solvers": torch.ones(2), "seed": torch.ones(2)}).shape == (2, 2)


def test_the_names_are_those_of_the_network() -> None:
    assert condition_names(MIXTURE) == frozenset()
    assert condition_names(LABELLED) == condition_names(Guided(LABELLED, 2.0)) == {"label", "context"}
    assert condition_names(ScoreModel(Any_(), SDE)) is None
    assert condition_names(ScoreModel(lambda x, t, y, *, scale: x, SDE)) == {"y", "scale"}
    assert condition_names(ScoreModel(lambda x, t: x, SDE)) == frozenset()
    pushed = ClassifierGuided(MIXTURE, lambda x, t, y: x[:, 0], 1.0, name="y")
    assert condition_names(pushed) == {"y"}
