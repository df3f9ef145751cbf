r"""Moment matching: the uncertainty of the denoised sample from the network's own Jacobian (Rozet et al. 2024, eq. 19).

Tweedie's second formula, V = Cov[x_0 | x_t] = (sigma^2 / alpha) J, J = dD/dx, gives with p(x_0 | x_t) ~ N(D, V)

    D_y = D + V A' (A V A' + s^2 I)^-1 (y - A D).

It is exact for Gaussian data of any covariance. The system is solved by a few conjugate gradients, each a backward
pass; J is symmetric for an exact model and taken as symmetric for a network.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_diffusion.guidance.observations import conjugate_gradients
from sde_diffusion.guidance.observed import Observed
from solvers.errors import InputError


class MomentMatching(Observed):
    """A model given y, by moment matching, exact for Gaussian data. Arguments as ``Observed``.

    Args:
        iterations: iterations of conjugate gradients, at least 1.
        arguments: as ``Observed``.
        options: as ``Observed``.

    Raises:
        ValueError: fewer than 1 iteration.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE
    >>> from sde_diffusion.guidance import Mask
    >>> prior = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), sde=VPSDE())
    >>> model = MomentMatching(prior, Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), noise=1.0)
    >>> model.denoise(torch.zeros(1, 2), torch.tensor([1.0])).round(decimals=2)  # the posterior mean is (0.5, 0.4)
    tensor([[0.5000, 0.4000]])
    """

    def __init__(self, *arguments: Any, iterations: int = 3, **options: Any) -> None:
        if iterations < 1:
            raise InputError(f"conjugate gradients need at least 1 iteration; got {iterations}")
        super().__init__(*arguments, **options)
        self.iterations = iterations

    @property
    def backward(self) -> int:  # type: ignore[override]
        """Backward passes in one evaluation."""
        return self.iterations + 1

    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """D + V A' (A V A' + s^2 I)^-1 (y - A D)."""
        gain = self.gain(x, t)

        def weigh(residual: Tensor, vjp: Any) -> Tensor:
            def apply(v: Tensor) -> Tensor:
                return self.operator(gain * vjp(self.operator.adjoint(v))) + self.noise_std**2 * v

            return conjugate_gradients(apply, residual, self.iterations, 1e-6)

        denoised, gradient = self.likelihood_gradient(x, t, weigh, condition)
        moved = denoised + gain * gradient
        return moved if self.clip is None else moved.clamp(*self.clip)
