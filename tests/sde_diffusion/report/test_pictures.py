"""Pictures show every pixel where it belongs."""

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data.pixels import to_uint8
from sde_diffusion.report.pictures import image_grid, save_grid, scatter


def test_to_uint8_rounds_to_the_nearest_byte_and_clamps():
    values = torch.tensor([-9.0, -1.0, -1 + 1.01 / 255, -1 + 0.99 / 255, 0.999, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 0, 255, 255]
    every = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_uint8(every.to(dtype) / 127.5 - 1), every.to(torch.uint8))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="2 of 3 values are not finite"):
        to_uint8(torch.tensor([0.0, float("nan"), float("inf")]))


@pytest.mark.parametrize("channels, count, columns", [(1, 5, None), (3, 4, 3), (3, 1, 8)])
def test_a_grid_can_be_cut_back_into_its_images(tmp_path, channels, count, columns):
    x = torch.rand(count, channels, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_grid(tmp_path / "grid.png", x, columns=columns, scale=3)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        pixels = torch.tensor(np.array(image)).reshape(image.height, image.width, channels)
    columns = {5: 3, 4: 3, 1: 1}[count]
    for k in range(count):
        top, left = 2 + k // columns * 14, 2 + k % columns * 20
        cell = pixels[top : top + 12, left : left + 18].permute(2, 0, 1)
        for i in range(3):
            assert torch.equal(cell[:, i::3, 2 - i :: 3], to_uint8(x[k]))
    assert pixels.shape[:2] == (2 + -(-count // columns) * 14, 2 + columns * 20)
    assert (pixels[:2] == 128).all() and (pixels[:, -2:] == 128).all()


def test_small_images_are_enlarged_until_they_can_be_seen():
    for side, shown in ((8, 64), (28, 56), (32, 64), (100, 100)):
        assert image_grid(torch.zeros(1, 1, side, side), gap=0).size == (shown, shown)


@pytest.mark.parametrize(
    "shape, settings, message",
    [
        ((2, 2), {}, r"shape \(2, 2\)"),
        ((2, 2, 8, 8), {}, "1 or 3"),
        ((0, 1, 8, 8), {}, "1 or 3"),
        ((2, 1, 8, 8), {"columns": 0}, "columns 0"),
        ((2, 1, 8, 8), {"scale": 0}, "scale 0"),
    ],
)
def test_what_is_no_picture_is_refused(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        image_grid(torch.zeros(shape), **settings)


def blue_centre(path):
    """Return the centre (x, y) of all blue pixels, in 0..1 with y up."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"), float)
    blue = rgb[..., 2] - rgb[..., 0] > 60
    rows, columns = np.nonzero(blue)
    return columns.mean() / rgb.shape[1], 1 - rows.mean() / rgb.shape[0]


def test_points_lie_where_they_are_in_the_axes_of_the_reference(tmp_path):
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    upper_left = torch.tensor([[-0.9, 0.9], [1000.0, 1000.0]])  # the outlier is not shown
    scatter(tmp_path / "a.png", upper_left, reference=corners)
    x, y = blue_centre(tmp_path / "a.png")
    assert x < 0.25 and y > 0.75
    scatter(tmp_path / "b.png", corners)
    x, y = blue_centre(tmp_path / "b.png")
    assert abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1
    with pytest.raises(ValueError, match=r"points \(B, 2\); got shape \(4, 3\)"):
        scatter(tmp_path / "c.png", torch.zeros(4, 3))
    assert not (tmp_path / "c.png").exists()
