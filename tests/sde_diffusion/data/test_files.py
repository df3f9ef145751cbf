"""Arrays and image folders of the user's own: what is read, and what is refused by name."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data import load_data


def write_images(root, pictures):
    """Write arrays (H, W) or (H, W, 3) as image files below root."""
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(root / name)


def colour(seed, height=4, width=6):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


def test_npy_and_npz_hold_the_same_data(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "any.npz", anything=x)
    np.savez_compressed(tmp_path / "full.npz", x=x, labels=np.arange(5), more=1)
    names = "x.npy", "any.npz", "full.npz"
    plain, single, full = (load_data(str(tmp_path / name)) for name in names)
    assert torch.equal(plain.x, torch.tensor(x, dtype=torch.float32))
    assert plain.fingerprint == single.fingerprint
    assert full.labels.tolist() == [0, 1, 2, 3, 4]
    assert load_data(tmp_path / "full.npz", labels=False).fingerprint == plain.fingerprint


def test_a_folder_is_read_in_order_with_its_subfolders_as_classes(tmp_path):
    write_images(
        tmp_path,
        {"b/2.png": colour(2), "a/x/1.png": colour(1), "b/3.bmp": colour(3), "c/0.PNG": colour(4)},
    )
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / ".thumb.png").write_text("hidden")
    data = load_data(tmp_path)
    assert (data.kind, data.shape) == ("image", (3, 4, 6))
    assert data.labels.tolist() == [0, 1, 1, 2]
    expected = np.stack([colour(k) for k in (1, 2, 3, 4)]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.x.numpy(), expected)


def test_images_beside_subfolders_have_no_classes(tmp_path):
    write_images(tmp_path, {"0.png": colour(0)[..., 0], "a/1.png": colour(1)[..., 0]})
    data = load_data(tmp_path)
    assert data.labels is None and data.shape == (1, 4, 6)


@pytest.mark.parametrize("name", ["0.png", "z.png"])
def test_the_image_that_cannot_be_read_is_named(tmp_path, name):
    write_images(tmp_path, {"1.png": colour(0), name: colour(1)})
    content = (tmp_path / name).read_bytes()
    for torn in (b"", b"no image", content[: len(content) // 2]):
        (tmp_path / name).write_bytes(torn)
        with pytest.raises(ValueError, match=f"cannot read the image .*{name}"):
            load_data(tmp_path)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (colour(1, 5, 6), "b.png is 6 x 5 RGB, but .*a.png is 6 x 4 RGB"),
        (colour(1)[..., 0], "b.png is 6 x 4 gray, but .*a.png is 6 x 4 RGB"),
        (np.zeros((4, 6, 4)), "b.png is 6 x 4 RGBA, but .*a.png is 6 x 4 RGB;"),
    ],
)
def test_images_of_mixed_shapes_are_refused_by_name(tmp_path, pixels, message):
    write_images(tmp_path, {"a.png": colour(0), "b.png": pixels})
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path)


def test_folders_without_images_and_paths_without_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no images below"):
        load_data(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no data at .*missing\.npy"):
        load_data(tmp_path / "missing.npy")
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"table\.csv is no data file"):
        load_data(tmp_path / "table.csv")


class Trap:
    """Unpickling this fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_torn_and_pickled_files_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    array = np.arange(400.0).reshape(200, 2)
    np.save(path, array) if suffix == "npy" else np.savez_compressed(path, x=array)
    whole = path.read_bytes()
    contents = [b"", b"junk", whole[: len(whole) // 2], pickle.dumps(Trap())]
    if suffix == "npz":
        contents += [whole[:300] + bytes([whole[300] ^ k]) + whole[301:] for k in (1, 255)]
    np.save(tmp_path / "o.npy", np.array([[Trap()]], object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=np.array([[Trap()]], object))
    contents.append((tmp_path / f"o.{suffix}").read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*x.{suffix}"):
            load_data(path)


def test_an_npz_that_does_not_say_which_array_is_refused(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\['a', 'b'\]; call the samples 'x'"):
        load_data(tmp_path / "two.npz")
    np.savez(tmp_path / "nan.npz", x=np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="6 of 6 values are not finite"):
        load_data(tmp_path / "nan.npz")
