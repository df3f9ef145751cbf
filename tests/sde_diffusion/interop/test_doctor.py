"""The doctor names planted faults and finds none in right models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import DDPM, EDM, VESDE, VPSDE, CosineVPSDE, DiscreteModel, Flow, GaussianMixture, ScoreModel, load
from sde_diffusion.data import load_data
from sde_diffusion.interop import from_denoiser, from_velocity
from sde_diffusion.interop.doctor import examine
from sde_diffusion.storage.locate import BUNDLED
from solvers.errors import InputError

SCALED = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).tolist()


def means(scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * (torch.rand(6, 16, generator=generator) * 2 - 1) + shift


@cache
def exact(sde: Any, scale: float = 1.0, shift: float = 0.0) -> GaussianMixture:
    """Six points in [-1, 1]^16, scaled and shifted, with a little noise."""
    return GaussianMixture(means(scale, shift), 0.05 * scale, sde=sde)


@cache
def held(scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return exact(VPSDE(), scale, shift).draw(64, seed=1)


class Net(nn.Module):
    """A function as a module with a parameter, so that it has a dtype."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=dtype))
        self.function = function

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.one * self.function(x, t)


def at(call: Any, time: Callable[[Tensor], Tensor] = lambda t: t) -> Callable[[Tensor, Tensor], Tensor]:
    """A call of an exact model with another time."""
    return lambda x, t: call(x, time(t.double()).clamp(0, 1)).to(x.dtype)


@cache
def bundled() -> tuple[ScoreModel, Tensor]:
    return load(BUNDLED), load_data("digits", split="test").batch(torch.arange(24))


VP, COSINE = VPSDE(), CosineVPSDE()

RIGHT: dict[str, Callable[[], tuple[ScoreModel, Tensor]]] = {
    "noise on VP": lambda: (ScoreModel(at(exact(VP).noise), VP, "noise"), held()),
    "data on VE": lambda: (exact(VESDE()), held()),
    "velocity on cosine": lambda: (ScoreModel(at(exact(COSINE).velocity), COSINE, "velocity"), held()),
    "score on VP": lambda: (ScoreModel(at(exact(VP).score), VP, "score"), held()),
    "flow matching": lambda: (
        from_velocity(lambda t, x: -exact(Flow()).velocity(x, 1 - t.double()).float(), shape=(16,)),
        held(),
    ),
    "EDM denoiser": lambda: (
        from_denoiser(lambda x, s: exact(EDM(80.0)).denoise(x, s.double() / 80), sigma_max=80.0),
        held(),
    ),
    "discrete steps of Stable Diffusion": lambda: (
        DiscreteModel(at(exact(DDPM(betas=SCALED)).noise, lambda i: (i + 1) / 1000), DDPM(betas=SCALED), rounded=False),
        held(),
    ),
    "data of scale 5 around 3": lambda: (ScoreModel(at(exact(VP, 5.0, 3.0).noise), VP, "noise"), held(5.0, 3.0)),
    "data of scale 0.02": lambda: (ScoreModel(at(exact(VP, 0.02).noise), VP, "noise"), held(0.02)),
    "the bundled digits": bundled,
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_models_are_healthy(name: str) -> None:
    model, data = RIGHT[name]()
    found = examine(model, data)
    assert found.healthy, (found.findings, found.ratio)
    assert max(found.ratio) < 1.1


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.drop(at(exact(VP).noise)(x, t))


class Coupled(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = at(exact(VP).noise)(x, t)
        return out + 0.2 * (out - out.mean(0))


FAULTS: dict[str, tuple[Callable[[], tuple[ScoreModel, Tensor]], str, str]] = {
    "noise called data": (
        lambda: (ScoreModel(at(exact(VP).noise), VP, "data"), held()), "parametrization", "predicts='noise'",
    ),
    "data called noise": (
        lambda: (ScoreModel(at(exact(VP).denoise), VP, "noise"), held()), "parametrization", "predicts='data'",
    ),
    "velocity called noise": (
        lambda: (ScoreModel(at(exact(VP).velocity), VP, "noise"), held()), "parametrization", "predicts='velocity'",
    ),
    "noise called velocity": (
        lambda: (ScoreModel(at(exact(COSINE).noise), COSINE, "velocity"), held()), "parametrization",
        "predicts='noise'",
    ),
    "score called noise": (
        lambda: (ScoreModel(at(exact(VP).score), VP, "noise"), held()), "parametrization", "predicts='score'",
    ),
    "velocity of the other sign": (
        lambda: (ScoreModel(lambda x, t: -at(exact(Flow()).velocity)(x, t), Flow(), "velocity"), held()),
        "parametrization", "change the sign",
    ),
    "time reversed": (
        lambda: (ScoreModel(at(exact(VP).noise, lambda t: 1 - t), VP), held()), "time", "1 - t",
    ),
    "flow matching not reversed": (
        lambda: (
            from_velocity(lambda t, x: exact(Flow()).velocity(x, 1 - t.double()).float(), "forward"), held()
        ), "time", "1 - t",
    ),
    "an index network given t": (
        lambda: (ScoreModel(at(exact(VP).noise, lambda i: i / 1000), VP), held()), "time", "times larger",
    ),
    "a t network given an index": (
        lambda: (
            DiscreteModel(at(exact(DDPM()).noise, lambda t: t), DDPM(), rounded=False), held()
        ), "time", "times smaller",
    ),
    "linear betas called cosine": (
        lambda: (ScoreModel(at(exact(VP).noise), COSINE), held()), "schedule", "beta from 0.1 to 20",
    ),
    "scaled_linear called linear": (
        lambda: (
            DiscreteModel(
                at(exact(DDPM(betas=SCALED)).noise, lambda i: (i + 1) / 1000), DDPM(), rounded=False
            ), held(),
        ), "schedule", "Stable Diffusion's scaled_linear",
    ),
    "data in [0, 1]": (
        lambda: (ScoreModel(at(exact(VP).noise), VP), (held() + 1) / 2), "data range", "2 x - 1",
    ),
    "data in [0, 255]": (
        lambda: (ScoreModel(at(exact(VP).noise), VP), (held() + 1) * 127.5), "data range", "127.5",
    ),
    "a network for [0, 1]": (
        lambda: (ScoreModel(at(exact(VP, 0.5, 0.5).noise), VP), held()), "data range", "(x + 1) / 2",
    ),
    "latents without their scale": (
        lambda: (ScoreModel(at(exact(VP).noise), VP), held() / 0.18215), "latents", "0.18215",
    ),
    "data that are not normalised": (
        lambda: (ScoreModel(at(exact(VP, 1 / 0.58).noise), VP), 40 * held()), "latents", "standard deviation",
    ),
    "dropout in training mode": (lambda: (ScoreModel(WithDropout(), VP).train(), held()), "training mode", "eval()"),
    "float16 that overflows": (
        lambda: (ScoreModel(Net(lambda x, t: 1e4 * x * 1e4, torch.float16), VP), held()), "not finite", "bfloat16",
    ),
    "two dtypes": (
        lambda: (ScoreModel(nn.Bilinear(16, 1, 16).double(), VP), held().float()), "call", "by hand",
    ),
    "a sum over the batch": (lambda: (ScoreModel(Coupled(), VP), held()), "batch", "one sample at a time"),
    "time that does not arrive": (
        lambda: (ScoreModel(at(exact(VP).noise, lambda t: torch.full_like(t, 0.3)), VP), held()),
        "time ignored", "reaches the network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_named(name: str) -> None:
    make, fault, cure = FAULTS[name]
    model, data = make()
    found = examine(model, data)
    named = {finding.fault: finding for finding in found.findings}
    assert fault in named, (found.findings, dict(list(found.readings.items())[:4]))
    assert cure in named[fault].cure
    assert named[fault].measured


def test_the_linear_denoiser_does_not_know_the_sample() -> None:
    """At high noise the best denoiser of N(0, I) returns 0. The mean of 23 others has 24 / 23 times its error."""
    data = torch.randn(24, 64, generator=torch.Generator().manual_seed(5))
    found = examine(ScoreModel(lambda x, t: torch.zeros_like(x), VP, "data"), data)
    assert found.ratio[-1] == pytest.approx(23 / 24, abs=0.02)


@pytest.mark.slow
def test_rates_over_samples_and_seeds() -> None:
    """No false alarm on right models and every planted fault named, for three draws of the data and of the noise."""
    alarms, missed, largest = [], [], 0.0
    for seed, n in enumerate((16, 24, 64)):
        for name, make in RIGHT.items():
            model, data = make()
            if name != "the bundled digits" or seed == 0:
                found = examine(model, some(data, n, seed), seed=seed)
                alarms += [(name, seed, f.fault) for f in found.findings]
                largest = max(largest, *found.ratio)
        for name, (plant, fault, _) in FAULTS.items():
            model, data = plant()
            named = {f.fault for f in examine(model, some(data, n, seed), seed=seed).findings}
            missed += [(name, seed, named)] if fault not in named else []
    assert (alarms, missed) == ([], [])
    assert largest < 1.1


def some(data: Tensor, n: int, seed: int) -> Tensor:
    return data[torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:n]]


def test_an_untrained_network_is_not_explained_away() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    found = examine(ScoreModel(lambda x, t: 3 * layer(x), VP), held())
    assert [f.fault for f in found.findings if f.fault not in ("time ignored",)] == ["unexplained"]


def test_nothing_of_the_model_is_changed() -> None:
    model = ScoreModel(WithDropout(), VP).train()
    examine(model, held())
    assert model.training and model.network.drop.training


@pytest.mark.parametrize("data", [torch.zeros(3, 16), torch.full((16, 16), torch.nan)])
def test_bad_data_are_refused(data: Tensor) -> None:
    with pytest.raises(InputError, match="at least 8 finite samples"):
        examine(exact(VP), data)
