"""Pictures of clouds are smooth in the points and turn with them; voxels hold the points; a U-Net takes volumes."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.data import as_data
from sde_diffusion.data.clouds.shapes import load_shapes
from sde_diffusion.points import render, to_voxels
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.training.defaults import default_model
from sde_diffusion.training.training_run import train
from solvers.errors import InputError


def test_the_gradient_of_a_picture_is_that_of_finite_differences() -> None:
    cloud = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: render(0.5 * x, 0.4, side=4), (cloud,))


def test_a_turn_of_the_view_is_the_turn_of_the_cloud() -> None:
    cloud = 0.4 * torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    turned = torch.stack([-cloud[:, 1], cloud[:, 0], cloud[:, 2]], 1)  # by a quarter about z
    torch.testing.assert_close(render(turned, 0.0), render(cloud, math.pi / 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(render(cloud[:, :, torch.randperm(20)], 0.7), render(cloud, 0.7), atol=1e-5, rtol=1e-5)


def test_a_point_is_where_its_coordinates_say() -> None:
    """y is across, z is up, x is the depth; c and the distance give the brightness."""
    picture = render(torch.tensor([[[9.0], [0.9], [-0.3]]]), 0.0, side=4, extent=1.2, radius=1.0, density=2.0)[0, 0]
    assert divmod(int(picture.argmax()), 4) == (2, 3)  # its centre is 3.5 pixels across and 2.5 down
    for (row, column), distance in {(2, 3): 0, (2, 2): 1, (1, 2): 2, (0, 3): 4}.items():
        expected = 2 * (1 - math.exp(-2 * math.exp(-distance / 2))) - 1
        assert float(picture[row, column]) == pytest.approx(expected, abs=1e-5)


def test_voxels_are_those_with_points() -> None:
    clouds = load_shapes("test").x[:5]
    volumes = to_voxels(clouds, side=8, extent=1.5)
    assert volumes.shape == (5, 1, 8, 8, 8) and set(volumes.unique().tolist()) == {-1.0, 1.0}
    for cloud, volume in zip(clouds, volumes, strict=True):
        cells = {tuple(int((c / 1.5 + 1) / 2 * 8) for c in point) for point in cloud.T.tolist()}
        assert {tuple(cell) for cell in (volume[0] > 0).nonzero().tolist()} == cells
    assert to_voxels(torch.full((1, 3, 1), 5.0), side=4).max() == -1  # outside of the cube


@pytest.mark.slow
def test_the_default_network_of_voxels_is_a_unet_in_three_dimensions() -> None:
    data = as_data(to_voxels(load_shapes("test").x[:32], side=8).numpy())
    model = default_model(data, network_settings={"channels": 8})
    assert model.network.name == "unet"
    trained = train(model, data, steps=2, batch_size=8, device="cpu", progress=False)
    assert sample(trained, 2, nfe=4, progress=False).shape == (2, 1, 8, 8, 8)


def test_what_is_no_cloud_has_no_picture() -> None:
    for wrong in (torch.zeros(2, 8, 3), torch.zeros(3, 8)):
        with pytest.raises(InputError, match="a picture is of clouds"):
            render(wrong, 0.0)
    with pytest.raises(InputError, match="are positive; got 0"):
        render(torch.zeros(1, 3, 2), 0.0, radius=0.0)
    with pytest.raises(InputError, match="in a cube of positive extent"):
        to_voxels(torch.zeros(1, 2, 4))
