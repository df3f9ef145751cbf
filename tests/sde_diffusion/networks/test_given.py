"""Conditions of networks: NaN means none, images are resized and noised as stated, tokens are a set with padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sde_diffusion.networks import MLP, DiT, UNet, build
from sde_diffusion.networks.given import CrossAttention, GivenConditions
from solvers.errors import InputError

NETWORKS: dict[str, Any] = {
    "unet": lambda **more: UNet((1, 9, 10), channels=8, multipliers=(1, 2), attention=(5,), blocks=1, **more),
    "dit": lambda **more: DiT((1, 8, 8), width=16, depth=1, heads=2, **more),
}
ALL = {"vector": 3, "image": [2, 4, 5], "resize": "nearest", "tokens": 6}


def awake(network: nn.Module) -> Any:
    """A network whose layers that start at zero do not."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


def conditions(batch: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = {"vector": (3,), "image": (2, 4, 5), "tokens": (4, 6)}
    return {name: torch.randn(batch, *shape, generator=draw) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_nan_rows_are_no_condition_row_by_row_and_every_kind_matters(name: str) -> None:
    network = awake(NETWORKS[name](**ALL))
    x, t = torch.randn(3, *network.shape), torch.rand(3)
    whole = conditions(3)
    free, full = network(x, t), network(x, t, **whole)
    lost = {kind: value.index_fill(0, torch.tensor([1]), math.nan) for kind, value in whole.items()}
    mixed = network(x, t, **lost, image_noise=torch.tensor([0.0, 0.7, 0.0]))
    torch.testing.assert_close(mixed[1], free[1])
    torch.testing.assert_close(mixed[::2], full[::2])
    for kind, value in whole.items():
        assert (network(x, t, **{kind: value}) - free).abs().max() > 1e-3, kind
    assert (network(x, t, **whole, image_noise=torch.full((3,), 0.5)) - full).abs().max() > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_rebuild_a_network_with_conditions(name: str) -> None:
    network = NETWORKS[name](**ALL)
    again = build(network.name, **network.settings)
    again.load_state_dict(network.state_dict())
    assert again.settings == network.settings and "required" not in network.settings


def test_networks_without_conditions_have_the_settings_and_weights_that_they_had() -> None:
    plain = MLP((2,))
    assert {"vector", "required"}.isdisjoint(plain.settings)
    assert not any("given" in name for name in plain.state_dict())


def test_tokens_are_read_as_a_set_and_padding_is_not_read() -> None:
    layer = awake(CrossAttention(8, 6, heads=2))
    h, tokens = torch.randn(2, 5, 8), torch.randn(2, 4, 6)
    padded = torch.cat([tokens, torch.full((2, 3, 6), math.nan)], 1)
    torch.testing.assert_close(layer(h, padded[:, torch.tensor([5, 2, 0, 4, 3, 1, 6])]), layer(h, tokens))
    none = layer(h, torch.full((2, 1, 6), math.nan))
    torch.testing.assert_close(none, layer(h, torch.full((2, 7, 6), math.nan)))
    assert torch.isfinite(none).all()


@torch.no_grad()
def test_equal_features_read_by_their_place_on_the_grid() -> None:
    h, tokens = torch.randn(1, 1, 8).expand(2, 6, 8), torch.randn(2, 4, 6)
    blind, seeing = awake(CrossAttention(8, 6, heads=2)), awake(CrossAttention(8, 6, heads=2, sizes=(2, 3)))
    assert float(blind(h, tokens).std(1).max()) < 1e-6
    read = seeing(h, tokens)
    assert float((torch.cdist(read, read) + torch.eye(6)).min()) > 1e-4  # no two places read alike
    network = NETWORKS["unet"](tokens=6)
    reading = [buffer.shape for name, buffer in network.named_buffers() if name.endswith("cross.cosines")]
    assert reading == [(5 * 5, 8)] * 2  # (9, 10) is padded, then halved


@settings(max_examples=15, deadline=None)
@given(level=st.floats(0, 1), mean=st.floats(-100, 100), std=st.floats(0.01, 100))
def test_noised_images_have_the_mean_and_deviation_of_the_formula(level: float, mean: float, std: float) -> None:
    beside = GivenConditions((1, 2, 2), 8, image=(1, 2, 2))
    beside.measure("image", torch.tensor(mean), torch.tensor(std))
    z, eps = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    out = beside.noised(mean + std * z, torch.full((5,), level), eps)
    expected = mean + std * (math.sqrt(1 - level**2) * z + level * eps)
    torch.testing.assert_close(out, expected, atol=1e-5 * (abs(mean) + std), rtol=1e-4)


def test_units_of_conditions_do_not_change_the_answer() -> None:
    network = awake(MLP((2,), width=8, depth=1, vector=2))
    x, t, c = torch.randn(4, 2), torch.rand(4), torch.randn(4, 2)
    before = network(x, t, vector=c)
    network.given.measure("vector", torch.tensor([300.0, -5.0]), torch.tensor([10.0, 0.1]))
    scaled = torch.tensor([300.0, -5.0]) + torch.tensor([10.0, 0.1]) * c
    torch.testing.assert_close(network(x, t, vector=scaled), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"vector": torch.zeros(2, 4)}, r"vector has shape \(2, 4\); expected \(2, 3\)"),
        ({"image": torch.zeros(2, 2, 5, 5)}, r"expected \(2, 2, 4, 5\)"),
        ({"tokens": torch.zeros(2, 6)}, "number of tokens, 6"),
        ({"image_noise": torch.zeros(2)}, "give image= as well"),
    ],
)
def test_conditions_of_another_shape_are_refused(call: dict[str, Tensor], message: str) -> None:
    network = NETWORKS["unet"](**ALL)
    with pytest.raises(InputError, match=message):
        network(torch.zeros(2, 1, 9, 10), torch.zeros(2), **call)


def test_what_a_network_was_built_without_or_requires_is_said() -> None:
    x, t = torch.zeros(2, 2), torch.zeros(2)
    with pytest.raises(InputError, match="built without the condition 'vector'"):
        MLP((2,))(x, t, vector=torch.zeros(2, 1))
    with pytest.raises(InputError, match=r"needs its condition: give vector=\.\.\. \(--condition PATH\)"):
        MLP((2,), vector=1, required=True)(x, t)
    with pytest.raises(InputError, match="4 x 4 and the sample 8 x 8; say how it is resized"):
        UNet((1, 8, 8), channels=8, image=(1, 4, 4))
    with pytest.raises(InputError, match="levels with attention"):
        UNet((1, 8, 8), channels=8, tokens=4)
