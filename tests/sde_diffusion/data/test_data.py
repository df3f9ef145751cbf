"""Data sets by name: digits, MNIST, CIFAR-10, and names that do not exist."""

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sde_diffusion.data import load_data

FOLDER = Path(os.environ.get("SDEDIFF_DATA_DIR", Path(__file__).resolve().parents[4] / "shared" / "data"))


def needs(name):
    """Skip, and say why, where a data file is absent."""
    reason = f"{name} is not in {FOLDER}; set SDEDIFF_DATA_DIR to the folder that has it"
    return pytest.mark.skipif(not (FOLDER / name).exists(), reason=reason)


def moments(data):
    """Return mean and standard deviation per channel of bytes / 255."""
    counts = np.stack([np.bincount(data.x[:, k].numpy().ravel(), minlength=256) for k in range(data.shape[0])])
    share, level = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ level
    return mean, np.sqrt(share @ level**2 - mean**2)


def test_digits_are_split_in_two_with_every_class_in_proportion():
    train, test = load_data("digits"), load_data("digits", split="test")
    assert (len(train), len(test)) == (1500, 297)
    levels, labels = load_digits(return_X_y=True)
    every = {(*row.astype(int), label) for row, label in zip(levels, labels, strict=True)}
    rows = [
        (*row.tolist(), label)
        for data in (train, test)
        for row, label in zip((data.x.flatten(1) / (255 / 16)).round().int(), data.labels.tolist(), strict=True)
    ]
    assert len(set(rows)) == len(every) == 1797 and set(rows) == every
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (share - 297 / 1797).abs().max() < 1 / 174  # the smallest class has 174 digits


def test_digits_keep_their_order_and_the_split_never_changes():
    assert load_data("digits").fingerprint[:16] == "f461f49997b148e8"
    assert load_data("digits", split="test").fingerprint[:16] == "3e1724b12ca4df57"


def test_digits_are_scaled_to_the_full_range():
    x = load_data("digits").batch(slice(None))
    # 17 grey levels v / 8 - 1, to the nearest byte: within 1 / 255
    assert (x - (x * 8).round() / 8).abs().max() <= 1.0001 / 255
    assert x.flatten().unique().numel() == 17 and (x.min(), x.max()) == (-1, 1)


@needs("mnist.npz")
def test_mnist_has_its_published_moments():
    train, test = (load_data("mnist", FOLDER, split=split) for split in ("train", "test"))
    assert (train.x.shape, test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    mean, std = moments(train)
    assert (mean, std) == (pytest.approx([0.1307], abs=5e-5), pytest.approx([0.3081], abs=5e-5))
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]


@needs("cifar10_train_5.npz")
def test_cifar10_has_its_published_moments():
    data = load_data("cifar10", FOLDER)
    assert data.x.shape == (50_000, 3, 32, 32)
    mean, std = moments(data)
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert std == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    assert data.labels.bincount().tolist() == [5000] * 10
    assert data.labels[:5].tolist() == [6, 9, 9, 4, 1]


@needs("cifar10_test.npz")
def test_cifar10_test_split():
    data = load_data("cifar10", FOLDER, split="test")
    assert data.x.shape == (10_000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [1000] * 10


def test_idx_files_are_read_packed_or_not(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes())
    labels = b"\0\0\x08\x01\0\0\0\x03\x07\x00\x02"
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    data = load_data("mnist", tmp_path, split="test")
    assert np.array_equal(data.x[:, 0].numpy(), images)
    assert data.labels.tolist() == [7, 0, 2]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes()[:-1])
    with pytest.raises(ValueError, match="images-idx3-ubyte is no IDX file"):
        load_data("mnist", tmp_path, split="test")
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"mnist.npz, or t10k-images-idx3-ubyte or .*\.gz"):
        load_data("mnist", tmp_path, split="test")


def test_both_forms_of_cifar10_hold_the_same_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (500, 3, 32, 32), np.uint8)
    labels = np.arange(500, dtype=np.uint8) % 10
    records = np.concatenate([labels[:, None], images.reshape(500, -1)], 1)
    records.tofile(tmp_path / "test_batch.bin")
    binary = load_data("cifar10", tmp_path, split="test")
    assert np.array_equal(binary.x.numpy(), images) and binary.labels.tolist() == labels.tolist()

    strip = io.BytesIO()
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(-1, 32, 3)
    Image.fromarray(pixels).save(strip, "webp", lossless=True, method=0)
    packed = np.frombuffer(strip.getvalue(), np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", labels=labels, webp_00=packed)
    (tmp_path / "test_batch.bin").unlink()
    assert load_data("cifar10", tmp_path, split="test").fingerprint == binary.fingerprint
    np.savez(tmp_path / "cifar10_test.npz", labels=labels, webp_00=packed[:1000])
    with pytest.raises(ValueError, match="file of labels and WebP strips"):
        load_data("cifar10", tmp_path, split="test")
    with pytest.raises(FileNotFoundError, match=r"cifar10_train_1\.npz or data_batch_1\.bin"):
        load_data("cifar10", tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has 4 bytes"):
        load_data("cifar10", tmp_path)


def test_labels_can_be_left_out():
    data = load_data("digits", labels=False)
    assert data.labels is None and torch.equal(data.x, load_data("digits").x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "digit"}, "'digit'; did you mean 'digits'.*checkerboard, cifar10, digit-pairs, digits, mnist"),
        ({"name": "mnist"}, "mnist is read from files.*--data-dir"),
        ({"name": "digits", "split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"name": "mine.npy", "split": "test"}, "mine.npy has no test split"),
    ],
)
def test_names_and_splits_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_data(**arguments)
