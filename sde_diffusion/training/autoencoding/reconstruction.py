r"""How well an autoencoder reconstructs, and how its latents are distributed.

rmse is the root mean square of x - decode(encode(x)) in units of the data, psnr that in decibels for a range of 2, as
images in [-1, 1] have. For vq the perplexity is that of all codes of the samples, K for equal use of K codes; a
codebook has collapsed where it is below K / 8.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sde_diffusion.data import Data
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.training.autoencoding.loss import gaussian_kl

MOST = 2000  # samples looked at
COLLAPSED = 8


@dataclass(frozen=True)
class Quality:
    """The quality of an autoencoder on samples.

    Attributes:
        samples: their number.
        latent_shape: shape of the latents.
        rmse: root mean squared error of the reconstruction.
        mean: of each channel of the latents.
        std: standard deviation of each channel of the latents.
        codes: number of codes; None without a codebook.
        used: number of codes that occur.
        perplexity: of the use of the codes.
        kl_nats: KL divergence of the posterior from N(0, 1) for one sample; None without a posterior.
    """

    samples: int
    latent_shape: tuple[int, ...]
    rmse: float
    mean: list[float]
    std: list[float]
    codes: int | None = None
    used: int | None = None
    perplexity: float | None = None
    kl_nats: float | None = None

    @property
    def psnr(self) -> float:
        """10 log10(4 / rmse^2), for images in [-1, 1]."""
        return 20 * math.log10(2 / max(self.rmse, 1e-12))

    @property
    def collapsed(self) -> bool:
        """Whether most codes have no use."""
        return self.codes is not None and self.perplexity is not None and self.perplexity < self.codes / COLLAPSED

    def advice(self) -> str:
        """What to do about a collapsed codebook; empty for none.

        >>> Quality(9, (4, 2, 2), 0.1, [0.0], [1.0], 64, 3, 1.9).advice()[:67]
        'the codebook has collapsed: perplexity 1.9, 3 of 64 codes are used;'
        """
        if not self.collapsed:
            return ""
        return (
            f"the codebook has collapsed: perplexity {self.perplexity:.1f}, {self.used} of {self.codes} codes are "
            "used; train longer (--steps), lower --learning-rate or --commitment, or use fewer --codes"
        )

    def describe(self) -> str:
        """A readable line."""
        text = f"reconstruction: RMSE {self.rmse:.4f}, PSNR {self.psnr:.1f} dB on {self.samples} samples"
        if self.codes is not None:
            text += f"; perplexity {self.perplexity:.1f}, {self.used} of {self.codes} codes used"
        if self.kl_nats is not None:
            text += f"; KL {self.kl_nats:.1f} nats a sample"
        scales = ", ".join(f"{value:.3g}" for value in self.std[:8])
        return f"{text}; latents {self.latent_shape}, standard deviation by channel {scales}"

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**asdict(self), "latent_shape": list(self.latent_shape), "psnr": self.psnr}


@torch.no_grad()
def quality(model: AutoencoderModel, data: Data, n: int = MOST) -> Quality:
    """Measure an autoencoder on up to n samples, spaced evenly over the data.

    Args:
        model: in evaluation mode.
        data: samples of its shape.
        n: number of samples.

    Raises:
        ValueError: samples of another shape.

    >>> from sde_diffusion.data import as_data
    >>> from sde_diffusion.models.autoencoder import principal_components
    >>> line = as_data([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    >>> quality(principal_components(line, 1), line).rmse < 1e-6
    True
    """
    index = torch.linspace(0, len(data) - 1, min(n, len(data)), dtype=torch.float64, device="cpu").round().long()
    x = data.batch(index).to(model.device)
    z = model.encode(x)
    rmse = float((model.decode(z) - x).double().square().mean().sqrt())
    values = z.double().transpose(0, 1).flatten(1)
    network = model.network
    quantizer, codes, used, perplexity, nats = getattr(network, "quantizer", None), None, None, None, None
    if quantizer is not None:
        found = quantizer(z)[1]
        codes, used, perplexity = len(quantizer.codebook), len(found.unique()), quantizer.perplexity(found)
    elif hasattr(network, "posterior"):
        nats = float(gaussian_kl(*network.posterior(model.units.to_model(x))).double().mean())
    mean, std = values.mean(1).tolist(), values.std(1, correction=0).tolist()
    return Quality(len(index), model.latent_shape, rmse, mean, std, codes, used, perplexity, nats)
