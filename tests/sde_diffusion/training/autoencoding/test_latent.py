"""Latent diffusion: exact laws through a linear encoder, latents on disk, decoding, the hash of the autoencoder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion.cli import app
from sde_diffusion.comparison.comparison import compare
from sde_diffusion.data import as_data, load_data
from sde_diffusion.data.normalization import measure_normalization
from sde_diffusion.evaluation import FeatureSampler, error_budget
from sde_diffusion.evaluation.budget import loss_by_time
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.guidance import Guided, Mask, PiGDM
from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.models.analytic import Gaussian
from sde_diffusion.models.autoencoder import AutoencoderModel, principal_components
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.given.edits import morphs
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sampling.shown.reverse_states import reverse_run
from sde_diffusion.sde import VPSDE
from sde_diffusion.storage.atomic_folder import CheckpointError
from sde_diffusion.storage.checkpoint import checkpoint_at, export, load
from sde_diffusion.storage.latent_file import AUTOENCODER, latent_entry
from sde_diffusion.training.autoencoding.latents import encoded, latents_of
from sde_diffusion.training.defaults import set_up
from sde_diffusion.training.training_run import train
from solvers import SOLVERS
from solvers.errors import InputError

FAST: dict[str, Any] = {"batch_size": 16, "warmup": 2, "device": "cpu", "progress": False}


def gaussian_data(n: int = 4000, seed: int = 0) -> torch.Tensor:
    """Correlated vectors of 6 values."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(6, 6)) * np.array([3.0, 2.0, 1.0, 0.3, 0.2, 0.1])
    return torch.tensor((5 + draw.normal(size=(n, 6)) @ mixing.T).astype(np.float32))


@pytest.mark.parametrize("components", [6, 3])
def test_principal_components_of_gaussian_data_give_the_exact_law(components: int) -> None:
    # Exact: the latents are independent normal numbers, and so the decoded law is N(mean, B B' C B B').
    data = as_data(gaussian_data())
    encoder = principal_components(data, components)
    z = latents_of(encoder, data).x.double()
    covariance = torch.cov(z.T, correction=0)
    off = covariance - covariance.diagonal().diag()
    assert float(off.abs().max()) < 1e-3 * float(covariance.max())
    units = measure_normalization(latents_of(encoder, data))
    assert torch.allclose(units.scale, covariance.diagonal().sqrt(), rtol=1e-4)
    exact = Gaussian(torch.zeros(components), torch.ones(components), sde=VPSDE())
    exact.normalization = units
    exact.__dict__["_decoder"] = encoder
    assert exact.sample_shape == (6,) and exact.shape == (components,)
    n = 20_000
    x = sample(exact, n, nfe=12, seed=1, progress=False).double()
    full = torch.cov(data.x.double().T, correction=0)
    basis = encoder.network.basis.double()
    projected = basis @ basis.T @ full @ basis @ basis.T
    found = torch.cov(x.T)
    scale = projected.diagonal().clamp_min(1e-6).sqrt()
    error = (found - projected) / scale[:, None] / scale
    assert float(error.abs().max()) < 6 * (2 / n) ** 0.5  # six standard errors of a covariance
    assert float(((x.mean(0) - data.x.double().mean(0)) / scale).abs().max()) < 6 / n**0.5
    if components == 6:
        # Nothing is lost: the likelihood of z is that of x, since the map is a rotation.
        some = data.x[:5].double()
        law = torch.distributions.MultivariateNormal(data.x.double().mean(0), full)
        assert torch.allclose(log_likelihood(exact, encoder.encode(some)).nats, law.log_prob(some), atol=2e-3)


def test_solvers_are_compared_on_the_latents() -> None:
    encoder, digits = small_autoencoder(), load_data("digits")
    latents = latents_of(encoder, digits, 300)
    exact = Gaussian(torch.zeros(12), torch.ones(12), sde=VPSDE())
    exact.normalization = measure_normalization(latents)
    plain = compare(exact, {"ddim": SOLVERS["ddim"]}, [6], n=32, reference_steps=200, data=latents.x, progress=False)
    exact.__dict__["_decoder"] = encoder
    images = digits.batch(torch.linspace(0, len(digits) - 1, 300, dtype=torch.float64).round().long())
    found = compare(exact, {"ddim": SOLVERS["ddim"]}, [6], n=32, reference_steps=200, data=images, progress=False)
    for row, expected in zip(found.rows, plain.rows, strict=True):
        assert torch.equal(row.errors, expected.errors) and row.errors.shape == (32,)
        assert row.sliced == pytest.approx(expected.sliced, rel=1e-4)
        assert row.frechet.value == pytest.approx(expected.frechet.value, rel=1e-4)


def test_the_budget_of_errors_is_that_of_the_latents() -> None:
    encoder, digits = small_autoencoder(), load_data("digits")
    latents = latents_of(encoder, digits)
    exact = Gaussian(torch.zeros(12), torch.ones(12), sde=VPSDE())
    exact.normalization = measure_normalization(latents)
    plain = loss_by_time(exact, latents, most=200)
    exact.__dict__["_decoder"] = encoder
    for (t, found), (_, expected) in zip(loss_by_time(exact, digits, most=200), plain, strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-4), t
    reference = FeatureStatistics.of(digits, make_extractor("pixels"), "train")
    sampler = FeatureSampler(exact, make_extractor("pixels"))
    budget = error_budget(sampler, SamplingSettings("ddim", nfe=8), 640, reference, digits, fine=12, draws=4)
    assert budget.terms.keys() and all(math.isfinite(term.value) for term in budget.terms.values())


def small_autoencoder() -> AutoencoderModel:
    return principal_components(load_data("digits"), 12)


def latent_run(folder: Path, steps: int = 3) -> tuple[Path, AutoencoderModel, ScoreModel]:
    encoder = small_autoencoder()
    latents = encoded(encoder, load_data("digits"), folder)
    torch.manual_seed(0)
    model = ScoreModel(build("mlp", shape=(12,), width=16), VPSDE(), "velocity", (12,), decoder=encoder)
    trained = train(model, latents, steps=steps, out=folder / "run", **FAST)
    return folder / "run", encoder, trained


def test_latents_are_written_once_and_mapped(tmp_path: Path) -> None:
    encoder, digits = small_autoencoder(), load_data("digits")
    first = encoded(encoder, digits, tmp_path)
    (folder,) = tmp_path.iterdir()
    written = (folder / "x.npy").stat().st_mtime_ns
    again = encoded(encoder, digits, tmp_path)
    assert (folder / "x.npy").stat().st_mtime_ns == written
    assert again.file == folder / "x.npy" and again.fingerprint == first.fingerprint
    assert again.name == "digits" and torch.equal(again.labels, digits.labels)
    assert torch.equal(again.batch(slice(0, 300)), encoder.encode(digits.batch(slice(0, 300))))


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    encoder = small_autoencoder()
    encoded(encoder, load_data("digits"), tmp_path)
    (folder,) = tmp_path.iterdir()
    note = json.loads((folder / "prepared.json").read_text())
    (folder / "prepared.json").write_text(json.dumps({**note, "autoencoder": "0" * 64}))
    with pytest.raises(InputError, match="latents of another autoencoder: its hash is 000000000000"):
        encoded(encoder, load_data("digits"), tmp_path)


def test_data_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"for samples of shape \(1, 8, 8\); those of moons are \(2,\)"):
        encoded(small_autoencoder(), load_data("moons"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_latent_run_holds_its_autoencoder_and_decodes(tmp_path: Path) -> None:
    run, encoder, trained = latent_run(tmp_path)
    stored = checkpoint_at(run)
    assert stored.model["latent"] == latent_entry(encoder)
    loaded = load(run)
    x = sample(loaded, 5, nfe=4, progress=False)
    assert x.shape == (5, 1, 8, 8)
    plain = ScoreModel(trained.network, trained.sde, "velocity", (12,), normalization=trained.units)
    assert torch.equal(x, encoder.decode(sample(plain, 5, nfe=4, progress=False)))
    # The units of the latents are measured and stored.
    assert loaded.units.shift.shape == (12,) and float(loaded.units.scale.max()) > 1.5
    other = load(export(loaded, tmp_path / "out.safetensors"))
    assert torch.equal(sample(other, 5, nfe=4, progress=False), x)


def test_another_autoencoder_in_the_run_is_refused(tmp_path: Path) -> None:
    run, _, _ = latent_run(tmp_path)
    data = load_data("digits")
    data.x[0] = 255 - data.x[0]
    shutil.copy(export(principal_components(data, 12), tmp_path / "b.safetensors"), run / AUTOENCODER)
    with pytest.raises(CheckpointError, match=r"is another autoencoder than that of the latents .* hash"):
        load(run)
    (run / AUTOENCODER).unlink()
    with pytest.raises(CheckpointError, match=r"its autoencoder .* is missing; put back"):
        load(run)


@pytest.mark.slow
def test_the_commands_train_resume_sample_and_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export(small_autoencoder(), tmp_path / "pca.safetensors")

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    fast = ("--batch-size", "16", "--sample-every", "2")
    run("train", "--latent", "pca.safetensors", "--steps", "2", "--width", "16", "--out", "runs/z", *fast)
    assert (tmp_path / "runs/z/samples/step-000002.png").is_file()  # decoded on the way
    run("train", "--resume", "--out", "runs/z", "--steps", "4")  # with the autoencoder of the run
    with pytest.raises(InputError, match="leave --latent out"):
        other = export(principal_components(load_data("digits"), 11), tmp_path / "other.safetensors")
        set_up({"latent": str(other), "out": "runs/z"}, resume=True)
    run("sample", "runs/z", "--n", "3", "--nfe", "4", "--out", "drawn")
    record = json.loads((tmp_path / "drawn/samples.json").read_text())
    assert record["shape"] == [1, 8, 8] and len(record["model"]["latent"]["autoencoder"]) == 64
    assert np.load(tmp_path / "drawn/samples.npz")["x"].shape == (3, 1, 8, 8)
    run("sample", "runs/z", "--record", "drawn/samples.json", "--out", "again")
    assert "nats of the latents z, of shape (12,)" in run("likelihood", "runs/z", "--n", "2", "--tolerance", "1e-2")
    run("evaluate", "runs/z", "--n", "200", "--nfe", "2", "--metrics", "mmd", "--out", "figures")
    run("compare", "runs/z", "--solvers", "ddim,heun", "--nfe", "4", "--n", "32", "--out", "compared")
    rows = json.loads((tmp_path / "compared/compare.json").read_text())["rows"]
    assert all(row["sliced_wasserstein"] > 0 for row in rows)  # the data are encoded
    examined = CliRunner().invoke(app, ["doctor", "runs/z"])
    assert "samples of digits" in examined.output and "error / linear" in examined.output
    for method in ("consistency", "denoising-gan"):  # students learn on the latents, and are decoded
        student = f"runs/{method}"
        run("distill", "runs/z", "--method", method, "--steps", "2", "--batch-size", "16", "--out", student)
        run("sample", student, "--n", "3", "--out", f"of-{method}")
        assert np.load(tmp_path / f"of-{method}/samples.npz")["x"].shape == (3, 1, 8, 8)
        assert (Path(student) / AUTOENCODER).is_file()


def test_an_autoencoder_is_no_place_for_a_score_model() -> None:
    with pytest.raises(InputError, match="is no autoencoder"):
        set_up({"latent": "bundled"})


def test_images_are_encoded_where_they_come_in() -> None:
    encoder, digits = small_autoencoder(), load_data("digits")
    z = latents_of(encoder, digits, 200)
    exact = Gaussian(torch.zeros(12), torch.ones(12), sde=VPSDE())
    exact.normalization = measure_normalization(z)
    exact.__dict__["_decoder"] = encoder
    x = digits.batch(slice(0, 4))
    projected = encoder.decode(encoder.encode(x))
    assert torch.allclose(exact.to_samples(exact.from_samples(x)), projected, atol=1e-4)
    assert torch.allclose(exact.from_samples(encoder.encode(x)), exact.from_samples(x))  # latents stay latents
    assert torch.allclose(decode(exact, encode(exact, x)), projected, atol=1e-3)
    assert Guided(exact, 2.0).decoder is encoder
    between = morphs(exact, x, 3)
    assert between.x.shape == (3, 3, 1, 8, 8)
    assert torch.allclose(between.x[:, 0], projected[:-1], atol=1e-2)
    with pytest.raises(InputError, match=r"samples latents \(12,\), .* no linear function"):
        PiGDM(exact, Mask(torch.ones(1, 8, 8)), x[:1], 0.1)
    states = reverse_run(exact, SamplingSettings("ddim", steps=3), 5)[1].states
    assert states.shape == (4, 5, 1, 8, 8)
    assert torch.allclose(states[-1], sample(exact, 5, solver="ddim", steps=3, progress=False), atol=1e-5)
