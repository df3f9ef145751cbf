"""The classifier of small CIFAR-10 images: trained, stored in half precision and read again."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.cifar10.classifier_features import accuracy
from benchmarks.cifar10.small_classifier import FILE, SHAPE, SmallImages, train
from benchmarks.report import features_and_images
from sde_diffusion.data import as_data
from sde_diffusion.storage.atomic_folder import pack, read_json, sha256


@pytest.mark.slow
def test_a_stored_classifier_tells_classes_apart_in_units_of_their_spread(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) % 2
    x = (255 * torch.rand(512, *SHAPE, generator=generator)).to(torch.uint8)
    x[labels == 1, 0] //= 4
    file = tmp_path / "a.safetensors"
    file.write_bytes(pack(train(as_data(x, labels, name="red"), epochs=10)))
    assert file.stat().st_size < 3e5
    extractor = SmallImages(file)
    assert accuracy(extractor.network, x, labels) > 0.9
    found = extractor(x.float() / 127.5 - 1)
    assert float(found.features.mean(0).abs().max()) < 0.05 and float((found.features.std(0) - 1).abs().max()) < 0.05
    assert found.probabilities is not None and torch.equal(found.probabilities.argmax(1), labels)
    with pytest.raises(ValueError, match=r"take samples of shape \(3, 16, 16\)"):
        extractor(torch.zeros(2, 3, 32, 32))


def test_the_stored_one_is_what_its_note_says() -> None:
    note = read_json(FILE.with_suffix(".json"))
    assert note["sha256"] == sha256(FILE) == SmallImages().sha256
    assert 0.7 < note["accuracy"]["test"] < note["accuracy"]["train"]


def test_images_have_the_features_of_their_size() -> None:
    asked = argparse.Namespace(features=None, data="digits", data_dir=None)
    extractor, data = features_and_images(asked, (1, 8, 8), "test")
    assert (extractor.name, len(data)) == ("digits", 297)
    assert features_and_images(asked, SHAPE, "train")[0].name == "cifar16"
