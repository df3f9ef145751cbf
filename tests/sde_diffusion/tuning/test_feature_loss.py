"""Tuning on distances of features: their derivatives, what is minimised and recorded, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sde_diffusion import VPSDE, Gaussian, GaussianMixture
from sde_diffusion.cli import app
from sde_diffusion.cli.commands.compare import note_on_loss
from sde_diffusion.data.normalization import Normalization
from sde_diffusion.evaluation.features import CustomExtractor, InRange, make_extractor
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.tuned_solver import load_tuned, save_tuned, tuned_loss
from sde_diffusion.tuning import tune, tuned_for
from sde_diffusion.tuning.feature_loss import FeatureLoss, loss_for
from sde_diffusion.tuning.fit import TableFit, TableParameters, run, sensitivities
from solvers import SOLVERS, solve
from solvers.errors import InputError
from solvers.fitted.compile import compile_table


def mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    return GaussianMixture(torch.randn(6, 4, dtype=dtype, generator=g), std=0.15, sde=VPSDE())


def first_squared(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0] ** 2, x[:, 0] + 0.1 * x[:, 1]], 1)


def fit_of(model: GaussianMixture, n: int = 8) -> TableFit:
    x1 = model.sde.prior((n, 4), seeds=range(n), dtype=torch.float64)
    return TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, converged(model, x1, steps=32)[0])


def test_errors_and_derivatives_are_those_of_the_features() -> None:
    model = mixture()
    fit = fit_of(model)
    seen = replace(fit, seen=first_squared)
    parameters = TableParameters.around(compile_table(SOLVERS["ddim"], model.sde, 4), fit, 0.8)
    q = torch.zeros(parameters.total, dtype=torch.float64)
    x, jacobian = sensitivities(parameters, q, fit)
    residuals, derivatives = seen.linear(x, jacobian)
    expected = first_squared(x) - first_squared(fit.x0)
    torch.testing.assert_close(residuals, expected)
    torch.testing.assert_close(seen.errors(x), expected.square().mean(1).sqrt())
    # The chain rule by hand.
    by_hand = torch.stack([2 * x[:, 0] * jacobian[:, :, 0], jacobian[:, :, 0] + 0.1 * jacobian[:, :, 1]], -1)
    torch.testing.assert_close(derivatives, by_hand, rtol=5e-3, atol=1e-4)
    # Without features they are the samples' own.
    r, j = fit.linear(x, jacobian)
    assert torch.equal(r, x - fit.x0) and torch.equal(j, jacobian)
    assert float(run(parameters.table(q, fit), fit).sub(x).abs().max()) < 1e-12


def test_the_loss_decides_which_error_is_small() -> None:
    """On new noise each of two solvers is the better one in what it was fitted to."""
    model = Gaussian(torch.zeros(4), torch.tensor([1.0, 0.3, 0.05, 0.01]), sde=VPSDE())
    made = {
        loss: tuned_for(model, [2], shape=(4,), noise_samples=24, held_out=24, progress=False, loss=loss, **more)[2]
        for loss, more in (("rmse", {}), ("features", {"features": lambda x: x[:, 2:3]}))
    }
    x1 = model.sde.prior((64, 4), seeds=range(64), dtype=torch.float64)
    truth = model.flow(x1, 1.0, 0.0)
    ode = model.sde.probability_flow(model)
    out = {loss: solve(ode, x1, solver=found.table, nfe=2).x for loss, found in made.items()}
    third = {loss: float((x - truth)[:, 2].abs().mean()) for loss, x in out.items()}
    whole = {loss: float(rms(x - truth).mean()) for loss, x in out.items()}
    assert third["features"] < 0.5 * third["rmse"] and whole["rmse"] < 0.9 * whole["features"], (third, whole)
    assert made["rmse"].loss == {"name": "rmse"} and made["rmse"].rmse == made["rmse"].error
    entry, found = made["features"].loss, made["features"]
    assert entry["name"] == "features" and "<lambda>" in entry["extractor"]["name"]
    assert found.error < 3 * third["features"] and found.error < 0.5 * third["rmse"]
    assert found.rmse == pytest.approx(whole["features"], rel=0.5)
    assert found.error <= found.default_error
    assert "features" in found.table.source


def test_features_take_samples_in_the_units_of_the_data() -> None:
    model = mixture(torch.float32)
    model.normalization = Normalization("standard", torch.tensor([3.0]), torch.tensor([2.0]))
    loss = loss_for(model, (4,), "features", "pixels", torch.device("cpu"))
    assert isinstance(loss, FeatureLoss)
    x = torch.randn(5, 4)
    torch.testing.assert_close(loss(x), model.to_samples(x))
    assert float((loss(x) - x).abs().max()) > 0.1


@torch.no_grad()
def test_features_of_bytes_are_taken_without_rounding() -> None:
    digits = make_extractor("digits")
    exact = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    # Rounding hides a change of less than half a byte; without rounding it is seen.
    assert torch.equal(digits(exact + 1e-3).features, digits(exact).features)
    assert float((digits.unrounded(exact + 1e-3) - digits.unrounded(exact)).abs().max()) > 0
    # At bytes both are the same, and values beyond white are seen.
    torch.testing.assert_close(digits.unrounded(exact), digits(exact).features, rtol=1e-4, atol=1e-4)
    assert float((digits.unrounded(1.4 * exact.sign()) - digits.unrounded(exact.sign())).abs().max()) > 0.1
    torch.testing.assert_close(InRange(digits, 0, 1).unrounded((exact + 1) / 2), digits.unrounded(exact))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "fid"}, "loss"),
        ({"features": "pixels"}, "no effect"),
        ({"loss": "features"}, "no features of their own"),
        ({"loss": "features", "features": "mnist"}, "take samples of shape"),
        ({"loss": "features", "features": "colour"}, "features"),
        ({"loss": "features", "features": "pca"}, "fitted"),
        ({"loss": "features", "features": lambda x: x.round()}, "smoothly"),
        ({"loss": "features", "features": lambda x: 0 * x}, "smoothly"),
        ({"loss": "features", "features": lambda x: x / 0}, "finite"),
        ({"loss": "features", "features": lambda x: x.reshape(-1)}, "row for each"),
        ({"loss": "features", "features": lambda x: x @ torch.ones(7, 1)}, "fail"),
    ],
)
def test_bad_losses_are_refused_before_any_work(options: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("reference solutions were computed")

    monkeypatch.setattr("sde_diffusion.tuning.task.converged", never)
    with pytest.raises(InputError, match=message):
        tune(mixture(), 3, shape=(4,), **options)


def test_the_choice_is_recorded_and_read_again(tmp_path: Path) -> None:
    model = mixture(torch.float32)
    extractor = CustomExtractor(lambda x: x[:, :2], "two")
    options = {"noise_samples": 16, "held_out": 16, "progress": False, "loss": "features", "features": extractor}
    found = tuned_for(model, [2], shape=(4,), **options)[2]
    stored = find_model("bundled")
    path = tmp_path / "nfe-2.json"
    save_tuned(path, found, stored)
    record = json.loads(path.read_text())
    assert record["loss"]["extractor"]["sha256"] == extractor.sha256
    assert record["rmse"] == found.rmse and record["default_rmse"] == found.default_rmse
    assert load_tuned(path, stored, 2) == found.table


@pytest.mark.slow
def test_evaluation_warns_where_the_same_features_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*words: str) -> str:
        out = runner.invoke(app, list(words))
        assert out.exit_code == 0, out.output
        return " ".join(out.output.split())

    few = ("--nfe", "4", "--noise-samples", "16", "--held-out", "8")
    said = call("tune", "bundled", *few, "--loss", "features")
    assert "in the features digits" in said and "RMS distance of the samples" in said
    assert tuned_loss(find_model("bundled"), 4)["name"] == "features"
    judged = (
        "evaluate",
        "bundled",
        "--solver",
        "tuned",
        "--nfe",
        "4",
        "--n",
        "100",
        "--draws",
        "2",
        "--metrics",
        "kid",
    )
    assert "fitted to these features (digits)" in call(*judged)
    assert "fitted to these features" not in call(*judged, "--features", "pca")


def test_comparisons_say_what_tuned_solvers_minimised() -> None:
    assert "that is compared here" in note_on_loss([{"name": "rmse"}])
    about = {"sha256": "", "preprocessing": ""}
    assert "(mnist)" in note_on_loss([{"name": "features", "extractor": {"name": "mnist", **about}}])
    assert "that is compared here" in note_on_loss([{"name": "features", "extractor": {"name": "pixels", **about}}])
    assert note_on_loss([]) == ""
