"""Features take values as they are, or bytes, know what they are, and say what is missing."""

from __future__ import annotations

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features import (
    PCA,
    CustomExtractor,
    Inception,
    InRange,
    Pixels,
    default_features,
    inception,
    make_extractor,
)
from sde_diffusion.evaluation.features.pretrained_classifier import PRETRAINED
from sde_diffusion.storage.atomic_folder import read_json, sha256


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_networks_of_images_see_bytes() -> None:
    digits = make_extractor("digits")
    x = 0.4 * noise(5, 1, 8, 8)
    bytes_of_x = ((x + 1) * 127.5).round().clamp(0, 255)
    torch.testing.assert_close(digits(x).features, digits(bytes_of_x / 127.5 - 1).features, rtol=0, atol=0)


def test_values_far_outside_are_clamped_with_a_warning_that_has_their_share() -> None:
    x = torch.zeros(4, 1, 8, 8)
    x[0] = 280.0
    with pytest.warns(UserWarning, match="25% of the values of the samples lie far outside of black and white"):
        make_extractor("digits")(x)
    with pytest.warns(UserWarning, match="25%"):
        InRange(make_extractor("digits"), 0.0, 1.0)(x)
    assert InRange(make_extractor("digits"), -1.0, 280.0).outside(x) == 0
    with pytest.raises(ValueError, match="'pixels' take values as they are and need no range"):
        make_extractor("pixels", value_range=(0, 1))
    with pytest.raises(ValueError, match="the smaller first; got 1, 0"):
        make_extractor("digits", value_range=(1, 0))


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4), (3, 3, 2, 2)])
def test_values_are_left_as_they_are(shape: tuple[int, ...]) -> None:
    x = 280 + 15 * noise(*shape)
    assert torch.equal(Pixels()(x).features, x.flatten(1))
    assert torch.equal(CustomExtractor(lambda v: v)(x).features, x.flatten(1))
    pca = PCA.fit(280 + 15 * noise(100, *shape[1:]), 2)
    assert torch.equal(pca(x).features, (x.flatten(1) - pca.mean) @ pca.axes)


@pytest.mark.parametrize("name, least", [("digits", 0.98), ("mnist", 0.985)])
def test_bundled_classifiers_are_small_and_what_their_record_says(name: str, least: float) -> None:
    path = PRETRAINED / f"{name}-classifier.safetensors"
    record = read_json(path.with_suffix(".json"))
    assert path.stat().st_size < 1e6
    assert record["sha256"] == sha256(path) == make_extractor(name).sha256
    assert record["accuracy"]["test"] > least


def test_the_digits_classifier_is_right_on_held_out_digits_in_units_of_their_spread() -> None:
    test = load_data("digits", split="test")
    features, probabilities = make_extractor("digits")(test.batch(slice(None)))
    assert probabilities is not None and test.labels is not None
    right = float((probabilities.argmax(1) == test.labels).double().mean())
    assert right == pytest.approx(read_json(PRETRAINED / "digits-classifier.json")["accuracy"]["test"])
    assert float(features.mean(0).abs().max()) < 0.2 and float((features.std(0) - 1).abs().max()) < 0.2


def test_pca_keeps_the_largest_variances() -> None:
    q = torch.linalg.qr(noise(6, 6)).Q
    x = noise(4000, 6, seed=1) * torch.tensor([5.0, 4.0, 3.0, 0.2, 0.1, 0.1]) @ q.T
    pca = PCA.fit(x, 3)
    features = pca(x).features
    assert features.mean(0).abs().max() < 1e-4
    assert features.var(0).tolist() == pytest.approx([25, 16, 9], rel=0.1)
    assert abs(features.T.cov()[0, 1]) < 1e-3
    back = features @ pca.axes.T + pca.mean
    assert float((x - back).square().sum(1).mean()) == pytest.approx(0.06, rel=0.2)
    assert pca.sha256 != PCA.fit(x[:2000], 3).sha256


def test_a_module_of_ones_own_is_known_by_its_weights() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    a, b = CustomExtractor(first, "mine"), CustomExtractor(second, "mine")
    assert a.sha256 != b.sha256
    second.load_state_dict(first.state_dict())
    assert a.sha256 == CustomExtractor(second, "mine").sha256
    assert CustomExtractor(len, "f").sha256 != CustomExtractor(len, "f", version="2").sha256
    x = noise(2, 4)
    assert torch.equal(make_extractor(first)(x).features, first(x))


def test_bad_samples_are_refused() -> None:
    digits = make_extractor("digits")
    with pytest.raises(ValueError, match=r"samples of shape \(1, 28, 28\).* not resized silently"):
        digits(torch.zeros(2, 1, 28, 28))
    broken = torch.zeros(4, 1, 8, 8)
    broken[2, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="1 of 4 samples are not finite; the first is 2"):
        digits(broken)
    with pytest.raises(ValueError, match="a row for each of 4 samples; got float"):
        CustomExtractor(lambda x: 1.0)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="unknown features 'incepton'; did you mean 'inception'"):
        make_extractor("incepton")
    with pytest.raises(ValueError, match="'pca' are fitted to the reference"):
        make_extractor("pca")
    assert default_features((3, 64, 64)) == "pca"


def test_missing_inception_weights_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"put {inception.FILE} there"):
        make_extractor("inception")
    other = tmp_path / "w.pth"
    other.write_bytes(b"other")
    with pytest.raises(ValueError, match="SHA-256 begins with d9298a10, not with 6726825d"):
        make_extractor("inception", weights=other)


def test_inception_gets_bytes_in_three_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity replaced by a stand-in: what reaches it, and what becomes of its answer."""
    seen, loaded = [], []

    class Network(nn.Module):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: Any) -> None:
            super().__init__()
            assert features == ["2048", "logits_unbiased"]
            loaded.append(torch.load(feature_extractor_weights_path, weights_only=False))  # as torch-fidelity 0.4 does

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(x)
            return x.float().flatten(1)[:, :7], torch.zeros(len(x), 1008)

    weights = tmp_path / "w.pth"
    torch.save({"fc.weight": torch.ones(2)}, weights)
    monkeypatch.setattr(inception, "HASH", "")
    module: Any = types.ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    found = Inception(weights)(torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2))
    assert seen[0].dtype == torch.uint8 and seen[0].tolist() == [[[[0, 255]]] * 3]
    assert found.features.tolist() == [[0.0, 255.0, 0.0, 255.0, 0.0, 255.0]]
    assert found.probabilities is not None and float(found.probabilities.sum()) == pytest.approx(1)
    assert loaded[0]["fc.weight"].tolist() == [1, 1]
    # A file that runs something when it is unpickled, with the right first digits of its SHA-256.
    torch.save({"fc.weight": Opens(str(tmp_path / "RAN"))}, weights)
    with pytest.raises(ValueError, match="holds no plain tensors and is not loaded"):
        Inception(weights)
    assert len(loaded) == 1 and not (tmp_path / "RAN").exists()


class Opens:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize("name, library", [("inception", "torch_fidelity"), ("dinov2", "transformers")])
def test_a_missing_library_says_what_to_install(
    name: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "HASH", "d9298a10")
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"other")
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module == library:
            raise ImportError(f"No module named '{library}'")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"pip install 'sdediff\[{name}\]'"):
        make_extractor(name, weights=weights)
