"""The VQModel of diffusers as an autoencoder: latents before the codebook, which decoding applies."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.interop.autoencoder import Autoencoder


def test_a_vq_model_encodes_before_its_codebook_and_decodes_through_it() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.VQModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=2,
        num_vq_embeddings=16,
        norm_num_groups=4,
        scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    ).eval()
    autoencoder, x = Autoencoder(network), torch.randn(2, 1, 8, 8)
    z = autoencoder.encode(x)
    with torch.no_grad():
        own = network.encode(x).latents
        assert torch.allclose(z, 0.5 * own)
        assert torch.allclose(autoencoder.decode(z), network.decode(own).sample, atol=1e-5)
