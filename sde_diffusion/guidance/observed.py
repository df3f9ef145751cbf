r"""A score model given a linear observation y = A x_0 + n, n ~ N(0, s^2 I): what all methods share.

The exact posterior mean adds the gradient of the likelihood of x_t to that of the prior,

    D_y(x, t) = D(x, t) + (sigma^2 / alpha) grad_x log p(y | x_t = x),

and p(y | x_t) is not tractable. A method is an approximation of this one line, so it is again a denoiser: every
solver runs on it, and the NFE counts its forward passes (backward passes come on top, see ``backward``).

Each approximation has a bias on data that is not Gaussian; ``benchmarks/posterior.py`` measures it against the exact
posteriors of mixtures.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.guidance.observations import as_operator, inner
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from solvers import Solver
from solvers.errors import InputError
from solvers.noise import INDEPENDENT, standard_normal

# alpha / sigma at which the likelihood stands for its limit at alpha = 0.
_ALPHA = 1e-3


class Observed(ScoreModel):
    """The base class of score models given y = A x_0 + noise: each method is an approximation of E[x_0 | x_t, y].

    Args:
        model: the prior, any ScoreModel with a shape.
        operator: A, an ``Operator`` or a linear physics object of deepinv.
        y: the observation, shared by all samples (1, *observed), or one for each sample of a batch.
        noise: its standard deviation s, >= 0.
        clip: (low, high), the range of the data. The denoised sample is clamped to it where the likelihood is taken,
            so that entries beyond it receive no gradient: networks that predict the noise amplify their errors by
            1 / alpha near t = 1, and without a range the gradient methods diverge on them. Nothing is clamped when
            None, as exact models need.

    y, noise and clip are in the units of the data.

    Raises:
        ValueError: a noise that is negative or not finite, a y that A does not give, an empty range, a prior of
            latents, or one that was trained with other scales for other entries, a method with A^+ (DDNM, replacement)
            where A^+ turns the noise into more than the data's standard deviation, as for blurs.
        TypeError: an operator that is none.
    """

    backward: ClassVar[int] = 0  # backward passes through the network in one evaluation
    gradient_within_range: ClassVar[bool] = True  # whether entries beyond ``clip`` receive no gradient
    pseudo_inverse: ClassVar[bool] = False  # whether the method adds A^+ y, with the noise that A^+ amplifies

    def __init__(
        self,
        model: ScoreModel,
        operator: Any,
        y: Tensor,
        noise: float,
        *,
        clip: tuple[float, float] | None = None,
    ) -> None:
        refuse_distilled(model, "condition on an observation")
        refuse_latent(model)
        operator = as_operator(operator)
        if not (math.isfinite(noise) and noise >= 0):
            raise InputError(f"the noise of an observation is a standard deviation, >= 0; got {noise}")
        if clip is not None and not clip[0] < clip[1]:
            raise InputError(f"clip is the range of the data (low, high), low < high; got {clip}")
        if model.shape is not None:
            with torch.no_grad():
                expected = operator(torch.zeros(1, *model.shape, dtype=y.dtype, device=y.device)).shape[1:]
            if y.ndim != len(expected) + 1 or y.shape[1:] != expected:
                raise InputError(
                    f"y has shape {tuple(y.shape)}, but this operator observes {tuple(expected)} of a sample "
                    f"{model.shape}: expected (1, *{tuple(expected)}), or one observation for each sample"
                )
        y, noise, clip = _in_units_of(model, operator, y, noise, clip)
        super().__init__(
            None, model.sde, "data", model.shape, model.sigma_data, model.cost, normalization=model.normalization
        )
        self.network = self._posterior_mean  # it predicts the data; the modules are those of the prior
        self.model, self.operator, self.noise_std, self.clip = model, operator, float(noise), clip
        # Where alpha falls to 0 the gradient does too, and V has a limit: it is taken a little before.
        self._latest = float(model.sde.time(math.log(_ALPHA))) if self._pure_noise_at_1 else 1.0
        self.register_buffer("y", y)
        self.y: Tensor
        if self.pseudo_inverse:
            self._check_amplification()

    def _check_amplification(self) -> None:
        """Refuse an A^+ that makes more noise of the observation's than the data have variance."""
        if self.noise_std == 0 or self.shape is None:
            return
        z = standard_normal([0], self.y.shape[1:], INDEPENDENT).to(self.y)
        with torch.no_grad():
            amplified = self.noise_std * float(self.operator.pseudo_inverse(z).square().mean().sqrt())
        if not amplified <= self.sigma_data:
            raise InputError(
                f"{type(self).__name__} applies the pseudo-inverse of the observation, and that of this "
                f"{type(self.operator).__name__} turns its noise {self.noise_std:g} into {amplified:.3g}, more than "
                f"the data's own {self.sigma_data:g}. Methods that weigh the noise are not affected: "
                "MomentMatching (method 'moment') or DiffPIR ('diffpir')"
            )

    def _posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.posterior_mean(x, t.clamp_max(self._latest), **condition)

    @abstractmethod
    def posterior_mean(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[x_0 | x_t = x, y], approximately: (B, ...)."""

    def check_defined_at_pure_noise(self) -> None:
        """As the prior."""
        self.model.check_defined_at_pure_noise()

    def for_run(self, solver: Solver, times: Tensor, eta: float) -> Observed:
        """This model, with a warning of a deterministic solver.

        Measured on MNIST (``benchmarks/restoration.py``): with `pf-ode` and 20 evaluations the images are noise, while
        `dpm++2m-sde` restores them.
        """
        if eta == 0 and not solver.stochastic:
            warnings.warn(
                f"a deterministic solver ({type(solver).__name__}) keeps the errors of the approximate likelihood of "
                f"{type(self).__name__}, and a stochastic one corrects them on the way: solver='dpm++2m-sde'",
                stacklevel=2,
            )
        return self

    def scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, (B, 1, ..., 1) in the dtype of x."""
        one = (-1, *(1,) * (x.ndim - 1))
        alpha, sigma = self.sde.marginal(t.double())
        return alpha.to(x.dtype).reshape(one), sigma.to(x.dtype).reshape(one)

    def observation(self, x: Tensor) -> Tensor:
        """Y on the device and in the dtype of x."""
        return self.y.to(x)

    def prior_spread(self, x: Tensor, t: Tensor) -> Tensor:
        """r_t^2 = d^2 sigma^2 / (d^2 alpha^2 + sigma^2): Var[x_0 | x_t] for Gaussian data of standard deviation d."""
        alpha, sigma = self.scales(x, t)
        return (self.sigma_data * sigma) ** 2 / ((self.sigma_data * alpha) ** 2 + sigma**2)

    def gain(self, x: Tensor, t: Tensor) -> Tensor:
        """The factor of the likelihood's gradient: sigma^2 / alpha, or r_t^2 with ``clip``.

        V = (sigma^2 / alpha) J is the posterior covariance; for J = (alpha r_t^2 / sigma^2) I, which r_t^2 stands for,
        both give the same near the data, and the second stays bounded where alpha is small.
        """
        if self.clip is not None:
            return self.prior_spread(x, t)
        alpha, sigma = self.scales(x, t)
        return sigma**2 / alpha

    def likelihood_gradient(self, x: Tensor, t: Tensor, weigh: Any, condition: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The denoised sample and J' A' v, J = dD/dx, for v = weigh(y - A D, vjp).

        Args:
            x: (B, ...).
            t: (B,).
            weigh: (residual, vjp) -> v, like the residual; vjp maps u to J' u without another forward pass.
            condition: passed on to the network.
        """
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = self.model.denoise(at, t, **condition)
            inside = denoised if self.clip is None else denoised.clamp(*self.clip)
        of = inside if self.gradient_within_range else denoised

        def vjp(u: Tensor) -> Tensor:
            return torch.autograd.grad(of, at, u, retain_graph=True)[0]

        residual = self.observation(x) - self.operator(inside.detach())
        v = weigh(residual, vjp)
        gradient = torch.autograd.grad(of, at, self.operator.adjoint(v))[0]
        return denoised.detach(), gradient.detach()

    def extra_repr(self) -> str:
        """The settings."""
        return f"{type(self.operator).__name__}, noise={self.noise_std:g}, clip={self.clip}"


def refuse_latent(model: ScoreModel) -> None:
    """Refuse a latent model as a prior: of the latents an observation of pixels is no linear function.

    Raises:
        ValueError: the model's samples are decoded.
    """
    if model.decoder is not None:
        raise InputError(
            f"this model samples latents {model.shape}, which an autoencoder decodes: an observation of "
            f"{model.sample_shape} is no linear function of them. Use a model of the data themselves as the prior"
        )


def residual_rms(operator: Any, x: Tensor, y: Tensor) -> Tensor:
    """The root mean square of y - A x over the entries of each observation that A can reach, (B,).

    A sample of the posterior has about the noise's own standard deviation here.

    >>> from sde_diffusion.guidance import Mask
    >>> residual_rms(Mask(torch.tensor([True, False])), torch.tensor([[1.0, 5.0]]), torch.tensor([[0.5, 0.0]]))
    tensor([0.5000])
    """
    operator = as_operator(operator)
    reached = operator(torch.ones_like(x[:1])) != 0
    error = (y.to(x) - operator(x)) * reached
    return (inner(error, error).reshape(-1) / reached.sum()).sqrt()


def _in_units_of(
    model: ScoreModel, operator: Any, y: Tensor, noise: float, clip: tuple[float, float] | None
) -> tuple[Tensor, float, tuple[float, float] | None]:
    """Y = A (shift + scale z_0) + n as an observation of z_0, and what goes with it."""
    units = model.units
    if units.is_identity or model.shape is None:
        return y, noise, clip
    scale = units.scale.flatten()
    several = bool((scale != scale[0]).any()) or (clip is not None and bool((units.shift != units.shift.min()).any()))
    if several:
        raise InputError(
            "the entries of this model's data have scales of their own, which an observation cannot follow; train the "
            "prior with normalize='none' (--normalize none) on data of one unit scale"
        )
    factor = float(scale[0])
    with torch.no_grad():
        offset = operator(units.shift.to(y).expand(1, *model.shape).contiguous())
    if clip is not None:
        shift = float(units.shift.min())
        clip = ((clip[0] - shift) / factor, (clip[1] - shift) / factor)
    return (y - offset) / factor, noise / factor, clip
