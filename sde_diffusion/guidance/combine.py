r"""Rules that combine a conditional and an unconditional prediction, for ``Guided(model, combine=...)``.

With D_c and D_u the two predictions, both are the line of classifier-free guidance D = D_u + w (D_c - D_u), changed:

    rescaled    phi (std D_c / std D) D + (1 - phi) D                       (Lin et al. 2024, eq. 15 and 16)
    projected   D_c + (w - 1) (d_orth + eta d_par),  d = D_c - D_u clipped to a norm, split along D_c
                                                    (Sadat et al. 2025, algorithm 1, without momentum)

The standard deviation is over the entries of a sample. Momentum would make a prediction depend on those before it; a
score model is a function of (x, t), so it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.guidance.classifier_free import Combine
from solvers.errors import InputError


def rescaled(scale: float, phi: float = 0.7) -> Combine:
    """Classifier-free guidance brought back to the standard deviation of the conditional prediction.

    ``Guided(model, combine=rescaled(7.5, 0.7), on="output")`` is what diffusers calls guidance_rescale=0.7.

    Args:
        scale: w.
        phi: share of the rescaled prediction, from 0 (plain guidance) to 1.

    Raises:
        ValueError: phi outside [0, 1].

    >>> one, other = torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2)
    >>> rescaled(3.0, phi=1.0)(one, other, one, torch.ones(1))
    tensor([[ 1., -1.]])
    """
    if not 0 <= phi <= 1:
        raise InputError(f"phi is the share of the rescaled prediction, from 0 to 1; got {phi}")

    return _Rescaled(scale, phi)


def projected(scale: float, eta: float = 0.0, norm: float = 15.0) -> Combine:
    """Adaptive projected guidance: the part of the update along the conditional prediction is damped.

    Args:
        scale: w.
        eta: weight of the parallel part; 1 is plain guidance.
        norm: largest norm of the update of a sample; infinity for none.

    Raises:
        ValueError: a norm that is not positive.

    >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> projected(3.0)(one, other, one, torch.ones(1))  # D_c + 2 (0, -1)
    tensor([[ 1., -2.]])
    """
    if not norm > 0:
        raise InputError(f"norm is the largest norm of the update, above 0; got {norm}")

    return _Projected(scale, eta, norm)


# Classes, because a function within a function does not reach another process.
@dataclass(frozen=True)
class _Rescaled:
    scale: float
    phi: float

    def __call__(self, conditional: Tensor, unconditional: Tensor, x: Tensor, t: Tensor) -> Tensor:
        guided = unconditional + self.scale * (conditional - unconditional)
        axes = tuple(range(1, x.ndim))
        factor = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return guided * (self.phi * factor + (1 - self.phi))


@dataclass(frozen=True)
class _Projected:
    scale: float
    eta: float
    norm: float

    def __call__(self, conditional: Tensor, unconditional: Tensor, x: Tensor, t: Tensor) -> Tensor:
        update = (conditional - unconditional).flatten(1)
        length = torch.linalg.vector_norm(update, dim=1, keepdim=True)
        update = torch.where(length > self.norm, update * (self.norm / length), update)
        along = torch.nn.functional.normalize(conditional.flatten(1), dim=1)
        parallel = (update * along).sum(1, keepdim=True) * along
        update = (update - parallel) + self.eta * parallel
        return conditional + (self.scale - 1) * update.reshape(x.shape)
