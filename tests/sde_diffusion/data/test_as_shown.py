"""Images are what people see, labels what the files say, and an array means the same as bytes and as floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sde_diffusion import VPSDE, ScoreModel, train
from sde_diffusion.data import as_data, load_data
from sde_diffusion.data.images import decode
from sde_diffusion.data.preparation import prepare
from sde_diffusion.networks import build
from solvers.errors import InputError, InputTypeError


def halves(width: int = 16, height: int = 8) -> np.ndarray[Any, Any]:
    """Black on the left, white on the right."""
    a = np.zeros((height, width, 3), np.uint8)
    a[:, width // 2 :] = 255
    return a


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "in").mkdir()
    Image.fromarray(halves()).save(tmp_path / "in" / "a.png", exif=exif)
    data = load_data(tmp_path / "in")
    assert data.shape == ((3, 8, 16) if orientation <= 4 else (3, 16, 8))
    # Row 0 and column 0 as the viewer sees them: black comes first for 1, 4, 5, 6, 7 and 8 where it should.
    first = int(data.x[0, 0, 0, 0])
    assert first == {1: 0, 2: 255, 3: 255, 4: 0, 5: 0, 6: 0, 7: 255, 8: 255}[orientation]
    made = prepare(tmp_path / "in", tmp_path / "out")
    assert torch.equal(made.rows([0]), data.x)


@pytest.mark.parametrize(
    "background, seen", [("white", [255, 255, 255]), ("black", [0, 0, 0]), ("#102030", [16, 32, 48])]
)
def test_transparent_pixels_show_the_background(background: str, seen: list[int]) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200  # hidden red
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 128
    image = Image.fromarray(rgba)
    found = decode(image.copy(), "a", mode="RGB", background=background)
    assert found[0, 0].tolist() == [200, 0, 0] and found[3, 0].tolist() == seen
    assert found[2, 0].tolist() == pytest.approx([(200 + seen[0]) / 2, seen[1] / 2, seen[2] / 2], abs=1.5)
    assert np.array_equal(decode(image, "a"), rgba)  # four channels keep what they have


def test_transparent_colours_of_palettes_are_not_uncovered() -> None:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((0, 0), 1)
    image.info["transparency"] = 1
    assert decode(image.copy(), "a").shape == (2, 2, 4)
    assert decode(image, "a", mode="RGB")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["s.tif", "s.gif", "s.webp"])
def test_pages_and_frames_are_refused(tmp_path: Path, name: str) -> None:
    pages = [Image.fromarray(np.full((8, 8), 50 * k, np.uint8)) for k in range(5)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=rf"{name} has 5 pages or frames; save them as images of their own"):
        load_data(tmp_path)
    with pytest.raises(InputError, match="5 pages or frames"):
        prepare(tmp_path, tmp_path / "out")


def test_16_bits_are_kept_as_numbers(tmp_path: Path) -> None:
    values = np.array([[0, 1], [4095, 65535]], np.uint16)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(values).save(tmp_path / "in" / f"{name}.png")
    data = load_data(tmp_path / "in")
    assert data.x.dtype == torch.float32 and data.shape == (1, 2, 2)
    assert data.x[0].tolist() == [values.tolist()]
    assert torch.equal(prepare(tmp_path / "in", tmp_path / "out").rows(slice(None)), data.x)
    eight = prepare(tmp_path / "in", tmp_path / "eight", mode="L")
    assert eight.rows([0]).tolist() == [[[[0, 0], [16, 255]]]]
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "in" / "c.png")
    with pytest.raises(InputError, match=r"c.png is 2 x 2 gray, but .*a.png is 2 x 2 16-bit gray"):
        load_data(tmp_path / "in")


def edm_set(root: Path, labels: Any) -> None:
    for k in range(8):
        (root / f"{k // 4:05d}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 + 170 * (k % 2), np.uint8)).save(root / f"{k // 4:05d}/img{k:08d}.png")
    (root / "dataset.json").write_text(json.dumps(labels))


def test_dataset_json_has_the_labels(tmp_path: Path) -> None:
    names = [f"{k // 4:05d}/img{k:08d}.png" for k in range(8)]
    edm_set(tmp_path / "a", {"labels": [[name, k % 2] for k, name in enumerate(names)]})
    assert load_data(tmp_path / "a").labels.tolist() == [0, 1] * 4  # type: ignore[union-attr]
    assert prepare(tmp_path / "a", tmp_path / "p").labels.tolist() == [0, 1] * 4  # type: ignore[union-attr]
    edm_set(tmp_path / "b", {"labels": None})
    assert load_data(tmp_path / "b").labels is None  # shards are no classes
    edm_set(tmp_path / "c", {"labels": [[name, 3 + 4 * (k % 2)] for k, name in enumerate(names)]})
    for data in (load_data(tmp_path / "c"), prepare(tmp_path / "c", tmp_path / "q")):
        assert data.labels is not None
        assert (data.labels.tolist(), data.class_names) == ([0, 1] * 4, ("3", "7"))
    for content, message in (
        ({"labels": [[names[0], 1]]}, "no label for 7 of 8 images, the first is .*img00000001"),
        ({"labels": [[name, [0.0, 1.0]] for name in names]}, "expected a whole number"),
        ({"labels": {"a": 1}}, "is no file of labels"),
        ([1, 2], "is no file of labels"),
        ({"labels": [["a"]]}, "a label is .name of the image, whole number."),
    ):
        (tmp_path / "c" / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            load_data(tmp_path / "c")


def test_names_of_classes_stay(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(halves()).save(tmp_path / "in" / name / f"{k}.png")
    for data in (load_data(tmp_path / "in"), prepare(tmp_path / "in", tmp_path / "out"), load_data(tmp_path / "out")):
        assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]


def test_gaps_in_labels_are_closed_and_remembered() -> None:
    data = as_data(np.zeros((4, 2)), [900, 5, 900, 7])
    assert data.labels is not None and data.labels.tolist() == [2, 0, 2, 1]
    assert (data.classes, data.class_names) == (3, ("5", "7", "900"))
    assert as_data(np.zeros((3, 2)), [0, 2, 1]).class_names is None
    with pytest.raises(InputError, match="smallest -1"):
        as_data(np.zeros((2, 2)), [-1, 1])


@pytest.mark.parametrize("shape", [(8, 32, 32, 3), (8, 3, 32, 32), (8, 48, 64, 1), (8, 16, 24, 4), (8, 2, 16, 16)])
def test_an_array_means_the_same_as_bytes_and_as_floats(shape: tuple[int, ...]) -> None:
    values = (255 * np.random.default_rng(0).random(shape)).astype(np.uint8)
    bytes_, floats = as_data(values), as_data(values.astype(np.float64))
    assert floats.shape == bytes_.shape and bytes_.shape[0] in (1, 2, 3, 4)
    assert torch.equal(floats.x, bytes_.x.float())


def test_a_layout_may_be_stated(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).random((4, 8, 8, 5)).astype("f4")
    np.save(tmp_path / "x.npy", fields)
    assert load_data(tmp_path / "x.npy").shape == (8, 8, 5)
    last = load_data(tmp_path / "x.npy", layout="channels-last")
    assert last.shape == (5, 8, 8) and torch.equal(last.x, torch.tensor(fields.transpose(0, 3, 1, 2)))
    assert prepare(tmp_path / "x.npy", tmp_path / "p", layout="channels-last").shape == (5, 8, 8)
    assert as_data(np.zeros((4, 3, 32, 3), np.uint8), layout="channels-last").shape == (3, 3, 32)
    assert as_data(np.zeros((2, 16, 4, 4))).shape == (16, 4, 4)
    with pytest.raises(InputError, match="did you mean 'channels-last'"):
        as_data(fields, layout="channel-last")
    with pytest.raises(InputError, match="a layout applies to images of rank 4"):
        as_data(np.zeros((4, 5)), layout="channels-last")


def test_videos_of_bytes_are_scaled_and_masks_refused() -> None:
    video = (255 * np.random.default_rng(0).random((8, 5, 3, 16, 16))).astype("u1")
    data = as_data(video)
    assert data.kind == "signal" and torch.equal(data.x, torch.tensor(video).float() / 127.5 - 1)
    masked = np.ma.masked_greater(np.array([[1.0, 2.0], [3.0, 1e6]]), 1e5)
    with pytest.raises(InputError, match="1 of 4 values are masked"):
        as_data(masked)
    assert as_data(np.ma.array([[1.0, 2.0]])).x.tolist() == [[1.0, 2.0]]


def test_differences_that_float32_loses_are_refused() -> None:
    noise = np.random.default_rng(0).standard_normal((50, 2))
    with pytest.raises(InputError, match=r"rounding to float32 changes entry 1 by up to .*subtract an offset first"):
        as_data(noise + np.array([0, 1e9]))
    assert as_data(300 + 1e-2 * noise).x.dtype == torch.float32
    assert as_data(np.full((3, 2), 0.1)).x.shape == (3, 2)  # a constant has no differences


class Pairs(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Any:
        return self.items[k]


def test_torch_data_sets_and_loaders_are_read() -> None:
    x = torch.randn(12, 3)
    labels = torch.arange(12) % 2
    for source in (
        TensorDataset(x, labels),
        DataLoader(TensorDataset(x, labels), batch_size=5, shuffle=True),
        Pairs([{"x": a, "label": int(b)} for a, b in zip(x, labels, strict=True)]),
        Pairs([(a.numpy(), b.numpy()) for a, b in zip(x, labels, strict=True)]),
    ):
        data = as_data(source)
        assert torch.equal(data.x, x) and data.labels is not None and torch.equal(data.labels, labels)
        assert data.name in ("TensorDataset", "Pairs")

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(x)

    assert torch.equal(as_data(Stream()).x, x) and as_data(TensorDataset(x)).labels is None
    pictures = as_data(Pairs([(Image.fromarray(halves()), k) for k in range(3)]))
    assert pictures.is_image and pictures.shape == (3, 8, 16) and pictures.x.dtype == torch.uint8
    network = build("mlp", shape=(3,), width=8, depth=1)
    model = train(ScoreModel(network, VPSDE(), "velocity"), TensorDataset(x), steps=2, batch_size=4, progress=False)
    assert model.shape == (3,)


@pytest.mark.parametrize(
    "items, error, message",
    [
        ([], InputError, "Pairs has no items"),
        ([torch.zeros(2), torch.zeros(3)], InputError, r"item 1 of Pairs has shape \(3,\), but item 0 has \(2,\)"),
        (["text"], InputTypeError, "item 0 of Pairs is of type str; expected a tensor, an array or a PIL image"),
        ([{"a": 1}], InputTypeError, "item 0 of Pairs has the keys a; call the sample 'x' or 'image'"),
        ([(torch.zeros(2), 0.5)], InputTypeError, "the label of item 0 of Pairs is 0.5; expected a whole number"),
        ([(torch.zeros(2), 1, 2)], InputTypeError, "the condition of item 0 of Pairs is of type int"),
        ([(torch.zeros(2), 1, torch.zeros(2), 3)], InputTypeError, "item 0 of Pairs has 4 parts"),
    ],
)
def test_items_that_are_no_samples_are_named(items: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_data(Pairs(items))
