"""Evaluations give the same number whoever does the work, and the number that exact models must have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sde_diffusion import evaluate, sample
from sde_diffusion.data import Data, as_data, load_data
from sde_diffusion.evaluation import Drawn, FeatureSampler, SamplingSettings, error_budget, plot, quality, read_samples
from sde_diffusion.evaluation.budget import TERMS, last_time, loss_by_time, prior_bounds
from sde_diffusion.evaluation.features import Pixels, make_extractor
from sde_diffusion.evaluation.metrics import Moments, frechet_distance
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import features_of
from sde_diffusion.models.analytic import Gaussian, GaussianMixture
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.sampling import generate
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.locate import find_model
from solvers import solve

VARIANCES = torch.tensor([1.5, 0.8, 0.3])


@pytest.fixture(scope="module")
def exact() -> Gaussian:
    return Gaussian(torch.tensor([0.5, -0.2, 0.1]), VARIANCES, sde=VPSDE())


@pytest.fixture(scope="module")
def data(exact: Gaussian) -> Data:
    return as_data(exact.draw(4_000, seed=10**6).float(), name="gaussian")


@pytest.fixture(scope="module")
def reference(data: Data) -> FeatureStatistics:
    return FeatureStatistics.of(data, Pixels())


def test_processes_share_the_work_and_give_the_same_bits(launch: Callable[..., Any]) -> None:
    means = 0.4 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, extractor = GaussianMixture(means, 0.1, sde=VPSDE()), make_extractor("digits")
    drawing = SamplingSettings("ddpm", nfe=5, batch_size=16)

    def drawn() -> Drawn | None:
        sampler = FeatureSampler(model, extractor)
        with Pool(sampler.work, Processes.join("cpu")) as pool:
            return None if pool is None else replace(sampler, pool=pool).draw(drawing, 50)

    one, p, nfe = FeatureSampler(model, extractor).draw(drawing, 50)
    (two, q, _), other = launch(2, drawn)
    assert other is None
    assert torch.equal(one, two) and p is not None and q is not None and torch.equal(p, q)
    assert nfe.tolist() == [5] * 50
    # And they are the features of the samples that the library draws.
    x = sample(model, 50, solver="ddpm", nfe=5, batch_size=16)
    torch.testing.assert_close(one, features_of(x, extractor).features, rtol=1e-5, atol=1e-5)
    halves = Moments.of(one[:32]) + Moments.of(two[32:])
    whole = Moments.of(one)
    torch.testing.assert_close(halves.scatter, whole.scatter, rtol=1e-12, atol=1e-10)


def test_noised_data_is_a_start_that_keeps_its_seed(exact: Gaussian, data: Data) -> None:
    x0 = data.x[:6]
    sampler = FeatureSampler(exact, Pixels())
    found = sampler.draw(SamplingSettings("pf-ode", nfe=30, batch_size=4), 6, x0).features
    eps = VPSDE().prior((6, 3), seeds=range(6))
    ode = VPSDE().probability_flow(exact)
    torch.testing.assert_close(found, solve(ode, VPSDE().perturb(x0, 1.0, eps), nfe=30).x, rtol=1e-5, atol=1e-5)


def test_the_figures_of_exact_samples_are_those_of_real_ones(exact: Gaussian, reference: FeatureStatistics) -> None:
    sampler = FeatureSampler(exact, Pixels())
    good, bad = quality(
        sampler,
        [SamplingSettings("pf-ode", nfe=20), SamplingSettings("ddim", nfe=3)],
        1000,
        reference,
        metrics=["frechet", "kid"],
    )
    assert good.nfe == 20 and bad.nfe == 3
    for name in ("frechet", "kid"):
        assert abs(good.figures[name].value) < 4 * good.figures[name].standard_error
        assert bad.figures[name].value > good.figures[name].interval[1]
    assert good.as_dict()["figures"]["kid"]["value"] == good.figures["kid"].value


def test_evaluate_takes_samples_or_features(exact: Gaussian, reference: FeatureStatistics) -> None:
    x = exact.draw(1000).float() + 0.3
    found = evaluate(x, reference, metrics=["frechet"], draws=5)
    plain = frechet_distance(x, reference.moments)
    assert found["frechet"].value + found["frechet"].bias == pytest.approx(plain, rel=1e-12)
    assert found["frechet"].value == pytest.approx(3 * 0.09, rel=0.3)
    assert evaluate(features_of(x, Pixels()), reference, metrics=["frechet"], draws=5) == found
    assert "inception-score" not in evaluate(x, reference, metrics=["all"], draws=2)
    with pytest.raises(ValueError, match="KID, which has no bias"):
        evaluate(x[:2], reference, metrics=["frechet"])
    with pytest.raises(ValueError, match=r"samples of shape \(4,\)"):
        evaluate(torch.zeros(9, 4), reference)


def test_budget_of_a_gaussian_is_what_its_closed_form_says(
    exact: Gaussian, data: Data, reference: FeatureStatistics
) -> None:
    sampler = FeatureSampler(exact, Pixels())
    found = error_budget(sampler, SamplingSettings("ddim", nfe=6), 1000, reference, data, fine=40, draws=10)
    assert list(found.terms) == list(TERMS)
    assert sum(e.value for e in found.terms.values()) == pytest.approx(found.total.value, rel=1e-9)
    score, floor = found.terms["score error"], found.terms["Monte-Carlo floor"]
    assert abs(score.value) < 4 * score.standard_error + 4 * floor.standard_error  # the score is exact
    assert found.terms["discretisation"].value > 0.8 * found.total.value
    # The floor: tr C / n for the mean, and about as much for the covariance.
    trace = float(VARIANCES.sum()) / 1000
    assert trace < floor.value < 3 * trace
    assert found.times[0] == last_time(exact, SamplingSettings("ddim", nfe=6)) > found.times[1] > 0


def test_a_prior_that_is_far_off_is_seen(data: Data, reference: FeatureStatistics) -> None:
    # With beta_max = 2 and a mean of 0.5 the prior N(0, I) is visibly not the law of x_1.
    sde = VPSDE(beta_max=2.0)
    model = Gaussian(torch.tensor([0.5, -0.2, 0.1]), VARIANCES, sde=sde)
    sampler = FeatureSampler(model, Pixels())
    found = error_budget(sampler, SamplingSettings("pf-ode", nfe=30), 1000, reference, data, fine=40, draws=10)
    prior = found.terms["prior mismatch"]
    assert prior.value > 0.8 * found.total.value and prior.value > 4 * prior.standard_error
    assert prior.value < 1.5 * found.prior_w2**2  # the flow of this model expands little
    assert found.prior_kl > 0.01


def test_prior_bounds_hold_for_gaussian_data() -> None:
    for sde in (VPSDE(), VPSDE(beta_max=4.0)):
        mean, variance = 0.7, 0.25
        alpha, sigma = (float(c) for c in sde.marginal(1.0))
        kl, w2 = prior_bounds(sde, 2 * (mean**2 + variance), 2)
        v = alpha**2 * variance + sigma**2
        exact_kl = 2 * 0.5 * (v + (alpha * mean) ** 2 - 1 - np.log(v))
        exact_w2 = np.sqrt(2 * ((alpha * mean) ** 2 + (np.sqrt(v) - 1) ** 2))
        assert 0 < exact_kl <= kl < 4 * exact_kl
        assert 0 < exact_w2 <= w2 < 2 * exact_w2


def test_held_out_loss_of_an_exact_gaussian(exact: Gaussian, data: Data) -> None:
    # E|eps - E[eps|x_t]|^2 / d = mean of alpha^2 c / (alpha^2 c + sigma^2) over the variances c.
    for t, found in loss_by_time(exact, data):
        alpha, sigma = (float(c) for c in exact.sde.marginal(t))
        expected = float((alpha**2 * VARIANCES / (alpha**2 * VARIANCES + sigma**2)).mean())
        assert abs(found.value - expected) < 4 * found.standard_error + 1e-12


def test_budgets_that_make_no_sense_are_refused(exact: Gaussian, data: Data, reference: FeatureStatistics) -> None:
    sampler = FeatureSampler(exact, Pixels())
    with pytest.raises(ValueError, match="adaptive solvers have none"):
        error_budget(sampler, SamplingSettings("rk45"), 100, reference, data)
    with pytest.raises(ValueError, match="is not what the reference 'gaussian' was made of"):
        error_budget(sampler, SamplingSettings(nfe=5), 100, reference, as_data(torch.zeros(5, 3), name="zeros"))
    with pytest.raises(ValueError, match="got n=0"):
        sampler.draw(SamplingSettings(nfe=5), 0)


def images(path: Path, x: Tensor, suffix: str = "png") -> Path:
    path.mkdir()
    for k, image in enumerate(x):
        Image.fromarray(image[0].numpy()).save(path / f"{k:03d}.{suffix}")
    return path


def test_a_folder_an_npz_of_bytes_and_one_of_floats_are_one_thing(tmp_path: Path) -> None:
    data = load_data("digits")
    x = data.x[:20]
    folder = images(tmp_path / "images", x)
    np.savez(tmp_path / "bytes.npz", x=x.numpy())
    np.save(tmp_path / "floats.npy", x.numpy() / 255)
    expected = data.batch(slice(0, 20))
    assert torch.equal(read_samples(folder), expected)
    assert torch.equal(read_samples(tmp_path / "bytes.npz"), expected)
    torch.testing.assert_close(read_samples(tmp_path / "floats.npy", (0.0, 1.0)), expected, rtol=0, atol=1e-6)


def test_what_cannot_be_compared_is_refused_or_warned_of(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.linspace(0, 1, 128).reshape(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"which values are black and white is not stated: give --range -1,1 or"):
        read_samples(tmp_path / "floats.npy")
    np.save(tmp_path / "bytes-as-floats.npy", np.linspace(0, 255, 128).reshape(2, 1, 8, 8))
    with pytest.raises(ValueError, match="values from 0 to 255, far outside the stated range 0 to 1"):
        read_samples(tmp_path / "bytes-as-floats.npy", (0.0, 1.0))
    with pytest.raises(ValueError, match="the smaller first; got 1, 0"):
        read_samples(tmp_path / "floats.npy", (1.0, 0.0))
    folder = images(tmp_path / "lossy", load_data("digits").x[:3], "jpg")
    with pytest.warns(UserWarning, match="3 files below .* are JPEG"):
        read_samples(folder)
    np.save(tmp_path / "broken.npy", np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="6 of 6 values are not finite"):
        read_samples(tmp_path / "broken.npy")
    np.save(tmp_path / "points.npy", np.full((3, 2), 7.0))
    assert torch.equal(read_samples(tmp_path / "points.npy"), torch.full((3, 2), 7.0))  # vectors have no range


def test_samples_of_our_own_have_a_range(tmp_path: Path) -> None:
    drawn = generate.draw(find_model("bundled"), 4, SamplingSettings(nfe=2))
    sample_record.save_samples(drawn, tmp_path / "own")
    for path in (tmp_path / "own", tmp_path / "own" / "samples.npz"):
        torch.testing.assert_close(read_samples(path), drawn.x)


def test_the_picture_of_a_curve(exact: Gaussian, reference: FeatureStatistics, tmp_path: Path) -> None:
    ways = [SamplingSettings(solver, nfe=nfe) for solver in ("ddim", "pf-ode") for nfe in (4, 8)]
    sampler = FeatureSampler(exact, Pixels())
    points = quality(sampler, ways, 200, reference, metrics=["frechet"], draws=4)
    plot(tmp_path / "curve.png", points, "frechet")
    with Image.open(tmp_path / "curve.png") as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # a line for each of two solvers
    with pytest.raises(ValueError, match="no figure 'kid'"):
        plot(tmp_path / "other.png", points, "kid")
