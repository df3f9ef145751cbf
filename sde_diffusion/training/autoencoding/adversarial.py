r"""The discriminator of an autoencoder (Esser et al. 2021, eq. 5 to 7; Rombach et al. 2022, appendix G).

D gives a logit to each patch. With y the reconstruction of x,

    D minimises                 mean max(0, 1 - D(x)) + mean max(0, 1 + D(y)),
    the autoencoder minimises   L_rec - w lambda mean D(y),      lambda = ||grad L_rec|| / (||grad mean D(y)|| + 1e-4),

with both gradients taken in the last layer of the decoder, so that w is the length of the adversarial gradient there in
units of that of the reconstruction. Both are updated at once, each by its own loss: D sees y without gradient, and the
autoencoder sees D with fixed weights. D is stored beside the autoencoder, and a resumed run has the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu

from sde_diffusion.networks.discriminator import PatchDiscriminator

LARGEST = 1e4  # lambda


class AdversarialTerm(nn.Module):
    """The discriminator and both of its losses.

    Args:
        shape: shape of one sample.

    Attributes:
        betas: decays of the moments of AdamW.
    """

    betas: ClassVar[tuple[float, float]] = (0.5, 0.9)

    def __init__(self, shape: Sequence[int]) -> None:
        """Build the discriminator, whose weights depend on nothing else."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.discriminator = PatchDiscriminator(shape)

    def forward(
        self, x: Tensor, made: Tensor, reconstruction: Tensor, last: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the losses (B,), and figures for the log.

        Args:
            x: samples.
            made: their reconstructions, with gradient.
            reconstruction: the losses L_rec (B,) of the reconstruction.
            last: a weight that both gradients are taken in.
            weight: w; at 0 the discriminator alone learns.
        """
        real, false = self._logit(x), self._logit(made.detach())
        own = relu(1 - real) + relu(1 + false)
        figures = {"discriminator": own.detach().mean(1)}
        if not weight or not torch.is_grad_enabled():
            return own.mean(1), figures
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        towards = -self._logit(made, fixed).mean(1)
        slopes = [
            torch.autograd.grad(part.mean(), last, retain_graph=True)[0].norm() for part in (reconstruction, towards)
        ]
        factor = (slopes[0] / (slopes[1] + 1e-4)).clamp_max(LARGEST).detach()
        figures |= {"adversarial": towards.detach(), "lambda": factor}
        return own.mean(1) + weight * factor * towards, figures

    def _logit(self, x: Tensor, fixed: dict[str, Tensor] | None = None) -> Tensor:
        found = functional_call(self.discriminator, fixed, (x,)) if fixed else self.discriminator(x)
        return found.float().flatten(1)
