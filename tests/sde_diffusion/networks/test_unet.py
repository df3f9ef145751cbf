"""What is particular to the U-Net: its blocks, its attention, the sizes it accepts."""

import pytest
import torch

from sde_diffusion.networks import UNet
from sde_diffusion.networks.unet import Attention, Block


def randomised(module, seed=0):
    """Return the module in float64 with all weights random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def test_a_new_block_and_a_new_attention_are_the_identity():
    h, condition = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(Block(8, 8, 16, 0.0)(h, condition), h)
    assert torch.equal(Attention(8, 2)(h), h)


def test_attention_is_equivariant_to_permuted_positions():
    attention = randomised(Attention(8, 2))
    h = torch.randn(3, 8, 4, 5, dtype=torch.float64)
    order = torch.randperm(20)

    def permute(image):
        return image.flatten(2)[:, :, order].reshape(image.shape)

    torch.testing.assert_close(attention(permute(h)), permute(attention(h)))


def test_attention_with_equal_keys_reads_the_mean_of_the_values():
    attention = randomised(Attention(8, 2))
    attention.qkv.weight.data[8:16] = 0  # keys are their bias: every position gets the same weight
    h = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    values = attention.qkv(attention.norm(h))[:, 16:].mean((2, 3), keepdim=True)
    torch.testing.assert_close(attention(h), h + attention.leave(values).expand_as(h))


def test_the_condition_scales_and_shifts_the_normalised_features():
    # with scale -1 the inside of the block is silu(shift), whatever the image
    block = randomised(Block(4, 8, 2, 0.0))
    block.modulation.weight.data.zero_()
    block.modulation.bias.data[:8] = -1
    h = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    shift = block.modulation.bias[8:]
    inner = torch.nn.functional.silu(shift)[None, :, None, None].expand(2, 8, 6, 6)
    expected = block.skip(h) + block.conv2(inner)
    torch.testing.assert_close(block(h, torch.randn(2, 2, dtype=torch.float64)), expected)


@pytest.mark.parametrize(
    "multipliers, attention, reach",
    [((1,), (), 6), ((1,), (16,), 16), ((1, 1), (), 16)],
)
def test_how_far_a_pixel_is_felt(multipliers, attention, reach):
    """Two blocks of two convolutions, and the two ends, reach 6 pixels; attention reaches all."""
    network = UNet((1, 16, 16), 4, multipliers, 1, attention, 1)
    randomised(network)
    for module in list(network.modules()):
        for key, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):  # a norm feels every pixel
                setattr(module, key, torch.nn.Identity())
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5], dtype=torch.float64)
    network(x, t)[0, 0, 0].sum().backward()
    felt = x.grad[0, 0].abs().sum(1) > 0
    assert felt[: reach + 1].all() and not felt[reach + 1 :].any()


def test_the_way_up_sees_what_the_way_down_had():
    network = randomised(UNet((1, 8, 8), 4, (1, 1), 2))
    for module in (*network.shrink, *network.grow):
        module.weight.data.zero_()  # cuts every way but the one across
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    out = network(x, t)
    assert (out[0] - out[1]).norm() > 1e-3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shape": (8,)}, r"works on \(C, L\), \(C, H, W\)"),
        ({"shape": (1, 8, 0)}, r"got shape \(1, 8, 0\)"),
        ({"shape": (1, 2, 28)}, "3 levels halve the sample 2 times, more than its sizes bear; got 2 x 28"),
        ({"shape": (1, 8, 8), "attention": (7, 4)}, r"heights \[7\].*heights \[8, 4, 2\]"),
        ({"shape": (1, 8, 8), "attention": (4,), "heads": 3}, "128 channels.*3 attention heads"),
        ({"shape": (1, 8, 8), "blocks": 0}, "blocks 0"),
        ({"shape": (1, 8, 8), "multipliers": ()}, r"multipliers \(\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UNet(**settings)


@pytest.mark.parametrize("shape", [(3, 9, 10), (1, 31), (2, 5, 6, 7), (1, 8, 7)])
def test_odd_sides_are_padded_inside_and_cropped(shape):
    network = randomised(UNet(shape, 4, (1, 1, 2) if len(shape) < 4 else (1, 2), 1)).double()
    x, t = torch.randn(2, *shape, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    out = network(x, t)
    assert out.shape == x.shape
    # The same weights on the padded sample, whose output is cropped.
    levels = len(network.settings["multipliers"]) - 1
    sizes = [-(-size // 2**levels) * 2**levels for size in shape[1:]]
    padded = UNet(**{**network.settings, "shape": (shape[0], *sizes)}).double()
    padded.load_state_dict(network.state_dict())
    index = [torch.arange(size).clamp_max(own - 1) for size, own in zip(sizes, shape[1:], strict=True)]
    wide = x
    for axis, places in enumerate(index):
        wide = wide.index_select(axis + 2, places)
    expected = padded(wide, t)
    for axis, size in enumerate(shape[1:]):
        expected = expected.narrow(axis + 2, 0, size)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
