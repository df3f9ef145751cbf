"""A reference remembers its data, and refuses to be compared with anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sde_diffusion.data import Data, as_data, load_data
from sde_diffusion.evaluation import reference_statistics as module
from sde_diffusion.evaluation.features import CustomExtractor, Pixels, make_extractor
from sde_diffusion.evaluation.metrics import Moments
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.storage.atomic_folder import CheckpointError


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


@pytest.fixture(scope="module")
def reference(digits: Data) -> FeatureStatistics:
    return FeatureStatistics.of(digits, make_extractor("digits"))


def test_statistics_of_batches_are_those_of_all(reference: FeatureStatistics, digits: Data) -> None:
    features = make_extractor("digits")(digits.batch(slice(None))).features
    whole = Moments.of(features)
    torch.testing.assert_close(reference.moments.mean, whole.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(reference.moments.scatter, whole.scatter, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(reference.features, features, rtol=1e-5, atol=1e-5)


def test_kept_features_are_spread_over_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 5)
    found = FeatureStatistics.of(as_data(torch.arange(1201.0)[:, None]), Pixels())
    assert found.features.flatten().tolist() == [0, 300, 600, 900, 1200]
    assert found.moments.n == 1201 and float(found.moments.mean) == 600


@pytest.mark.parametrize("name", ["digits", "pca"])
def test_round_trip(name: str, digits: Data, tmp_path: Path) -> None:
    extractor = make_extractor(name, fit=lambda: digits.batch(slice(None)))
    made = FeatureStatistics.of(digits, extractor, "train")
    loaded = FeatureStatistics.load(made.save(tmp_path / "new" / "r.safetensors"), digits)
    assert loaded.data == made.data and loaded.extractor == made.extractor
    assert loaded.data["fingerprint"] == digits.fingerprint and loaded.data["shape"] == [1, 8, 8]
    assert loaded.moments.n == 1500
    for a, b in ((loaded.moments.mean, made.moments.mean), (loaded.moments.scatter, made.moments.scatter)):
        assert torch.equal(a, b)
    x = digits.batch([3, 4])
    assert torch.equal(loaded.make_extractor()(x).features, extractor(x).features)


def test_other_features_are_refused(reference: FeatureStatistics, digits: Data) -> None:
    with pytest.raises(ValueError, match=r"name 'digits'.* 'pixels' with name 'pixels': that compares nothing"):
        reference.check(Pixels())
    changed = replace(reference, extractor={**reference.extractor, "sha256": "0" * 64})
    with pytest.raises(ValueError, match="with sha256 '0000"):
        changed.make_extractor()
    other = replace(reference, extractor={**reference.extractor, "preprocessing": "resized to 299 x 299"})
    with pytest.raises(ValueError, match="with preprocessing 'resized to 299 x 299'"):
        other.check(make_extractor("digits"))
    own = FeatureStatistics.of(digits, CustomExtractor(lambda x: x.flatten(1)[:, :2], "mine"))
    with pytest.raises(ValueError, match="unknown features 'mine'"):
        own.make_extractor()


def test_other_data_and_other_sizes_are_refused(reference: FeatureStatistics, tmp_path: Path) -> None:
    path = reference.save(tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match=r"not of 'digits' with [0-9a-f]{12}; make the reference again"):
        FeatureStatistics.load(path, load_data("digits", split="test"))
    with pytest.raises(ValueError, match=r"samples of shape \(1, 16, 16\), but the reference 'digits'"):
        reference.check_shape((1, 16, 16))


def test_torn_damaged_and_foreign_files_are_refused(reference: FeatureStatistics, digits: Data, tmp_path: Path) -> None:
    path = reference.save(tmp_path / "r.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="torn"):
        FeatureStatistics.load(path)
    path.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(CheckpointError, match="damaged"):
        FeatureStatistics.load(path)
    path.write_text("no tensors")
    with pytest.raises(CheckpointError, match="torn, or no safetensors"):
        FeatureStatistics.load(path)
    from sde_diffusion.storage.locate import BUNDLED

    with pytest.raises(CheckpointError, match="no reference of format 1"):
        FeatureStatistics.load(BUNDLED)
    with pytest.raises(FileNotFoundError, match="--save-reference writes one"):
        FeatureStatistics.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"a reference is a \.safetensors file"):
        reference.save(tmp_path / "r.npz")
    assert not list(tmp_path.glob(".*.partial"))
