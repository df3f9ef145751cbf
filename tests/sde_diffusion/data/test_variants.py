"""Arrays of any type, shape, scale and offset reach the network with unit scale, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion.data import as_data, load_data
from sde_diffusion.data.normalization import measure_normalization
from solvers.errors import InputError, InputTypeError

RNG = np.random.default_rng(0)
POINTS = 300 + 10 * RNG.standard_normal((400, 5))
CT = 200 + 600 * RNG.standard_normal((60, 1, 8, 8))


def seen(x: Any) -> tuple[Any, torch.Tensor]:
    """The data, and what the network gets of them; the way back is checked."""
    data = as_data(x)
    units = measure_normalization(data, "auto")
    stored = data.batch(slice(None)).double()
    inner = units.to_model(stored)
    assert torch.allclose(units.to_data(inner), stored, rtol=1e-6, atol=1e-6 * float(stored.abs().max()))
    return data, inner


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "longdouble", ">i2", ">f4"])
@pytest.mark.parametrize("kind", ["vector", "image"])
def test_every_type_of_number(dtype: str, kind: str) -> None:
    source = np.abs(POINTS if kind == "vector" else CT) if dtype.startswith("u") else POINTS if kind == "vector" else CT
    data, inner = seen(source.astype(dtype))
    assert data.kind == kind and data.x.dtype == torch.float32
    expected = torch.tensor(source)
    assert float(data.x.double().mean()) == pytest.approx(float(expected.mean()), abs=1)  # integers are cut off
    assert float(inner.mean()) == pytest.approx(0, abs=1e-3) and float(inner.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16, torch.int64])
def test_tensors_of_every_type(dtype: torch.dtype) -> None:
    _, inner = seen(torch.tensor(POINTS).to(dtype))
    assert float(inner.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("offset", [0.0, 30.0, -1000.0])
def test_scales_and_offsets(scale: float, offset: float) -> None:
    _, inner = seen(scale * (offset + RNG.standard_normal((500, 3))))
    assert float(inner.std()) == pytest.approx(1, abs=1e-3) and float(inner.mean()) == pytest.approx(0, abs=1e-3)


def test_every_entry_has_its_own_unit_and_a_constant_one_keeps_its_value() -> None:
    mixed = np.c_[POINTS * np.array([1e-12, 1e-6, 1.0, 1e6, 1e12]), np.full(400, 7.0)]
    _, inner = seen(mixed)
    assert torch.allclose(inner.std(0), torch.tensor([1.0] * 5 + [0.0]).double(), atol=2e-3)
    units = measure_normalization(as_data(mixed), "auto")
    assert units.to_data(torch.zeros(1, 6).double())[0, 5] == pytest.approx(7.0)
    channels = np.stack([300 + 10 * CT[:, 0], 0.01 * CT[:, 0], np.full_like(CT[:, 0], -5)], 1)
    _, inner = seen(channels)
    assert torch.allclose(inner.std((0, 2, 3)), torch.tensor([1.0, 1.0, 0.0]).double(), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "kind", "inside"),
    [
        ((9, 3, 7, 5), "image", (3, 7, 5)),
        ((9, 7, 5, 3), "image", (3, 7, 5)),
        ((9, 1, 5, 7), "image", (1, 5, 7)),
        ((9, 5, 7, 1), "image", (1, 5, 7)),
        ((9, 2, 9, 11), "image", (2, 9, 11)),
        ((9, 9, 11, 2), "image", (2, 9, 11)),
        ((9, 4, 4, 4), "image", (4, 4, 4)),
        ((9, 1, 1, 1), "image", (1, 1, 1)),
        ((9, 3, 4, 5, 6), "signal", (3, 4, 5, 6)),
    ],
)
def test_bytes_and_floats_of_a_shape_mean_the_same(shape: tuple[int, ...], kind: str, inside: tuple[int, ...]) -> None:
    x = RNG.integers(0, 256, shape)
    floats, integers, octets = as_data(x.astype("f4")), as_data(x.astype("i2")), as_data(x.astype("u1"))
    for data in (floats, integers, octets):
        assert (data.kind, data.shape) == (kind, inside)
    assert torch.equal(floats.x, integers.x)
    assert torch.allclose(octets.batch(slice(None)), floats.x / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (np.where(np.arange(400) % 2, 5, 900), 2, ("5", "900")),
        (1 + np.arange(400) % 3, 3, ("1", "2", "3")),
        (np.full(400, 7), 1, ("7",)),
        (np.where(np.arange(400) % 2, 5, 2**60), 2, ("5", str(2**60))),
        ((np.arange(400) % 3).astype("u1"), 3, None),
        (torch.arange(400) % 3 * 10, 3, ("0", "10", "20")),
        ([0, 2] * 200, 2, ("0", "2")),
        (["dog", "cat"] * 200, 2, ("cat", "dog")),
    ],
)
def test_labels_with_gaps_and_names(labels: Any, classes: int, names: tuple[str, ...] | None) -> None:
    data = as_data(POINTS, labels)
    assert data.labels is not None and (data.classes, data.class_names) == (classes, names)
    given = [str(k) for k in (labels.tolist() if hasattr(labels, "tolist") else labels)]
    found = [names[k] if names else str(k) for k in data.labels.tolist()]
    assert found == given


def test_names_of_classes_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "pets.npz", x=POINTS[:4], labels=np.array(["dog", "cat", "dog", "cat"]))
    data = load_data(tmp_path / "pets.npz")
    assert data.labels is not None and data.labels.tolist() == [1, 0, 1, 0] and data.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.arange(400) % 3 - 1, InputError, "smallest -1; expected one per sample"),
        (np.arange(399), InputError, r"labels of shape \(399,\)"),
        ((np.arange(400) % 3)[:, None], InputError, r"labels of shape \(400, 1\)"),
        (np.arange(400) / 7, InputTypeError, "the labels are float64; expected whole numbers from 0 up, or names"),
        (np.arange(400) % 2 == 0, InputTypeError, "the labels are bool; expected whole numbers"),
        (torch.arange(400) % 2 == 0, InputTypeError, "the labels are torch.bool; expected whole numbers"),
        ([{}] * 400, InputTypeError, "the labels are object; expected whole numbers"),
    ],
)
def test_other_labels_are_refused(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_data(POINTS, labels)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (POINTS > 300, "the data is of type bool"),
        (POINTS.astype("c8"), "of type complex64"),
        (POINTS.astype("M8[s]"), "of type datetime64"),
        (torch.tensor(POINTS).to_sparse(), "is a tensor torch.sparse_coo; expected one with its values"),
        (torch.zeros(4, 2, device="meta"), "is a tensor on the meta device"),
    ],
)
def test_what_is_no_number_is_refused(x: Any, message: str) -> None:
    with pytest.raises(InputTypeError, match=message):
        as_data(x)
