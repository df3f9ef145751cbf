"""Models of data in other units are the same models: samples, densities, bounds, codes and metrics follow the units."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion import (
    VPSDE,
    Gaussian,
    ScoreModel,
    decode,
    encode,
    load,
    log_likelihood,
    sample,
    train,
)
from sde_diffusion.comparison import compare
from sde_diffusion.data import as_data
from sde_diffusion.data.normalization import IDENTITY, Normalization, measure_normalization
from sde_diffusion.evaluation import FeatureSampler, SamplingSettings
from sde_diffusion.evaluation.features import Pixels
from sde_diffusion.guidance import DDNM, Mask
from sde_diffusion.guidance.twisted import twisted_particles
from sde_diffusion.likelihood.lower_bound import continuous_elbo, elbo
from sde_diffusion.networks import build
from sde_diffusion.storage.checkpoint import describe_model, export, rebuild
from sde_diffusion.training.defaults import default_model
from solvers import SOLVERS
from solvers.errors import InputError

SHIFT, SCALE = torch.tensor([300.0, -2.0, 0.5]), torch.tensor([10.0, 0.1, 3.0])
UNITS = Normalization("standard", SHIFT, SCALE)
MEAN, COVARIANCE = torch.tensor([0.3, -0.2, 0.1]), torch.diag(torch.tensor([1.0, 0.7, 0.4]))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def inner() -> Gaussian:
    return Gaussian(MEAN, COVARIANCE, sde=VPSDE())


@pytest.fixture
def scaled(inner: Gaussian) -> ScoreModel:
    """The same law in other units; as a ScoreModel, because a Gaussian takes its own density at t = 1."""
    return ScoreModel(inner.network, inner.sde, "data", (3,), normalization=UNITS)


def test_samples_are_those_of_the_inner_model_in_units_of_the_data(inner: Gaussian, scaled: ScoreModel) -> None:
    for solver in ("pf-ode", "sde"):
        torch.testing.assert_close(
            sample(scaled, 50, solver=solver, nfe=12),
            UNITS.to_data(sample(inner, 50, solver=solver, nfe=12)),
            rtol=0,
            atol=0,
        )


def test_log_likelihood_is_that_of_the_law_in_units_of_the_data(scaled: ScoreModel) -> None:
    law = torch.distributions.MultivariateNormal(
        (SHIFT + SCALE * MEAN).double(), (COVARIANCE * SCALE[:, None] * SCALE[None]).double()
    )
    x = law.mean + torch.linalg.cholesky(law.covariance_matrix).matmul(noise(20, 3).double()[..., None])[..., 0]
    found = log_likelihood(scaled, x, tolerance=1e-7)
    torch.testing.assert_close(found.nats, law.log_prob(x), rtol=0, atol=5e-3)
    bound = elbo(scaled, x, steps=200, draws=2).nats
    continuous = continuous_elbo(scaled, x, draws=8).nats
    for nats in (bound, continuous):
        assert float((nats - law.log_prob(x)).mean()) == pytest.approx(0, abs=0.3)


def test_levels_keep_their_probability(scaled: ScoreModel) -> None:
    # 256 levels from -1 to 1; the units of the network do not change the probability of a level.
    law = Gaussian(torch.zeros(3), torch.diag(torch.tensor([0.09, 0.04, 0.01])), sde=VPSDE())
    plain = ScoreModel(law.network, law.sde, "data", (3,))
    wide = Gaussian(torch.zeros(3), torch.eye(3), sde=VPSDE())
    units = Normalization("standard", torch.zeros(3), torch.tensor([0.3, 0.2, 0.1]))
    x = (((noise(200, 3) * 0.1 + 1) * 127.5).round() / 127.5 - 1).double()
    found = [
        float(elbo(model, x, steps=300, bins=256).nats.mean())
        for model in (plain, ScoreModel(wide.network, wide.sde, "data", (3,), normalization=units))
    ]
    assert found[0] == pytest.approx(found[1], abs=0.15)


def test_codes_are_standard_normal_and_come_back(scaled: ScoreModel) -> None:
    x = UNITS.to_data(MEAN + noise(400, 3) * COVARIANCE.diag().sqrt())
    code = encode(scaled, x)
    assert float(code.mean(0).abs().max()) < 0.2 and float((code.std(0) - 1).abs().max()) < 0.12
    torch.testing.assert_close(decode(scaled, code), x, rtol=1e-3, atol=1e-3)


def test_features_and_comparisons_are_in_units_of_the_data(scaled: ScoreModel, inner: Gaussian) -> None:
    sampler = FeatureSampler(scaled, Pixels())
    x = sampler.draw(SamplingSettings("pf-ode", nfe=10), 6).features
    started = sampler.draw(SamplingSettings("pf-ode", nfe=60), 6, x).features
    torch.testing.assert_close(x, sample(scaled, 6, nfe=10), rtol=1e-5, atol=1e-4)
    assert started.shape == (6, 3) and float((started - SHIFT).abs().div(SCALE).max()) < 5
    one = Normalization("standard", torch.zeros(3), torch.full((3,), 10.0))
    ten = ScoreModel(inner.network, inner.sde, "data", (3,), normalization=one)
    plain = ScoreModel(inner.network, inner.sde, "data", (3,))
    solvers, data = {"ddim": SOLVERS["ddim"]}, inner.draw(500).float()
    a = compare(plain, solvers, [6], n=64, paired=16, data=data, reference_steps=100)
    b = compare(ten, solvers, [6], n=64, paired=16, data=10 * data, reference_steps=100)
    assert b.rows[0].error == pytest.approx(10 * (a.rows[0].error or 0), rel=1e-4)
    assert a.rows[0].frechet is not None and b.rows[0].frechet is not None
    assert b.rows[0].frechet.value == pytest.approx(100 * a.rows[0].frechet.value, rel=1e-4)


@pytest.mark.parametrize(
    "x",
    [
        300 + 10 * noise(4000, 5).double(),
        1e12 * noise(500, 3).double(),
        1e-4 * noise(500, 2, 4, 4).double() - 1,
        (noise(400, 1, 6, 6) * 500 - 1000).short(),
        noise(50, 2, 9).double() * torch.tensor([[3.0], [1e-3]]).double(),
    ],
    ids=["temperatures", "large", "small", "int16", "signals"],
)
def test_what_the_network_sees_has_unit_scale(x: Tensor) -> None:
    data = as_data(x)
    z = measure_normalization(data).to_model(data.batch(slice(None))).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(len(z)).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(len(z)).double(), rtol=0.02, atol=0)
    ranged = measure_normalization(data, "range").to_model(data.batch(slice(None)))
    assert float(ranged.min()) == pytest.approx(-1, abs=1e-3) and float(ranged.max()) == pytest.approx(1, abs=1e-3)


def test_an_entry_that_never_changes_and_bytes() -> None:
    found = measure_normalization(as_data([[1.0, 7.0, 0.0], [3.0, 7.0, 4.0]]))
    assert found.shift.tolist() == [2.0, 7.0, 2.0] and found.scale.tolist() == [1.0, 1.0, 2.0]
    assert measure_normalization(as_data([[7.0], [7.0]])).scale.tolist() == [1.0]
    pixels = as_data(np.array([[[0, 255], [0, 255]]] * 2, np.uint8))
    assert measure_normalization(pixels, "range").is_identity and measure_normalization(pixels, "none").is_identity
    assert measure_normalization(pixels, "standard").scale.flatten().tolist() == [1.0]
    with pytest.raises(InputError, match="unknown normalization 'standrd'; did you mean 'standard'"):
        measure_normalization(pixels, "standrd")


def test_training_measures_keeps_and_undoes_the_units(tmp_path: Path) -> None:
    points = 300 + 10 * noise(512, 2)
    model = ScoreModel(build("mlp", shape=(2,), width=32, depth=2), VPSDE(), predicts="velocity")
    options: dict[str, Any] = {"batch_size": 64, "progress": False, "weight": "velocity", "device": "cpu"}
    trained = train(model, points, steps=300, out=tmp_path / "run", **options)
    assert trained.units.describe().startswith("standard, per entry: shifts 300.1 to 300.6")
    loaded = load(tmp_path / "run")
    x = sample(loaded, 500, seed=1)
    assert torch.equal(x, sample(trained, 500, seed=1))
    assert abs(float(x.mean()) - 300) < 6 and abs(float(x.std()) - 10) < 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["normalize"] == "auto" and config["model"]["normalization"]["method"] == "standard"
    # A resumed run keeps its units; a model that has some keeps them on other data.
    fresh = ScoreModel(build("mlp", shape=(2,), width=32, depth=2), VPSDE(), predicts="velocity")
    resumed = train(fresh, points, steps=301, out=tmp_path / "run", resume=True, **options)
    assert resumed.units.entry() == trained.units.entry()
    again = train(copy.deepcopy(trained), 2 * points, steps=1, **options)
    assert again.units.entry() == trained.units.entry()
    with pytest.raises(InputError, match=r"train \(normalize: 'auto' in the run, 'none' now\)"):
        train(fresh, points, steps=302, out=tmp_path / "run", resume=True, normalize="none", **options)


def test_options_decide_the_units() -> None:
    points = as_data(300 + 10 * noise(64, 2))
    once: dict[str, Any] = {"steps": 1, "batch_size": 8, "progress": False, "device": "cpu"}

    def units(predicts: str = "velocity", sigma_data: float = 1.0, **options: Any) -> Normalization:
        network = build("mlp", shape=(2,), width=8, depth=1)
        return train(ScoreModel(network, VPSDE(), predicts, sigma_data=sigma_data), points, **once, **options).units

    assert units(normalize="none").is_identity
    assert units(normalize="range").method == "range"
    assert units("edm", 300.0).is_identity  # who gives sigma_data gives that of the data as they are
    assert units("edm").method == "standard"
    assert default_model(points).units.entry() == units().entry()


def test_descriptions_of_before_are_read_and_broken_ones_refused(tmp_path: Path) -> None:
    model = default_model(as_data(300 + 10 * noise(64, 2)), network_settings={"width": 8})
    entry = describe_model(model)
    assert rebuild(entry).units.entry() == model.units.entry()
    path = export(model, tmp_path / "m.safetensors")
    assert load(path).units.entry() == model.units.entry()
    old = {key: value for key, value in entry.items() if key != "normalization"}
    assert rebuild(old).units is IDENTITY  # type: ignore[arg-type]
    for change, message in (
        ({"scale": [1.0]}, "needs 2 shifts and scales; it has 2 and 1"),
        ({"scale": [1.0, 0.0]}, "finite, positive scales"),
        ({"method": "magic"}, "unknown normalization 'magic'"),
        ({"shape": [-2]}, "of shape"),
        ({"shape": [1, 2]}, "shifts of shape"),
    ):
        broken = {**entry, "normalization": {**(entry["normalization"] or {}), **change}}
        with pytest.raises(InputError, match=message):
            rebuild(broken)  # type: ignore[arg-type]


def test_log_det_is_the_sum_over_entries() -> None:
    assert UNITS.log_det((3,)) == pytest.approx(math.log(10 * 0.1 * 3))
    assert IDENTITY.log_det((3, 4)) == 0


def test_observations_are_in_units_of_the_data(inner: Gaussian) -> None:
    units = Normalization("standard", torch.tensor([300.0, 290.0, 280.0]), torch.full((3,), 10.0))
    scaled = ScoreModel(inner.network, inner.sde, "data", (3,), normalization=units)
    mask, y = Mask(torch.tensor([True, False, True])), torch.tensor([[0.4, 0.0, -0.3]])
    far = torch.tensor([[304.0, 0.0, 277.0]])
    found = sample(DDNM(scaled, mask, far, 0.5), 20, solver="dpm++2m-sde", nfe=15)
    same = sample(DDNM(inner, mask, y, 0.05), 20, solver="dpm++2m-sde", nfe=15)
    torch.testing.assert_close(found, units.to_data(same), rtol=0, atol=1e-3)
    particles = twisted_particles(scaled, mask, far, 2.0, particles=50, steps=10).x
    same = twisted_particles(inner, mask, y, 0.2, particles=50, steps=10).x
    torch.testing.assert_close(particles, units.to_data(same), rtol=0, atol=1e-2)
    uneven = ScoreModel(inner.network, inner.sde, "data", (3,), normalization=UNITS)
    with pytest.raises(InputError, match="scales of their own, which an observation cannot follow"):
        DDNM(uneven, mask, far, 0.5)
