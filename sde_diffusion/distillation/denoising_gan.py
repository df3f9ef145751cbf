r"""Denoising diffusion GANs (Xiao, Kreis & Vahdat 2022): a multimodal denoiser for a few large steps.

p(x_s | x_t) of a large step is no Gaussian, so a denoiser that returns a mean cannot make it. A generator with a
latent z can: x_0 = G(x_t, z, t), then x_s from the posterior q(x_s | x_t, x_0) of the forward process. A discriminator
sees pairs (x_s, x_t) and the time t, and for each pair of neighbouring times s < t

    D minimises   E softplus(-D(x_s, x_t)) + E softplus(D(x_s', x_t)) + gamma / 2 E ||grad_{x_s} D(x_s, x_t)||^2,
    G minimises   E softplus(-D(x_s', x_t)),

with x_s, x_t of the forward process and x_s' of the generator. Both are updated at once, each by its own loss, by Adam
without momentum (beta_1 = 0).

With rho = sigma / alpha the times have rho = 2 ... 0.2 in geometric progression between t = 1 and 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import SDE
from sde_diffusion.sde.base import per_sample
from sde_diffusion.training.losses import Objective
from solvers.diffusion.denoising_gan import DenoisingGANSampler
from solvers.errors import InputError

FIRST, LAST = 2.0, 0.2  # rho after the first step and before the last


def step_times(sde: SDE, nfe: int) -> tuple[float, ...]:
    """The times of the steps, from 1 to 0.

    >>> from sde_diffusion.sde import VESDE
    >>> sde = VESDE()
    >>> [round(float(sde.marginal(t)[1]), 3) for t in step_times(sde, 4)[1:-1]]
    [2.0, 0.632, 0.2]
    """
    share = torch.linspace(0, 1, nfe - 1, dtype=torch.float64) if nfe > 2 else torch.full((nfe - 1,), 0.5).double()
    inner = sde.time(-(math.log(FIRST) + share * math.log(LAST / FIRST)))
    return (1.0, *inner.tolist(), 0.0)


def generator_for(model: ScoreModel, nfe: int, latent: int = 16, seed: int = 0) -> ScoreModel:
    """A generator of x_0 with the kind of network, the process and the units of a model.

    It begins as the model itself, E[x_0 | x_t] with weights of zero for z. A network that predicts the noise or the
    score says little of x_0 near t = 1; the generator then predicts x_0 and begins anew.

    Args:
        model: whose network has ``settings``, as those of ``build`` have.
        nfe: number of steps, at ``step_times``.
        latent: length of z.
        seed: of the weights that the model does not have.

    Raises:
        ValueError: a network that cannot be built anew, or one that has a context.

    >>> from sde_diffusion.sde import VPSDE
    >>> model = ScoreModel(build("mlp", shape=(2,), width=8), VPSDE(), "velocity", shape=(2,))
    >>> made = generator_for(model, nfe=4)
    >>> made.predicts, made.sampler.evaluations(4)
    ('velocity', 4)
    """
    settings = getattr(model.network, "settings", None)
    if settings is None or settings.get("context") or settings.get("variance"):
        raise InputError(
            "a generator has the kind of network of its teacher, which must be one of sde_diffusion.networks without "
            "context and learned variance; give another one with student="
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = build(model.network.name, **{**settings, "context": latent})
    near_noise = model.parametrization.defined_at_pure_noise
    if near_noise:
        network.load_state_dict(model.network.state_dict(), strict=False)
        assert network.condition.context is not None
        nn.init.zeros_(network.condition.context.weight)
        nn.init.zeros_(network.condition.context.bias)
    return ScoreModel(
        network,
        model.sde,
        model.parametrization if near_noise else "data",
        model.shape,
        sigma_data=model.sigma_data,
        normalization=model.normalization,
        sampler=DenoisingGANSampler(step_times(model.sde, nfe), latent),
        decoder=model.decoder,
    )


def draw_earlier(sde: SDE, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """A draw of x_s ~ q(x_s | x_t, x_0) for times s < t of each sample, (B,); x_0 itself where s = 0.

    >>> from sde_diffusion.sde import VPSDE
    >>> x = torch.ones(1, 2)
    >>> draw_earlier(VPSDE(), x, x, torch.ones(1), torch.zeros(1), x)
    tensor([[1., 1.]])
    """
    (at, st), (a_s, ss) = (tuple(per_sample(c, x0) for c in sde.marginal(u)) for u in (t, s))
    ratio = at * ss / (a_s * st)
    kept = ss / st * ratio
    return x0 * (a_s - kept * at) + xt * kept + ss * (1 - ratio**2).clamp_min(0).sqrt() * noise


class DenoisingGANLoss(Objective):
    """The losses of generator and discriminator.

    The discriminator is a network of the kind of the generator on x_s and x_t together, whose mean output is the logit;
    it is trained and stored beside the generator.

    Args:
        model: the generator, with a ``DenoisingGANSampler``; its network takes ``context`` of the latent's length.
        network: module that replaces its network, as in ``LossModule``.
        gamma: weight of the gradient penalty.

    Raises:
        ValueError: a model without that sampler, or a network without a context of that length.
    """

    gives_context = True
    betas = (0.0, 0.99)
    pace = 2.0

    def __init__(self, model: ScoreModel, network: nn.Module, gamma: float = 0.02) -> None:
        super().__init__(model, network)
        if not isinstance(model.sampler, DenoisingGANSampler):
            raise InputError("a denoising GAN is a model with sampler=DenoisingGANSampler(...)")
        settings = dict(getattr(model.network, "settings", {}))
        if settings.get("context") != model.sampler.latent:
            raise InputError(
                f"the generator takes z as its context, of length {model.sampler.latent}; its network has "
                f"context={settings.get('context')}"
            )
        if not gamma >= 0:
            raise InputError(f"gamma is the weight of the gradient penalty, 0 or more; got {gamma}")
        self.latent, self.gamma = model.sampler.latent, gamma
        first, *rest = settings["shape"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.learned = build(str(model.network.name), **{**settings, "shape": [2 * first, *rest], "context": None})
        self.times: Tensor
        self.register_buffer("times", torch.tensor(model.sampler.times, dtype=torch.float64), persistent=False)

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of the generator, to log, and the sum of both losses, at the step with the rank of t."""
        sde, given, steps = self.model.sde, condition or {}, len(self.times) - 1
        k = ((1 - t) * steps).long().clamp(0, steps - 1)
        t, s = self.times[k], self.times[k + 1]
        (at, st), (a_s, ss) = (tuple(per_sample(c, x0) for c in sde.marginal(u)) for u in (t, s))
        xs = a_s * x0 + ss * eps
        xt = at / a_s * xs + (st**2 - (at / a_s * ss) ** 2).clamp_min(0).sqrt() * torch.randn_like(x0)
        z = torch.randn(len(x0), self.latent, dtype=x0.dtype, device=x0.device)
        made = draw_earlier(sde, self.model.denoise(xt, t, context=z, **given), xt, t, s, torch.randn_like(x0))

        time, fixed = t.to(x0.dtype), {name: value.detach() for name, value in self._discriminator.named_parameters()}
        generator = softplus(-self._logit(made, xt, time, fixed))
        real = xs.detach().requires_grad_()
        logit = self._logit(real, xt, time)
        slope = torch.autograd.grad(logit.sum(), real, create_graph=True)[0]
        discriminator = softplus(-logit) + softplus(self._logit(made.detach(), xt, time))
        penalty = self.gamma / 2 * slope.flatten(1).square().sum(1)
        return generator.detach().float(), (generator + discriminator + penalty).float()

    @property
    def _discriminator(self) -> nn.Module:
        assert self.learned is not None
        return self.learned

    def _logit(self, xs: Tensor, xt: Tensor, t: Tensor, fixed: dict[str, Tensor] | None = None) -> Tensor:
        pair = torch.cat([xs, xt], dim=1)
        found = functional_call(self._discriminator, fixed, (pair, t)) if fixed else self._discriminator(pair, t)
        out: Tensor = found.flatten(1).mean(1)
        return out
