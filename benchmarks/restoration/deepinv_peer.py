"""deepinv's samplers for the same network, NFE and clamped range.

deepinv works on images in [0, 1] at noise sigma, x = x_0 + sigma eps: the network receives alpha (2 x - 1) at the time
where sigma / alpha is twice that noise, and the observation is that of (x_0 + 1) / 2. deepinv imports torchvision.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.restoration import NOISE
from benchmarks.restoration.peers import Method
from sde_diffusion import ScoreModel
from sde_diffusion.guidance import Operator


def denoiser_of(model: ScoreModel, clamped: bool = True) -> Any:
    """The model as deepinv calls it: (x, sigma) -> E[x_0 | x] for images in [0, 1], clamped to them or not.

    Raises:
        ImportError: deepinv is not installed, or torchvision.
    """
    import deepinv as dinv

    class Network(dinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            rho = 2 * torch.as_tensor(sigma).double().reshape(-1).expand(len(x))
            t = model.sde.time(-torch.log(rho)).clamp_min(1e-3)
            alpha = model.sde.marginal(t)[0].to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
            denoised = model.denoise(alpha * (2 * x - 1), t)
            return ((denoised.clamp(-1, 1) if clamped else denoised) + 1) / 2

    return Network()


def deepinv_methods(model: ScoreModel, nfe: int) -> dict[str, Method]:
    """deepinv's posterior samplers as (A, y, x1) -> x0, with the ancestral steps of DDPM and their own settings.

    Its DPS has the weight that shares the scale of its other methods (guidance="annealed"). Moment matching also runs
    with deepinv's own range alone, which leaves the gradient of values beyond it. x1 is not used: deepinv draws its own
    initial noise.

    Raises:
        ImportError: deepinv is not installed, or torchvision.
    """
    import deepinv as dinv
    from deepinv import sampling

    network = denoiser_of(model)

    def physics(operator: Operator) -> Any:
        return dinv.physics.LinearPhysics(
            A=lambda x, **_: operator(x),
            A_adjoint=lambda y, **_: operator.adjoint(y),
            noise_model=dinv.physics.GaussianNoise(NOISE / 2),
        )

    def unit(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        return (y + operator(torch.ones_like(x1[:1]))) / 2

    def posterior(fidelity: Any, network: Any = network) -> Method:
        def run(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
            times = torch.linspace(1, 0, nfe + 1, dtype=torch.float64)
            sampler = sampling.PosteriorDiffusion(
                fidelity(network, clip=[0.0, 1.0]),
                network,
                sampling.VariancePreservingDiffusion(alpha=1.0),
                sampling.DDPMSolver(times),
            )
            found = sampler(unit(operator, y, x1), physics(operator), x_init=tuple(x1.shape))
            return (2 * found - 1).float().detach()

        return run

    def diffpir(operator: Operator, y: Tensor, x1: Tensor) -> Tensor:
        sampler = sampling.DiffPIR(network, dinv.optim.data_fidelity.L2(), sigma=NOISE / 2, max_iter=nfe)
        start = operator.pseudo_inverse(unit(operator, y, x1))
        found: Tensor = sampler(unit(operator, y, x1), physics(operator), x_init=start)
        return (2 * found - 1).float().detach()

    own_range = denoiser_of(model, clamped=False)
    return {
        "deepinv DPS": posterior(partial(sampling.DPSDataFidelity, guidance="annealed")),
        "deepinv PiGDM": posterior(sampling.PiGDMDataFidelity),
        "deepinv moment matching": posterior(sampling.MomentMatchingDataFidelity),
        "deepinv moment matching, own range": posterior(sampling.MomentMatchingDataFidelity, own_range),
        "deepinv DiffPIR": diffpir,
    }
