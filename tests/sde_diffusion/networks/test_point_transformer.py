"""The point transformer: permutations of the points, other numbers of points, training, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build, default_settings
from sde_diffusion.networks.point_transformer import PointTransformer
from sde_diffusion.sampling.sampler import noise_for, sample
from sde_diffusion.sde import VPSDE
from solvers import solve
from solvers.errors import InputError


def awake(**more: Any) -> PointTransformer:
    """A network whose layers that start at zero do not."""
    network = PointTransformer((3, 16), width=16, depth=2, heads=2, **more)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize("points", [1, 16, 41])
def test_permuted_points_have_the_permuted_output_for_any_number(points: int) -> None:
    network, order = awake(classes=3), torch.randperm(points)
    x, t, label = torch.randn(2, 3, points), torch.tensor([0.2, 0.9]), torch.tensor([1, 2])
    out = network(x, t, label)
    torch.testing.assert_close(network(x[:, :, order], t, label), out[:, :, order], atol=1e-5, rtol=1e-5)
    assert (network(x, t) - out).abs().max() > 1e-3  # the label matters
    if points > 1:  # the points read one another
        moved = x.clone()
        moved[:, :, 0] += 1
        assert (network(moved, t, label) - out)[:, :, 1:].abs().max() > 1e-3


def test_a_run_of_a_solver_is_equivariant_and_takes_another_number_of_points() -> None:
    model = ScoreModel(awake(), VPSDE(), "velocity", shape=(3, 16))
    x1, order = noise_for(model, (3, 24), torch.arange(2)), torch.randperm(24)
    ends = [solve(model.sde.probability_flow(model), x, solver="pf-ode", nfe=6).x for x in (x1, x1[:, :, order])]
    torch.testing.assert_close(ends[1], ends[0][:, :, order], atol=1e-4, rtol=1e-4)
    assert sample(model, 3, nfe=4, shape=(3, 7), progress=False).shape == (3, 3, 7)


def test_settings_rebuild_the_network() -> None:
    network = awake(classes=2)
    again = build("points", **network.settings)
    again.load_state_dict(network.state_dict())
    assert again.settings == network.settings


@pytest.mark.parametrize(("size", "width"), [(None, 64), ("small", 32), ("medium", 64), ("large", 128)])
def test_every_size_has_its_width(size: str | None, width: int) -> None:
    name, settings = default_settings((3, 128), "points", size)
    assert (name, settings["width"], settings["embedding"]) == ("points", width, "log")
    assert build(name, **settings).settings["shape"] == [3, 128]


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(2, 16, 3), torch.zeros(2), r"takes clouds \(B, 3, N\), coordinates first"),
        (torch.zeros(2, 3), torch.zeros(2), r"takes clouds \(B, 3, N\)"),
        (torch.zeros(2, 3, 0), torch.zeros(2), r"takes clouds \(B, 3, N\)"),
        (torch.zeros(2, 3, 5), torch.zeros(3), "one time per sample"),
    ],
)
def test_what_is_no_cloud_is_refused(x: torch.Tensor, t: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        awake()(x, t)


@pytest.mark.parametrize(
    "settings", [{"shape": (3,)}, {"shape": (3, 4, 4)}, {"shape": (3, 8), "width": 10, "heads": 4}]
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"clouds \(C, N\)|cannot be shared"):
        PointTransformer(**settings)
