"""How arrays become data: scaling, layout, fingerprint, and what is refused."""

import numpy as np
import pytest
import torch

from sde_diffusion.data import Data, as_data
from sde_diffusion.data.pixels import to_uint8

BYTES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def test_bytes_to_network_and_back_is_the_identity():
    data = as_data(np.arange(256, dtype=np.uint8).reshape(1, 16, 16))
    batch = data.batch([0])
    assert torch.equal(to_uint8(batch), data.x)
    assert (batch.min(), batch.max(), batch.dtype) == (-1, 1, torch.float32)
    assert batch[0, 0, 3, 3] == 51 / 127.5 - 1


def test_all_layouts_of_images_become_channels_first():
    first = as_data(BYTES)
    assert first.shape == (3, 4, 5)
    assert first.x[1, 2, 3, 4] == BYTES[1, 3, 4, 2]
    assert torch.equal(as_data(BYTES.transpose(0, 3, 1, 2)).x, first.x)
    assert torch.equal(as_data(BYTES[..., 2]).x, first.x[:, 2:])
    assert torch.equal(as_data(torch.tensor(BYTES)).x, first.x)


@pytest.mark.parametrize(
    "x, kind",
    [
        (np.array([[1, 2], [3, 4]], np.uint8), "vector"),
        (np.array([[1, 2], [3, 4]], np.int64), "vector"),
        (np.linspace(0, 9, 12).reshape(2, 2, 3), "signal"),
        (np.linspace(0, 9, 24).reshape(2, 3, 2, 2), "image"),
        (torch.linspace(0, 9, 24).reshape(2, 3, 2, 2, 1).bfloat16(), "signal"),
    ],
)
def test_numbers_are_taken_as_they_are(x, kind):
    data = as_data(x)
    assert data.kind == kind
    expected = torch.as_tensor(x).float()
    assert torch.equal(data.batch(slice(None)), expected)
    assert torch.equal(data.batch(torch.tensor([1, 1, 0])), expected[[1, 1, 0]])


def test_the_fingerprint_knows_content_shape_labels_and_type_but_not_the_name():
    data = as_data(BYTES, [0, 1], "one")
    assert data.fingerprint == as_data(BYTES.copy(), [0, 1], "other").fingerprint
    changed = BYTES.copy()
    changed[1, 3, 4, 2] += 1
    others = [
        as_data(changed, [0, 1]),
        as_data(BYTES, [1, 1]),
        as_data(BYTES),
        as_data(BYTES.astype(float)),
        as_data(BYTES.transpose(0, 2, 1, 3), [0, 1]),
    ]
    prints = {data.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 6 and all(len(text) == 64 for text in prints)


def test_later_changes_of_the_array_do_not_reach_the_data():
    for array in (np.ones((2, 2), np.float32), np.ones((2, 3, 4), np.uint8), torch.ones(2, 2)):
        data = as_data(array)
        array[:] = 7
        assert (data.x == 1).all()


@pytest.mark.parametrize(
    "x, labels, error, message",
    [
        ([[1.0, np.nan], [np.inf, 2.0]], None, ValueError, r"2 of 4 .*first at index \(0, 1\)"),
        ([[1e39, 0.0]], None, ValueError, "1 of 2 values are not finite"),
        ([1.0, 2.0], None, ValueError, r"shape \(2,\).*rank 2 or more"),
        (np.zeros((0, 2)), None, ValueError, "nothing in it"),
        ([[1.0, 2.0], [3.0]], None, ValueError, "mixed shapes"),
        ([["a", "b"]], None, TypeError, "expected real numbers"),
        (np.array([[1, None]], object), None, TypeError, "type object"),
        ([[1j, 2.0]], None, TypeError, "complex128"),
        (torch.zeros(2, 2, dtype=torch.complex64), None, TypeError, "complex64"),
        (np.zeros((5, 9, 8, 8), np.uint8), None, ValueError, "neither axis 1 nor axis 3"),
        ([[1.0], [2.0]], [0], ValueError, r"one per sample, \(2,\)"),
        ([[1.0], [2.0]], [0, -1], ValueError, "smallest -1"),
        ([[1.0], [2.0]], [0.0, 1.0], TypeError, "whole numbers"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(x, labels, error, message):
    with pytest.raises(error, match=message):
        as_data(x, labels, "mine")


@pytest.mark.parametrize(
    "x, kind, error, message",
    [
        (torch.zeros(2, 3), "picture", ValueError, "choices: image, vector, signal"),
        (torch.zeros(2, 3), "image", ValueError, r"expected \(N, C, H, W\)"),
        (torch.zeros(2, 3).double(), "vector", TypeError, "float64"),
        (torch.zeros(2, 3).byte(), "vector", TypeError, "uint8"),
    ],
)
def test_data_that_contradicts_its_kind_is_refused(x, kind, error, message):
    with pytest.raises(error, match=message):
        Data("mine", x, None, kind)
