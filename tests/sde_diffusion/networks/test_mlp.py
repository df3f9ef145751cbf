"""What is particular to the perceptron."""

import pytest
import torch

from sde_diffusion.networks import MLP
from sde_diffusion.networks.mlp import Block


def test_a_new_block_is_the_identity():
    h = torch.randn(3, 16)
    assert torch.equal(Block(16, 0.0)(h, torch.randn(3, 16)), h)


def test_the_condition_scales_and_shifts_the_normalised_values():
    # with scale -1 the inside of the block is a function of the shift alone
    block = Block(16, 0.0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    block.modulation.weight.data.zero_()
    block.modulation.bias.data[:16] = -1
    silu = torch.nn.functional.silu
    expected = block.last(silu(block.first(silu(block.modulation.bias[16:]))))
    h = torch.randn(3, 16)
    torch.testing.assert_close(block(h, torch.randn(3, 16)) - h, expected.expand(3, 16))


def test_a_longer_shape_is_its_flattened_vector():
    signal, vector = MLP((2, 3), width=8), MLP((6,), width=8)
    for parameter in signal.parameters():
        torch.nn.init.normal_(parameter)
    vector.load_state_dict(signal.state_dict())
    x, t = torch.randn(4, 2, 3), torch.rand(4)
    assert torch.equal(signal(x, t), vector(x.flatten(1), t).reshape(4, 2, 3))


def test_it_learns_a_function_of_place_and_time():
    """After 300 steps of Adam the error of the target x sin(8 t) is below 1 % of its power."""
    torch.manual_seed(0)
    network = MLP((2,), width=64, depth=2)
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        x, t = torch.randn(256, 2), torch.rand(256)
        target = x * torch.sin(8 * t)[:, None]
        loss = (network(x, t) - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.01 * target.square().mean()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shape": ()}, r"shape \(\)"),
        ({"shape": (0,)}, r"shape \(0,\)"),
        ({"shape": (2,), "depth": 0}, "depth 0"),
        ({"shape": (2,), "width": 33}, "even number of features, not 33"),
        ({"shape": (2,), "frequencies": -1}, "Fourier features need a number"),
        ({"shape": (2,), "frequencies": 4, "bandwidth": 0.0}, "positive bandwidth"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MLP(**settings)


def test_fourier_features_enter_beside_x():
    """A network with features is one on the longer vector [x, cos B x, sin B x], whose B every new network has."""
    network, other = (MLP((2,), width=8, depth=1, frequencies=3, bandwidth=5.0) for _ in range(2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    other.load_state_dict(network.state_dict())
    x, t = torch.randn(4, 2), torch.rand(4)
    assert torch.equal(other(x, t), network(x, t)) and network.settings["frequencies"] == 3
    b = 5.0 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    plain = MLP((8,), width=8, depth=1)
    plain.load_state_dict({**network.state_dict(), "leave.weight": torch.zeros(8, 8), "leave.bias": torch.zeros(8)})
    seen = []
    plain.norm.register_forward_hook(lambda module, given, out: seen.append(out))
    network.norm.register_forward_hook(lambda module, given, out: seen.append(out))
    plain(torch.cat([x, (x @ b.T).cos(), (x @ b.T).sin()], 1), t)
    network(x, t)
    torch.testing.assert_close(seen[0], seen[1])


def test_plain_networks_have_no_setting_of_features():
    assert "frequencies" not in MLP((2,), width=8).settings
