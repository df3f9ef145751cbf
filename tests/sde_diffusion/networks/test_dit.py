"""What is particular to the transformer: patches, places, blocks."""

import pytest
import torch

from sde_diffusion.networks import DiT
from sde_diffusion.networks.dit import Block, positions


@pytest.mark.parametrize("shape", [(2, 8), (3, 4, 6), (1, 2, 4, 6)])
def test_patches_are_cut_and_put_together_again(shape):
    network = DiT(shape, width=16, depth=1, heads=2)
    x = torch.randn(5, *shape)
    assert torch.equal(network.assemble(network.tokens(x)), x)


def test_a_token_is_one_patch_of_the_image():
    network = DiT((2, 4, 6), patch=2, width=16, depth=1, heads=2)
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    assert torch.equal(network.tokens(x)[0, 4], x[0, :, 2:4, 2:4].flatten())


def test_position_encodings_are_distinct_of_equal_norm_and_shared_along_axes():
    places = positions((4, 6), 32)
    assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.1
    torch.testing.assert_close(places.square().sum(1), torch.full((24,), 16.0))
    rows = places.reshape(4, 6, 2, 16)[:, :, 0]
    assert torch.equal(rows, rows[:, :1].expand_as(rows))  # half of the features tells the row alone


def test_a_new_block_is_the_identity_and_a_block_is_equivariant_to_permuted_tokens():
    h, condition = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    block = Block(8, 2, 0.0).double()
    assert torch.equal(block(h, condition), h)
    torch.nn.init.normal_(block.modulation.weight)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert not torch.allclose(block(h, condition), h)
    torch.testing.assert_close(block(h[:, order], condition), block(h, condition)[:, order])


def test_attention_is_that_of_torch():
    """One block with gates 1, shifts and scales 0, and no perceptron is torch's own multi-head attention."""
    block = Block(8, 2, 0.0).double()
    block.modulation.bias.data[16:24] = 1
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.merge.weight,
            "out_proj.bias": block.merge.bias,
        }
    )
    h = torch.randn(3, 5, 8, dtype=torch.float64)
    normed = torch.nn.functional.layer_norm(h, (8,))
    torch.testing.assert_close(block(h, torch.zeros(3, 8).double()), h + theirs(normed, normed, normed)[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shape": (8,)}, r"got shape \(8,\)"),
        ({"shape": (1, 8, 0)}, r"got shape \(1, 8, 0\)"),
        ({"shape": (1, 9, 8)}, "side 2 do not divide a sample of 9 x 8"),
        ({"shape": (1, 8, 8), "width": 20}, "20 cannot be shared by 6 heads"),
        ({"shape": (1, 8, 8), "depth": 0}, "depth 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiT(**settings)
