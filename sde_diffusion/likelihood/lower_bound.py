r"""Variational bounds of the log-likelihood, for the discrete process of DDPM and for continuous time.

On the grid t_i = i / T of a path, the reverse chain p(x_{i-1} | x_i) = N(m, v I) has the mean of the posterior
q(x_{i-1} | x_i, x_0) = N(m_q, v_q I) with the model's D(x_i, t_i) in the place of x_0. With a = alpha_i / alpha_{i-1},
s^2 = sigma_i^2 - a^2 sigma_{i-1}^2 (Ho et al. 2020, eq. 5-7; Kingma et al. 2021, appendix A)

    m_q = (a sigma_{i-1}^2 x_i + s^2 alpha_{i-1} x_0) / sigma_i^2,     v_q = s^2 sigma_{i-1}^2 / sigma_i^2,

and v is s^2 ("large", beta_i for DDPM), v_q ("small"), or between them as far as the network learned ("learned", Nichol
& Dhariwal 2021, eq. 15; v_q of the second step stands in for that of the first, which is 0). The bound is

    -log p(x_0) <= L_T + sum L_{i-1} + L_0,

    L_T     = KL(q(x_T | x_0) || N(0, prior_std^2 I)),
    L_{i-1} = E_q KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i))
            = d/2 (v_q / v - 1 - log(v_q / v)) + E_q |m_q - m|^2 / (2 v),       i = 2 .. T,
    L_0     = -E_q log N(x_0; D(x_1, t_1), sigma_1^2 I),  or of its integral over the level of x_0 (their eq. 13);
              with a learned variance v in the place of sigma_1^2.

Near the data of a smooth density v = s^2 is the variance of the true reverse step, so that with an exact model the
bound gets tight as T grows. v_q is too small there: at t_i = i / T two levels of noise differ by the factor i / (i - 1)
however large T is, and where sigma^2 is proportional to t the sum of 1 / (i - 1) - log(i / (i - 1)) leaves a gap of
0.29 nats (half of Euler's constant) for every value of x.

In continuous time the steps become an integral, over u = log(1 + snr), snr = alpha^2 / sigma^2 (Kingma et al. 2021,
eq. 17):

    L_inf = 1/2 int E_q (1 + snr) |x_0 - D(x_t, t)|^2 du,

in which the integrand is constant for Gaussian data of unit variance, and u is finite wherever alpha is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data.normalization import IDENTITY, Normalization
from sde_diffusion.likelihood.dequantization import level_range
from sde_diffusion.likelihood.flow import check_data
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.sde import SDE
from sde_diffusion.sde.base import as_float64
from sde_diffusion.sde.step_posterior import posterior
from solvers.errors import InputError, choose
from solvers.noise import standard_normal

FIXED = ("large", "small")
VARIANCES = (*FIXED, "learned")

# Separate streams for the noise of every draw and for the times.
_NOISE, _TIMES = 13, 14


@dataclass(frozen=True)
class Bound:
    """A lower bound of log p(x) and its parts, all in nats.

    Attributes:
        nats: the bound (B,): -(prior + steps.sum(0) + decoder).
        standard_error: over the draws, (B,); NaN with one draw.
        prior: L_T, (B,).
        steps: L_{i-1} of i = 2 .. T, (T - 1, B); in continuous time the integral over each part of u, from the data on.
        decoder: L_0, (B,).
        times: t_i of the steps, (T - 1,); in continuous time the middle of each part.
        nfe: network evaluations of each sample.
        dim: number of values in a sample.
        variance: v of the model's steps, a name in ``VARIANCES``.
    """

    nats: Tensor
    standard_error: Tensor
    prior: Tensor
    steps: Tensor
    decoder: Tensor
    times: Tensor
    nfe: int
    dim: int
    variance: str = "large"


def prior_term(sde: SDE, x0: Tensor) -> Tensor:
    """L_T = KL(N(alpha_1 x_0, sigma_1^2 I) || N(0, prior_std^2 I)), (B,).

    >>> from sde_diffusion.sde import Flow
    >>> prior_term(Flow(), torch.ones(1, 3))  # alpha(1) = 0
    tensor([0.], dtype=torch.float64)
    """
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    ratio = (sigma / sde.prior_std()) ** 2
    x0 = x0.flatten(1).double()
    square = (alpha / sde.prior_std()) ** 2 * x0.square().sum(1)
    return (x0.shape[1] * (ratio - 1 - math.log(ratio)) + square) / 2


def step_term(
    sde: SDE, x0: Tensor, denoised: Tensor, t: float | Tensor, s: float | Tensor, variance: str = "large"
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), s < t, given D(x_t, t); (B,).

    Args:
        sde: the path.
        x0: data (B, ...).
        denoised: D(x_t, t), like x0.
        t: the noisier time.
        s: the time of the step's end, > 0.
        variance: v of the model's step, "large" or "small".

    >>> from sde_diffusion.sde import Flow
    >>> x = torch.ones(1, 2)
    >>> step_term(Flow(), x, x, 0.5, 0.25, "small")
    tensor([0.], dtype=torch.float64)
    """
    choose(variance, dict.fromkeys(FIXED), "variance")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
    noise = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    ratio = torch.ones_like(noise) if variance == "small" else (sigma_s / sigma_t) ** 2
    # |m_q - m|^2 / (2 v_q), times v_q / v.
    weight = noise * alpha_s**2 / (2 * sigma_t**2 * sigma_s**2) * ratio
    square = (denoised - x0).flatten(1).double().square().sum(1)
    return x0[0].numel() / 2 * (ratio - 1 - ratio.log()) + weight * square


def learned_step_term(
    sde: SDE, x0: Tensor, denoised: Tensor, t: float | Tensor, s: float | Tensor, share: Tensor
) -> Tensor:
    """The KL of ``step_term`` where the network learned the variance of each value, (B,).

    Args:
        sde: the path.
        x0: data (B, ...).
        denoised: D(x_t, t), like x0.
        t: the noisier time.
        s: the time of the step's end, > 0.
        share: how far log v lies between log v_q and log s^2, like x0.

    >>> from sde_diffusion.sde import Flow
    >>> x = torch.ones(1, 2)
    >>> learned_step_term(Flow(), x, x, 0.5, 0.25, torch.ones(1, 2)) == step_term(Flow(), x, x, 0.5, 0.25, "large")
    tensor([True])
    """
    q = posterior(sde, as_float64(t), as_float64(s))
    excess = share.double() * torch.log(q.large / q.small)
    square = (q.from_data * (denoised - x0).double()).square() / q.small
    return ((excess - 1 + torch.exp(-excess) + square * torch.exp(-excess)) / 2).flatten(1).sum(1)


def learned_decoder_std(sde: SDE, t: Tensor, following: Tensor, share: Tensor) -> Tensor:
    """The standard deviation of the step from t to the data, like ``share``; beta~ is that of the following step."""
    large = sde.marginal(t)[1] ** 2
    small = posterior(sde, following, t).small
    return torch.exp((share.double() * torch.log(large / small) + torch.log(small)) / 2)


def decoder_term(
    sde: SDE,
    x0: Tensor,
    denoised: Tensor,
    t: float | Tensor,
    bins: int | None = None,
    units: Normalization = IDENTITY,
    std: Tensor | None = None,
) -> Tensor:
    """-log of the density of x_0, or of the probability of its level, under N(D(x_t, t), sigma(t)^2 I); (B,).

    With scales of their own the entries of x_0 have the deviation sigma(t) scale.

    Args:
        sde: the path.
        x0: data (B, ...); with bins, levels from -1 to 1.
        denoised: D(x_t, t), like x0.
        t: the first time of the grid.
        bins: number of levels of discrete data; None for a density.
        units: of x_0 and D, against those of the process.
        std: a deviation of each value, like x0, in the place of sigma(t).
    """
    sigma = sde.marginal(t)[1].to(x0.device) if std is None else std.to(x0.device).flatten(1)
    if not units.is_identity:
        sigma = sigma * units.scale.to(x0.device).expand(x0.shape[1:]).flatten()
    z = (x0.double() - denoised.double()).flatten(1) / sigma
    if bins is None:
        return (z.square() / 2 + torch.log(sigma) + math.log(2 * math.pi) / 2).sum(1)
    half = level_range(bins) / bins / 2 / sigma
    edge = 1 - 1 / (2 * bins)
    low = torch.where(x0.flatten(1) < -edge, -math.inf, z - half)
    high = torch.where(x0.flatten(1) > edge, math.inf, z + half)
    # Reflected to where the distribution function is small, or all of a tail is lost to 1 - 1.
    flip = z > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return -(log_high + torch.log(-torch.expm1(log_low - log_high))).sum(1)


@torch.no_grad()
def elbo(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int = 1000,
    variance: str | None = None,
    draws: int = 1,
    bins: int | None = None,
    seed: int = 0,
    first: int = 0,
    **condition: Tensor,
) -> Bound:
    """The bound of the chain on t_i = i / T, each expectation by draws of x_i given x_0.

    Args:
        model: any ScoreModel.
        x: data (B, ...).
        steps: T, at least 2.
        variance: "large", "small" or "learned"; by default the learned one where the network has it, else "large".
        draws: draws of x_i for every i and sample; two or more give a standard error.
        bins: number of levels if x holds discrete data from -1 to 1: the bound is then one of a log-probability.
        seed: seed of the draws; those of sample k depend on (seed, k) alone.
        first: the number k of the first sample in x, where x is a part of a larger set.
        condition: per-sample tensors passed to the network.

    Returns:
        The bound; it costs T x draws evaluations.

    >>> from sde_diffusion import Flow, Gaussian
    >>> model = Gaussian(torch.zeros(2), torch.ones(2), sde=Flow())
    >>> bound = elbo(model, torch.zeros(1, 2), steps=10, draws=20)
    >>> bool(bound.nats < -1.8379 + 3 * bound.standard_error), bound.steps.shape
    (True, torch.Size([9, 1]))
    """
    _check(model, x, steps, draws)
    evaluate = _evaluation(model, variance)
    sde, units, seeds = model.sde, model.units, seeds_of(seed, len(x), first)
    z = units.to_model(x)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    terms = torch.zeros(draws, steps, len(x), dtype=torch.float64, device=x.device)
    for k in range(draws):
        for i in range(steps):
            t = times[i]
            denoised, share = evaluate(*_noised(model, z, t.expand(len(x)), seeds, k * steps + i), **condition)
            if i == 0:
                std = None if share is None else learned_decoder_std(sde, t, times[1], share)
                terms[k, i] = decoder_term(sde, x, units.to_data(denoised), t, bins, units, std)
            elif share is None:
                terms[k, i] = step_term(sde, z, denoised, t, times[i - 1], variance or "large")
            else:
                terms[k, i] = learned_step_term(sde, z, denoised, t, times[i - 1], share)
    found = _bound(prior_term(sde, z), terms, times[1:], steps * draws, x)
    return replace(found, variance=variance or ("large" if share is None else "learned"))


@torch.no_grad()
def continuous_elbo(
    model: ScoreModel,
    x: Tensor,
    *,
    steps: int = 100,
    draws: int = 1,
    t_min: float = 1e-5,
    bins: int | None = None,
    seed: int = 0,
    first: int = 0,
    **condition: Tensor,
) -> Bound:
    """The bound in continuous time: the integral over u by one random point in each of equal parts.

    The arguments are those of ``elbo``; the decoder is that of x_{t_min}, and the parts of u take the place of steps.

    >>> from sde_diffusion import Flow, Gaussian
    >>> model = Gaussian(torch.zeros(2), torch.ones(2), sde=Flow())
    >>> bound = continuous_elbo(model, torch.zeros(1, 2), draws=4)
    >>> bool(bound.nats < -1.8379 + 3 * bound.standard_error)
    True
    """
    _check(model, x, steps + 1, draws)
    if not 0 < t_min < 1:
        raise InputError(f"t_min is a time near the data, in (0, 1); got {t_min}")
    sde, units, seeds = model.sde, model.units, seeds_of(seed, len(x), first)
    z = units.to_model(x)
    alpha, sigma = sde.marginal(torch.tensor([t_min, 1.0], dtype=torch.float64))
    first, last = torch.log1p((alpha / sigma) ** 2).tolist()
    width = (first - last) / steps
    terms = torch.zeros(draws, steps + 1, len(x), dtype=torch.float64, device=x.device)
    start = torch.tensor(t_min, dtype=torch.float64)
    for k in range(draws):
        denoised = model.denoise(*_noised(model, z, start.expand(len(x)), seeds, k * (steps + 1)), **condition)
        terms[k, 0] = decoder_term(sde, x, units.to_data(denoised), start, bins, units)
        place = torch.special.ndtr(standard_normal(seeds, (steps,), _TIMES, k).double())
        for i in range(steps):
            u = first - (i + place[:, i]) * width
            t = sde.time(torch.log(torch.expm1(u)) / 2).clamp(t_min, 1)
            denoised = model.denoise(*_noised(model, z, t, seeds, k * (steps + 1) + i + 1), **condition)
            square = (denoised - z).flatten(1).double().square().sum(1)
            terms[k, i + 1] = width / 2 * torch.exp(u).to(x.device) * square
    middle = first - (torch.arange(steps, dtype=torch.float64) + 0.5) * width
    return _bound(prior_term(sde, z), terms, sde.time(torch.log(torch.expm1(middle)) / 2), (steps + 1) * draws, z)


def _noised(model: ScoreModel, x: Tensor, t: Tensor, seeds: Tensor, counter: int) -> tuple[Tensor, Tensor]:
    """(x_t, t) for one draw of x_t given x_0 = x."""
    eps = standard_normal(seeds, x.shape[1:], _NOISE, counter).to(x)
    return model.sde.perturb(x, t.to(x.device), eps), t.to(x.device)


def _evaluation(model: ScoreModel, variance: str | None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """(x, t) -> D and the share of a learned variance, None where another variance is asked for."""
    if variance is not None:
        choose(variance, dict.fromkeys(VARIANCES), "variance")
    learned = None if variance in FIXED else model.learned_variance()

    def evaluate(x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        if learned is None:
            denoised, share = model.denoise(x, t, **condition), None
        else:
            denoised, share = learned.call(x, t, **condition)
        if variance == "learned" and share is None:
            raise InputError("the network learned no variance (half of twice the channels); use 'large' or 'small'")
        return denoised, share

    return evaluate


def _bound(prior: Tensor, terms: Tensor, times: Tensor, nfe: int, x: Tensor) -> Bound:
    totals = prior + terms.sum(1)
    draws = len(totals)
    mean = terms.mean(0)
    error = totals.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(prior, torch.nan)
    return Bound(-totals.mean(0), error, prior, mean[1:], mean[0], times, nfe, x[0].numel())


def _check(model: ScoreModel, x: Tensor, steps: int, draws: int) -> None:
    refuse_distilled(model, "bound a likelihood with")
    check_data(model, x)
    if steps < 2 or draws < 1:
        raise InputError(f"a bound takes at least 2 steps and 1 draw; got {steps} steps and {draws} draws")
