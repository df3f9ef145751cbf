r"""Weights of the loss as functions of time, in one convention.

``losses`` minimises  E_t  w(t) / (sigma^2 d)  ||eps - eps_theta||^2.  Papers state their weights for an error of
eps, of x_0 or of v, and with other measures of time. With rho = sigma / alpha and SNR = 1 / rho^2,

    ||x_0 error||^2 = rho^2 ||eps error||^2,      g^2 / sigma^2 = -d log SNR / dt,

so a weight h of the noise error is w = sigma^2 h, a weight h of the data error is w = sigma^2 rho^2 h, and a
weight h of the evidence lower bound, 1/2 E_t (-d log SNR/dt) h ||eps - eps_theta||^2, is w = g^2 h (the factor
1/2 is left out, as in ``likelihood``).

An uncertainty u(t) learned together with the network changes a loss l to  l exp(-u) + u  (``Uncertainty``);
its minimum over u is 1 + log E[l | t], so all times then have equal weight (Karras et al. 2024, eq. 14).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sde_diffusion.models.parametrization import NoisePrediction, Parametrization
from sde_diffusion.sde import SDE
from solvers.errors import InputError, choose

Weight = Callable[[SDE, Tensor], Tensor]


def simple(sde: SDE, t: Tensor) -> Tensor:
    """The weight sigma^2: the plain mean of ||eps - eps_theta||^2 (Ho et al. 2020, eq. 14).

    >>> from sde_diffusion.sde import VPSDE
    >>> float(simple(VPSDE(beta_min=2.0, beta_max=2.0), torch.tensor(0.5)))  # 1 - exp(-1)
    0.63212...
    """
    return sde(t).sigma ** 2


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """The weight g^2 (beta for VP): L bounds the negative log-likelihood.

    Song et al. 2021b (Maximum likelihood training of score-based diffusion models), theorem 1.

    >>> from sde_diffusion.sde import VPSDE
    >>> round(float(likelihood(VPSDE(), torch.tensor(1.0))), 9)
    20.0
    """
    return sde.g(t) ** 2


def velocity(sde: SDE, t: Tensor) -> Tensor:
    """The unweighted error of the velocity v = a x_0 + b eps: w = sigma^2 (b - a rho)^2.

    Flow matching (Lipman et al. 2023, eq. 9); SNR + 1 on the data error of a VP process (Salimans & Ho 2022,
    section 4). It grows towards alpha = 0, where sampling starts.

    >>> from sde_diffusion.sde import Flow
    >>> float(velocity(Flow(), torch.tensor(0.75, dtype=torch.float64)))  # sigma^2 / alpha^2
    9.0
    """
    alpha, sigma = sde.marginal(t)
    a, b = sde.velocity_weights(t)
    return (sigma * (b - a * sigma / alpha)) ** 2


@dataclass(frozen=True)
class EDMWeight:
    """1 / c_out^2 on the data error: w = sigma^2 (rho^2 + d^2) / d^2 (Karras et al. 2022, table 1).

    The output of an "edm" network then has weight 1 at every time.

    Args:
        sigma_data: d; the model's by default.

    >>> from sde_diffusion.sde import EDM
    >>> float(EDMWeight(sigma_data=0.5)(EDM(), torch.tensor(0.0125, dtype=torch.float64)))  # sigma = 1
    5.0
    """

    sigma_data: float | None = None

    def __post_init__(self) -> None:
        if self.sigma_data is not None and not self.sigma_data > 0:
            raise InputError(f"sigma_data is a standard deviation and must be positive; got {self.sigma_data}")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """The weight at times t."""
        alpha, sigma = sde.marginal(t)
        return sigma**2 * (1 + (sigma / (alpha * (self.sigma_data or 1.0))) ** 2)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the data error: w = sigma^2 min(1, gamma / SNR) (Hang et al. 2023, section 3.4).

    Args:
        gamma: the largest weight of the data error.

    >>> from sde_diffusion.sde import VPSDE
    >>> sde, t = VPSDE(), torch.tensor([1e-3, 0.5])
    >>> MinSNR(5.0)(sde, t) / simple(sde, t)  # SNR is 9,094 and 0.09
    tensor([5.4978e-04, 1.0000e+00], dtype=torch.float64)
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise InputError(f"gamma is the largest weight and must be positive; got {self.gamma}")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """The weight at times t."""
        alpha, sigma = sde.marginal(t)
        return sigma**2 * (self.gamma * (sigma / alpha) ** 2).clamp_max(1)


@dataclass(frozen=True)
class P2:
    """1 / (k + SNR)^gamma on the noise error: w = sigma^2 / (k + SNR)^gamma (Choi et al. 2022, eq. 8).

    Args:
        gamma: strength of the discount of small noise; 0 is ``simple``.
        k: > 0, bounds the weight where SNR is small.

    >>> from sde_diffusion.sde import VPSDE
    >>> sde, t = VPSDE(), torch.tensor(0.3)
    >>> bool(torch.isclose(P2()(sde, t), sde(t).sigma ** 4))  # 1 + SNR = 1 / sigma^2
    True
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        if not (self.gamma >= 0 and self.k > 0):
            raise InputError(f"expected gamma >= 0 and k > 0; got gamma={self.gamma}, k={self.k}")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """The weight at times t."""
        alpha, sigma = sde.marginal(t)
        rho2 = (sigma / alpha) ** 2
        # 1 / (k + 1 / rho^2), which is finite for rho = 0; at alpha = 0 it is 1 / k.
        return sigma**2 * torch.where(alpha > 0, rho2 / (self.k * rho2 + 1), 1 / self.k) ** self.gamma


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(b - log SNR) on the evidence lower bound: w = g^2 sigmoid(b - log SNR).

    Kingma & Gao 2023, section 4, and Hoogeboom et al. 2024 (Simpler diffusion), section 2.

    Args:
        bias: b; smaller values favour noise.

    >>> from sde_diffusion.sde import VPSDE
    >>> sde, t = VPSDE(), torch.tensor(0.3)
    >>> bool(torch.isclose(Sigmoid(0.0)(sde, t), sde.g(t) ** 2 * sde(t).sigma ** 2))  # 1 / (1 + SNR) = sigma^2
    True
    """

    bias: float = 0.0

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """The weight at times t."""
        return sde.g(t) ** 2 * torch.sigmoid(self.bias - 2 * sde.half_log_snr(t))


@dataclass(frozen=True)
class OutputWeight:
    """The plain error of the output, whatever the network predicts: w = sigma^2 / gain^2.

    The L_simple of Ho et al. 2020 for each of their objectives (table 2): ``simple`` for a network of the noise.

    Args:
        parametrization: what the network predicts; the model's by default, and the noise without a model.

    >>> from sde_diffusion.models.parametrization import DataPrediction
    >>> from sde_diffusion.sde import VPSDE
    >>> sde, t = VPSDE(), torch.tensor(0.3)
    >>> alpha, sigma = sde.marginal(t)
    >>> bool(torch.isclose(OutputWeight(DataPrediction())(sde, t), sigma**4 / alpha**2))
    True
    """

    parametrization: Parametrization | None = None

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """The weight at times t."""
        own = self.parametrization or NoisePrediction()
        return (sde.marginal(t)[1] / own.gain(sde, t)) ** 2


class Uncertainty(nn.Module):
    """A learned u(t), and the loss l exp(-u) + u (Karras et al. 2024, eq. 14; section 2.3).

    u is a linear function of cos(f c + phi), f and phi fixed and random, c = log(rho) / 4; it starts at 0.
    Its parameters are trained together with the network and are not part of the trained model.

    Args:
        features: number of cosines.

    >>> from sde_diffusion.sde import VPSDE
    >>> Uncertainty(8)(VPSDE(), torch.tensor([0.2, 0.5]), torch.tensor([3.0, 4.0])).tolist()
    [3.0, 4.0]
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=generator))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def u(self, sde: SDE, t: Tensor) -> Tensor:
        """The logarithm of the expected loss at times t, (B,) float32."""
        # Bounded, since rho is infinite at alpha = 0.
        c = (-sde.half_log_snr(t).clamp(-20, 20) / 4).float()
        out: Tensor = self.linear(torch.cos(c[:, None] * self.frequencies + self.phases) * math.sqrt(2))
        return out[:, 0].float()

    def forward(self, sde: SDE, t: Tensor, loss: Tensor) -> Tensor:
        """The loss to minimise, (B,), from the losses (B,) at times t (B,)."""
        u = self.u(sde, t)
        return loss * torch.exp(-u) + u


LOSS_WEIGHTS: dict[str, Weight] = {
    "simple": simple,
    "likelihood": likelihood,
    "velocity": velocity,
    "edm": EDMWeight(),
    "min-snr": MinSNR(),
    "p2": P2(),
    "sigmoid": Sigmoid(),
    "output": OutputWeight(),
    "uncertainty": EDMWeight(),  # the initial value of the learned weight
}


def weight_for(weight: str | Weight, sigma_data: float, parametrization: Parametrization | None = None) -> Weight:
    """The weight of a name in ``LOSS_WEIGHTS``, or the function itself, with what it needs of the model.

    Raises:
        ValueError: an unknown name.

    >>> weight_for("edm", 0.5)
    EDMWeight(sigma_data=0.5)
    """
    weigh = choose(weight, LOSS_WEIGHTS, "weight") if isinstance(weight, str) else weight
    if isinstance(weigh, EDMWeight) and weigh.sigma_data is None:
        return replace(weigh, sigma_data=sigma_data)
    if isinstance(weigh, OutputWeight) and weigh.parametrization is None:
        return replace(weigh, parametrization=parametrization)
    return weigh


def learned_weight(weight: str) -> Uncertainty | None:
    """The module of a learned weight, or None.

    >>> learned_weight("simple") is None, type(learned_weight("uncertainty")).__name__
    (True, 'Uncertainty')
    """
    return Uncertainty() if weight == "uncertainty" else None
