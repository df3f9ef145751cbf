r"""Exact score models: the truth that solvers, losses and likelihoods are measured against.

For data x_0 ~ sum_k w_k N(mu_k, s^2 I) the noised density is the mixture of N(alpha mu_k, v I) with
v = alpha^2 s^2 + sigma^2, and with the responsibilities r_k(x) of its components

    E[x_0 | x_t = x] = m + (alpha s^2 / v) (x - alpha m),      m = sum_k r_k(x) mu_k.

A finite data set is the mixture with s = 0 (``EmpiricalData``: its ideal denoiser). A Gaussian with covariance
C = Q diag(c) Q' has E[x_0 | x] = mu + Q diag(alpha c / (alpha^2 c + sigma^2)) Q' (x - alpha mu).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_diffusion.models.exact_arithmetic import as_tensor, exactly
from sde_diffusion.models.full_covariance import FullCovarianceMixture, observed_mixture
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import SDE
from solvers.errors import InputError
from solvers.noise import FORWARD, as_seeds, standard_normal


class _MixtureDenoiser(nn.Module):
    def __init__(self, means: Tensor, std: float, log_weights: Tensor, sde: SDE) -> None:
        super().__init__()
        self.register_buffer("means", means.flatten(1))
        self.register_buffer("log_weights", log_weights)
        self.std, self.sde = std, sde
        self.means: Tensor
        self.log_weights: Tensor

    def scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and v = alpha^2 s^2 + sigma^2, (B, 1), in the dtype of x."""
        alpha, sigma = self.sde.marginal(t)
        v = (alpha * self.std) ** 2 + sigma**2
        return alpha.to(x.dtype)[:, None], v.to(x.dtype)[:, None]

    def log_joint(self, x: Tensor, alpha: Tensor, v: Tensor) -> Tensor:
        """log w_k N(x; alpha mu_k, v I) up to the terms that all components share, (B, K)."""
        means = self.means.to(x.dtype)
        # |x - alpha mu|^2 without the |x|^2 that the softmax drops: nothing large cancels.
        square = alpha * means.square().sum(1) / 2
        return self.log_weights.to(x.dtype) + alpha * (x @ means.T - square) / v

    @exactly
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]."""
        flat = x.flatten(1)
        alpha, v = self.scales(x, t)
        m = self.log_joint(flat, alpha, v).softmax(1) @ self.means.to(x.dtype)
        return (m + alpha * self.std**2 / v * (flat - alpha * m)).reshape(x.shape)


class GaussianMixture(ScoreModel):
    """The exact score of a mixture of isotropic Gaussians.

    Args:
        means: (K, ...): one mean per component, in the shape of a sample.
        std: standard deviation of every component, > 0 (0 is ``EmpiricalData``).
        weights: (K,) positive; equal by default. They are normalised.
        sde: the forward process.

    Raises:
        ValueError: shapes or values that make no mixture.

    >>> from sde_diffusion.sde import VPSDE
    >>> exact = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.1, sde=VPSDE())
    >>> x0 = exact.denoise(torch.tensor([[0.8]]), torch.tensor([0.01]))
    >>> round(float(x0), 3)
    0.834
    """

    def __init__(self, means: Tensor, std: float, weights: Tensor | None = None, *, sde: SDE) -> None:
        means = as_tensor(means)
        if means.ndim < 2 or not means.dtype.is_floating_point or not bool(means.isfinite().all()):
            raise InputError(f"means must be finite floats of shape (K, ...); got {means.dtype} {tuple(means.shape)}")
        if not (math.isfinite(std) and std >= 0):
            raise InputError(f"std must be >= 0; got {std}")
        weights = torch.ones(len(means), device=means.device) if weights is None else as_tensor(weights)
        if weights.shape != (len(means),) or not bool((weights > 0).all()):
            raise InputError(f"weights must be {len(means)} positive numbers; got {weights}")
        log_weights = (weights.double() / weights.double().sum()).log()
        super().__init__(_MixtureDenoiser(means, std, log_weights, sde), sde, "data", tuple(means.shape[1:]))
        self.means, self.std, self.weights = means, std, log_weights.exp()

    @exactly
    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,); at t = 0 the density of the data.

        >>> from sde_diffusion.sde import VPSDE
        >>> one = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
        >>> round(float(one.log_prob(torch.zeros(1, 2), torch.tensor([0.5]))), 4)  # -log(2 pi)
        -1.8379
        """
        flat = x.flatten(1)
        alpha, v = self.network.scales(x, t)
        shared = -flat.square().sum(1) / (2 * v[:, 0]) - flat.shape[1] / 2 * torch.log(2 * math.pi * v[:, 0])
        return torch.logsumexp(self.network.log_joint(flat, alpha, v), dim=1) + shared

    def posterior(self, operator: Callable[[Tensor], Tensor], y: Tensor, noise: float) -> FullCovarianceMixture:
        """The exact score model of the data given y = A x_0 + noise, see ``models.full_covariance``.

        Args:
            operator: A, a linear function of a batch, such as ``guidance.Mask``.
            y: one observation.
            noise: its standard deviation, > 0.

        Raises:
            ValueError: see the message.

        >>> from sde_diffusion.sde import VPSDE
        >>> prior = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.5, sde=VPSDE())
        >>> prior.posterior(lambda x: x, torch.tensor([1.0]), noise=0.5).weights.round(decimals=3)
        tensor([0.0180, 0.9820], dtype=torch.float64)
        """
        covariance = self.std**2 * torch.eye(self.means[0].numel(), dtype=torch.float64, device=self.means.device)
        return observed_mixture(self.means, covariance, self.weights.log(), operator, y, noise, self.sde)

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n samples of the data, (n, ...).

        >>> from sde_diffusion.sde import VPSDE
        >>> GaussianMixture(torch.full((1, 1), 3.0), std=0.0, sde=VPSDE()).draw(2)
        tensor([[3.],
                [3.]])
        """
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], generator=generator, dtype=self.means.dtype, device="cpu")
        return self.means[k] + self.std * noise


class EmpiricalData(GaussianMixture):
    """The ideal denoiser of a finite data set: what a network of unlimited capacity would learn.

    Args:
        data: (N, ...) floats.
        sde: the forward process.

    >>> from sde_diffusion.sde import VPSDE
    >>> ideal = EmpiricalData(torch.tensor([[0.0], [1.0]]), sde=VPSDE())
    >>> ideal.denoise(torch.tensor([[0.9]]), torch.tensor([1e-4]))
    tensor([[1.]])
    """

    def __init__(self, data: Tensor, *, sde: SDE) -> None:
        super().__init__(data, 0.0, sde=sde)


class _GaussianDenoiser(nn.Module):
    def __init__(self, mean: Tensor, basis: Tensor, variances: Tensor, sde: SDE) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances)
        self.mean: Tensor
        self.basis: Tensor
        self.variances: Tensor
        self.sde = sde

    @exactly
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]."""
        alpha, sigma = (c[:, None] for c in self.sde.marginal(t))
        gain = (alpha * self.variances / (alpha**2 * self.variances + sigma**2)).to(x.dtype)
        basis, mean = self.basis.to(x.dtype), self.mean.to(x.dtype)
        centred = (x.flatten(1) - alpha.to(x.dtype) * mean) @ basis
        return (mean + (gain * centred) @ basis.T).reshape(x.shape)


class Gaussian(ScoreModel):
    """The exact score of Gaussian data with any covariance.

    Args:
        mean: (D,).
        covariance: (D, D) symmetric positive semi-definite, or (D,) for a diagonal one.
        sde: the forward process.

    Raises:
        ValueError: shapes that do not fit, or a matrix that is no covariance.

    >>> from sde_diffusion.sde import VPSDE
    >>> exact = Gaussian(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), sde=VPSDE())
    >>> exact.moments(torch.tensor(0.0))[1].round(decimals=6).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """

    def __init__(self, mean: Tensor, covariance: Tensor, *, sde: SDE) -> None:
        mean, covariance = as_tensor(mean).double(), as_tensor(covariance).double()
        if mean.ndim != 1 or covariance.shape not in ((len(mean),), (len(mean), len(mean))):
            raise InputError(
                f"expected mean (D,) and covariance (D,) or (D, D); got {tuple(mean.shape)} and "
                f"{tuple(covariance.shape)}"
            )
        if covariance.ndim == 1:
            variances, basis = covariance, torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        else:
            if not torch.allclose(covariance, covariance.T):
                raise InputError("the covariance must be symmetric")
            variances, basis = torch.linalg.eigh(covariance)
        if float(variances.min()) < -1e-9 * max(float(variances.max()), 1e-300):
            raise InputError(f"the covariance has a negative eigenvalue, {float(variances.min()):.3g}")
        network = _GaussianDenoiser(mean, basis, variances.clamp_min(0), sde)
        super().__init__(network, sde, "data", (len(mean),))

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of x_t, float64."""
        alpha, sigma = self.sde.marginal(t)
        net = self.network
        spread = alpha**2 * net.variances + sigma**2
        return alpha * net.mean, (net.basis * spread) @ net.basis.T

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,) float64; the times are all one.

        >>> from sde_diffusion.sde import VPSDE
        >>> unit = Gaussian(torch.zeros(2), torch.ones(2), sde=VPSDE())
        >>> round(float(unit.log_prob(torch.zeros(1, 2), torch.tensor([0.5]))), 4)  # -log(2 pi)
        -1.8379
        """
        alpha, sigma = self.sde.marginal(t[0])
        net = self.network
        spread = alpha**2 * net.variances + sigma**2
        centred = (x.double() - alpha * net.mean) @ net.basis
        return -(centred.square() / spread + torch.log(2 * math.pi * spread)).sum(1) / 2

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """The exact probability flow from time t to time s: a scaling along each principal direction.

        >>> from sde_diffusion.sde import VPSDE
        >>> unit = Gaussian(torch.zeros(1), torch.ones(1), sde=VPSDE())
        >>> unit.flow(torch.tensor([[0.7]]), 1.0, 0.0)
        tensor([[0.7000]])
        """
        net = self.network
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.sde.marginal(t), self.sde.marginal(s)
        ratio = torch.sqrt((alpha_s**2 * net.variances + sigma_s**2) / (alpha_t**2 * net.variances + sigma_t**2))
        centred = (x.double() - alpha_t * net.mean) @ net.basis
        return (alpha_s * net.mean + (centred * ratio) @ net.basis.T).to(x.dtype)

    def posterior(self, operator: Callable[[Tensor], Tensor], y: Tensor, noise: float) -> FullCovarianceMixture:
        """The exact score model of the data given y = A x_0 + noise, as for ``GaussianMixture``."""
        mean, covariance = self.moments(torch.tensor(0.0, device="cpu"))
        return observed_mixture(
            mean[None], covariance, torch.zeros(1, device=mean.device), operator, y, noise, self.sde
        )

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n samples of the data, (n, D) float64."""
        noise = standard_normal(as_seeds(range(seed, seed + n), n), self.network.mean.shape, FORWARD).double()
        return self.network.mean + (noise * self.network.variances.sqrt()) @ self.network.basis.T
