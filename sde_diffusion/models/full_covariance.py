r"""Mixtures of Gaussians that share one covariance of any form: posteriors of linear observations.

For data x_0 ~ sum_k w_k N(mu_k, C), C = Q diag(c) Q', the noised components are N(alpha mu_k, alpha^2 C + sigma^2 I),
diagonal in the basis Q; with responsibilities r_k(x) and m = sum_k r_k(x) mu_k,

    E[x_0 | x_t = x] = m + Q diag(alpha c / (alpha^2 c + sigma^2)) Q' (x - alpha m).

An observation y = A x_0 + n, n ~ N(0, s^2 I), of a mixture with covariance C_0 is a mixture again (Bishop 2006,
eq. 2.113 to 2.117, for each component), with S = A C_0 A' + s^2 I:

    C = C_0 - C_0 A' S^-1 A C_0,    mu_k' = mu_k + C_0 A' S^-1 (y - A mu_k),    w_k' ~ w_k N(y; A mu_k, S).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sde_diffusion.models.exact_arithmetic import exactly
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import SDE
from solvers.errors import InputError


class _Denoiser(nn.Module):
    def __init__(self, means: Tensor, basis: Tensor, variances: Tensor, log_weights: Tensor, sde: SDE) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances)
        self.register_buffer("log_weights", log_weights)
        self.means: Tensor
        self.basis: Tensor
        self.variances: Tensor
        self.log_weights: Tensor
        self.sde = sde

    @exactly
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]."""
        alpha, sigma = (c.to(x.dtype)[:, None] for c in self.sde.marginal(t))
        basis, means = self.basis.to(x.dtype), self.means.to(x.dtype) @ self.basis.to(x.dtype)
        spread = alpha**2 * self.variances.to(x.dtype) + sigma**2
        rotated = x.flatten(1) @ basis
        # |z - alpha mu|^2 / spread without the |z|^2 that the softmax drops.
        logits = alpha * (rotated / spread) @ means.T - alpha**2 / 2 * (1 / spread) @ means.square().T
        m = (self.log_weights.to(x.dtype) + logits).softmax(1) @ means
        gain = alpha * self.variances.to(x.dtype) / spread
        return ((m + gain * (rotated - alpha * m)) @ basis.T).reshape(x.shape)


class FullCovarianceMixture(ScoreModel):
    """The exact score of a mixture of Gaussians with one covariance.

    Args:
        means: (K, ...), in the shape of a sample.
        covariance: (D, D), symmetric positive semi-definite; D entries in a sample.
        weights: (K,) positive; they are normalised.
        sde: the forward process.

    Raises:
        ValueError: a matrix that is no covariance of such samples.

    >>> from sde_diffusion.sde import VPSDE
    >>> exact = FullCovarianceMixture(torch.zeros(1, 2), torch.eye(2), torch.ones(1), sde=VPSDE())
    >>> exact.denoise(torch.ones(1, 2), torch.tensor([1e-6])).round(decimals=3)
    tensor([[1., 1.]])
    """

    def __init__(self, means: Tensor, covariance: Tensor, weights: Tensor, *, sde: SDE) -> None:
        flat, covariance = means.double().flatten(1), covariance.double()
        if covariance.shape != (flat.shape[1],) * 2 or not torch.allclose(covariance, covariance.T, atol=1e-8):
            raise InputError(
                f"expected a symmetric covariance ({flat.shape[1]}, {flat.shape[1]}); got {tuple(covariance.shape)}"
            )
        values, basis = torch.linalg.eigh(covariance)
        if float(values.min()) < -1e-8 * max(float(values.max()), 1e-300):
            raise InputError(f"the covariance has a negative eigenvalue, {float(values.min()):.3g}")
        log_weights = (weights.double() / weights.double().sum()).log()
        network = _Denoiser(flat, basis, values.clamp_min(0), log_weights, sde)
        super().__init__(network, sde, "data", tuple(means.shape[1:]))
        self.means, self.covariance, self.weights = means, covariance, log_weights.exp()

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n samples of the data, (n, ...) float64."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, len(self.covariance), generator=generator, dtype=torch.float64, device="cpu")
        net = self.network
        return (net.means[k] + (z * net.variances.sqrt()) @ net.basis.T).reshape(n, *self.means.shape[1:])


def observed_mixture(
    means: Tensor,
    covariance: Tensor,
    log_weights: Tensor,
    operator: Callable[[Tensor], Tensor],
    y: Tensor,
    noise: float,
    sde: SDE,
) -> FullCovarianceMixture:
    """The posterior of a mixture with one covariance, given y = A x_0 + noise: a mixture again.

    Args:
        means: (K, ...).
        covariance: (D, D).
        log_weights: (K,).
        operator: A, linear, (B, ...) -> (B, ...).
        y: one observation, with or without a batch of 1.
        noise: standard deviation of the observation, > 0.
        sde: the forward process.

    Raises:
        ValueError: a noise that is not positive, an operator that is not linear, or y of another shape.
    """
    if not noise > 0:
        raise InputError(f"the noise of an observation is a standard deviation, > 0; got {noise}")
    shape, means = means.shape[1:], means.double()
    units = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device).reshape(-1, *shape)
    zero = operator(torch.zeros(1, *shape, dtype=torch.float64, device=covariance.device))
    if bool((zero != 0).any()):
        raise InputError("the operator is not linear: A 0 is not 0; subtract what it adds from y")
    a = operator(units).flatten(1).double().T
    target = y.double().flatten()
    if len(target) != len(a):
        raise InputError(f"y has {len(target)} entries, but the operator gives {len(a)}")
    covariance = covariance.double()
    s = a @ covariance @ a.T + noise**2 * torch.eye(len(a), dtype=torch.float64, device=a.device)
    root = torch.linalg.cholesky(s)
    gain = torch.cholesky_solve(a @ covariance, root).T
    error = target - means.flatten(1) @ a.T
    white = torch.linalg.solve_triangular(root, error.T, upper=False)
    logits = log_weights.double() - white.square().sum(0) / 2
    after = covariance - gain @ a @ covariance
    moved = (means.flatten(1) + error @ gain.T).reshape(means.shape)
    return FullCovarianceMixture(moved, (after + after.T) / 2, logits.softmax(0).clamp_min(1e-300), sde=sde)
