r"""Sampling of training times, with importance weights.

The loss of ``losses`` is an average over t ~ U[t_min, 1). Times drawn with another density q estimate the same average
if every sample has the weight 1 / ((1 - t_min) q(t)): the mean stays the same, and the variance changes. The
log-normal and logit-normal densities of the literature are part of the loss weight instead: every sample has the
weight 1 unless ``corrected`` is set.

Times are stratified: one uniform number in each of n equal cells (Kingma et al. 2021, appendix I.1) replaces n
independent ones, and the inverse distribution function maps them to q. With several processes the n times of the
whole batch are drawn from one generator and each process takes its rows, so that times are stratified across processes
too.

``SDE.to_step`` moves the times of a discrete-time process to its steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from solvers.errors import InputError

State = dict[str, Tensor]


def stratified(n: int, t_min: float = 1e-5, generator: torch.Generator | None = None) -> Tensor:
    """Draw stratified times: one uniform in each of n equal cells of [t_min, 1), in random order.

    The cells share one uniform offset, t = t_min + (1 - t_min) (i + u) / n. Each time is
    uniform, and together the times cover the interval, which lowers the variance of the loss (Kingma et al.
    2021, appendix I.1).

    Args:
        n: number of samples.
        t_min: the smallest time, > 0 because sigma(0) = 0.
        generator: CPU generator; torch's own by default.

    Returns:
        (n,) float64 on the CPU.

    >>> t = stratified(4, t_min=0.2)
    >>> ((t.sort().values - 0.2) / 0.2).floor()
    tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    cells = torch.randperm(n, generator=generator)
    return t_min + (1 - t_min) * ((cells + offset) / n)


class TimeSampler(ABC):
    """A sampler of training times. Its state, if it adapts during training, is stored in checkpoints."""

    def sample(
        self,
        n: int,
        t_min: float,
        generator: torch.Generator | None,
        sde: SDE,
        state: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Times and their importance weights.

        Args:
            n: number of samples: the size of the whole batch.
            t_min: the smallest time.
            generator: CPU generator; torch's own by default.
            sde: the process.
            state: from ``start`` and ``update``.

        Returns:
            Times (n,) in [t_min, 1] and factors (n,) of the loss, both float64 on the CPU.
        """
        t, factor = self.draw(n, t_min, generator, sde, state or {})
        return sde.to_step(t), factor

    @abstractmethod
    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """``sample`` before times are moved to the steps of a discrete-time process."""

    def start(self) -> State:
        """The initial state."""
        return {}

    def update(self, state: State, t: Tensor, loss: Tensor, t_min: float) -> State:
        """The new state after losses (B,) at times t (B,); the old state is not changed."""
        return state


@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Independent uniform times.

    >>> from sde_diffusion.sde import VPSDE
    >>> Uniform().sample(2, 0.5, None, VPSDE())[1]
    tensor([1., 1.], dtype=torch.float64)
    """

    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """T ~ U[t_min, 1), independent."""
        t = t_min + (1 - t_min) * torch.rand(n, dtype=torch.float64, generator=generator)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class Stratified(TimeSampler):
    """Uniform times, one in each of n equal cells.

    >>> from sde_diffusion.sde import DDPM
    >>> Stratified().sample(4, 1e-5, None, DDPM(steps=4, schedule="cosine"))[0].sort().values
    tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """

    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """T ~ U[t_min, 1), stratified."""
        t = stratified(n, t_min, generator)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """log rho ~ N(mean, std^2), cut off at t_min and 1, rho = sigma / alpha (Karras et al. 2022, table 1).

    Args:
        mean: mean of log rho; -1.2 is for data with a standard deviation of 0.5.
        std: standard deviation of log rho.
        corrected: count every sample 1 / ((1 - t_min) q), so that the average stays the uniform one.
        floor: where corrected, the share of uniform times that is mixed in, so that no factor exceeds 1 / floor; the
            factors of the rare times at the ends would have next to no finite variance without it.

    >>> from sde_diffusion.sde import EDM
    >>> t, _ = LogNormal().sample(1001, 1e-5, None, EDM())
    >>> round(float((80 * t).log().median()), 2)
    -1.2
    """

    mean: float = -1.2
    std: float = 1.2
    corrected: bool = False
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_std(self.std)
        _check_floor(self.floor)

    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of lambda at the quantiles of a normal distribution."""
        ends = -sde.half_log_snr(torch.tensor([t_min, 1.0], dtype=torch.float64))
        uniform, u = _mixed(stratified(n, 0.0, generator), t_min, self.floor if self.corrected else 0.0)
        t = sde.time(-_normal(u, self.mean, self.std, ends)).clamp(t_min, 1)
        if not self.corrected:
            return t, torch.ones_like(t)
        t = torch.where(uniform.isnan(), t, uniform)
        alpha, sigma, dalpha, dsigma = sde(t)
        q = _density(torch.log(sigma / alpha), self.mean, self.std, ends) * (dsigma / sigma - dalpha / alpha)
        return t, _bounded(q, t_min, self.floor)


@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """log(t / (1 - t)) ~ N(mean, std^2), cut off at t_min (Esser et al. 2024, eq. 19).

    Args:
        mean: mean of the logit; positive values favour noise.
        std: standard deviation of the logit.
        corrected: count every sample 1 / ((1 - t_min) q), so that the average stays the uniform one.
        floor: where corrected, the share of uniform times that is mixed in, so that no factor exceeds 1 / floor; the
            factors of the rare times at the ends would have next to no finite variance without it.

    >>> from sde_diffusion.sde import Flow
    >>> round(float(LogitNormal().sample(1001, 1e-5, None, Flow())[0].median()), 2)
    0.5
    """

    mean: float = 0.0
    std: float = 1.0
    corrected: bool = False
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_std(self.std)
        _check_floor(self.floor)

    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The logistic function of the quantiles of a normal distribution."""
        ends = torch.logit(torch.tensor([t_min, 1.0], dtype=torch.float64))
        uniform, u = _mixed(stratified(n, 0.0, generator), t_min, self.floor if self.corrected else 0.0)
        t = torch.sigmoid(_normal(u, self.mean, self.std, ends)).clamp(t_min, 1)
        if not self.corrected:
            return t, torch.ones_like(t)
        t = torch.where(uniform.isnan(), t, uniform)
        return t, _bounded(_density(torch.logit(t), self.mean, self.std, ends) / (t * (1 - t)), t_min, self.floor)


@dataclass(frozen=True)
class Importance(TimeSampler):
    """q(t) proportional to g^2 / sigma^2: lambda is uniform (Song et al. 2021b, variance reduction).

    With the likelihood weight and noise prediction the loss has a constant factor, which lowers the variance.
    Where lambda(1) is infinite, times end at 1 - t_min.

    >>> from sde_diffusion.sde import VPSDE
    >>> t, factor = Importance().sample(1000, 1e-3, None, VPSDE())
    >>> round(float(factor.mean()), 2)  # it estimates 1
    1.0
    """

    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of lambda at uniform values; the factor is 1 / ((t_max - t_min) q)."""
        t_max = 1.0 if float(sde.marginal(1.0)[0]) > 0 else 1 - t_min
        first, last = sde.half_log_snr(torch.tensor([t_min, t_max], dtype=torch.float64))
        t = sde.time(first + (last - first) * stratified(n, 0.0, generator)).clamp(t_min, t_max)
        alpha, sigma, dalpha, dsigma = sde(t)
        return t, (first - last) / ((t_max - t_min) * (dsigma / sigma - dalpha / alpha))


@dataclass(frozen=True)
class LossSecondMoment(TimeSampler):
    """q proportional to sqrt(E[loss^2]) in each of ``bins`` equal cells of time (Nichol & Dhariwal 2021, eq. 18).

    Times are uniform until every cell has seen ``history`` losses.

    Args:
        bins: cells of [t_min, 1).
        history: number of stored losses in each cell.
        floor: share of the uniform density in the mixture, so that no factor exceeds 1 / floor.

    >>> from sde_diffusion.sde import VPSDE
    >>> times, state = LossSecondMoment(bins=2, history=1), LossSecondMoment(bins=2, history=1).start()
    >>> state = times.update(state, torch.tensor([0.2, 0.7]), torch.tensor([3.0, 1.0]), 1e-5)
    >>> t, factor = times.sample(100, 1e-5, torch.Generator().manual_seed(0), VPSDE(), state)
    >>> int((t < 0.5).sum()), factor[t < 0.5][0].round(decimals=3)
    (75, tensor(0.6670, dtype=torch.float64))
    """

    bins: int = 100
    history: int = 10
    floor: float = 0.001

    def __post_init__(self) -> None:
        if self.bins < 1 or self.history < 1 or not 0 < self.floor <= 1:
            raise InputError(
                f"expected bins and history from 1 up and a floor in (0, 1]; got bins={self.bins}, "
                f"history={self.history}, floor={self.floor}"
            )

    def start(self) -> State:
        """No losses yet."""
        return {
            "losses": torch.zeros(self.bins, self.history, dtype=torch.float64),
            "count": torch.zeros(self.bins, dtype=torch.int64),
        }

    def density(self, state: Mapping[str, Tensor]) -> Tensor:
        """The probability of each cell, (bins,) float64."""
        uniform = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if not state or bool((state["count"] < self.history).any()):
            return uniform
        size = state["losses"].square().mean(1).sqrt()
        total = size.sum()
        return (1 - self.floor) * size / total + self.floor * uniform if float(total) > 0 else uniform

    def draw(
        self, n: int, t_min: float, generator: torch.Generator | None, sde: SDE, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The inverse of the piecewise linear distribution function; the factor is 1 / (bins p)."""
        p = self.density(state)
        ends = torch.cat([p.new_zeros(1), p.cumsum(0)])
        u = stratified(n, 0.0, generator) * ends[-1]
        cell = (torch.searchsorted(ends, u, right=True) - 1).clamp(0, self.bins - 1)
        place = (cell + (u - ends[cell]) / p[cell]) / self.bins
        return t_min + (1 - t_min) * place, 1 / (self.bins * p[cell])

    def update(self, state: State, t: Tensor, loss: Tensor, t_min: float) -> State:
        """The state with the newest losses (B,) at times t (B,) of each cell.

        Args:
            state: the old state.
            t: times (B,).
            loss: losses of ``denoising_loss`` there (B,), without the factors of ``sample``.
            t_min: as for ``sample``.
        """
        place = (t.detach().double().cpu() - t_min) / (1 - t_min)
        # A step of a discrete-time process stands for the interval below it.
        cell = (torch.ceil(place * self.bins - 1e-6).long() - 1).clamp(0, self.bins - 1)
        order = torch.argsort(cell, stable=True)
        cell, value = cell[order], loss.detach().double().cpu()[order]
        seen = torch.bincount(cell, minlength=self.bins)
        rank = torch.arange(len(cell)) - (seen.cumsum(0) - seen)[cell]
        kept = rank >= seen[cell] - self.history  # one slot is written once
        slot = (state["count"][cell] + rank) % self.history
        losses = state["losses"].clone()
        losses[cell[kept], slot[kept]] = value[kept]
        return {"losses": losses, "count": state["count"] + seen}


def _mixed(u: Tensor, t_min: float, floor: float) -> tuple[Tensor, Tensor]:
    """The share ``floor`` of quantiles u as uniform times (NaN elsewhere), and the others rescaled to quantiles."""
    times = t_min + (1 - t_min) * u / floor if floor > 0 else torch.full_like(u, torch.nan)
    return torch.where(u < floor, times, torch.nan), ((u - floor) / (1 - floor)).clamp_min(0)


def _bounded(q: Tensor, t_min: float, floor: float) -> Tensor:
    """1 / ((1 - t_min) density) for the mixture of q with uniform times; q is NaN where it is 0 times infinity."""
    return 1 / (floor + (1 - floor) * (1 - t_min) * torch.nan_to_num(q, nan=0.0))


def _normal(u: Tensor, mean: float, std: float, ends: Tensor) -> Tensor:
    """Quantiles u of N(mean, std^2) cut off at two ends."""
    low = torch.special.ndtr((ends[0] - mean) / std)
    return mean + std * torch.special.ndtri(low + u * _mass(mean, std, ends))


def _density(value: Tensor, mean: float, std: float, ends: Tensor) -> Tensor:
    """The density of N(mean, std^2) cut off at two ends."""
    z = (value - mean) / std
    return torch.exp(-(z**2) / 2) / ((2 * torch.pi) ** 0.5 * std * _mass(mean, std, ends))


def _mass(mean: float, std: float, ends: Tensor) -> Tensor:
    low, high = torch.special.ndtr((ends - mean) / std)
    mass = high - low
    if not float(mass) > 0:
        raise InputError(
            f"a normal distribution with mean {mean} and standard deviation {std} has no times between "
            f"{float(ends[0]):.4g} and {float(ends[1]):.4g}"
        )
    return mass


def _check_std(std: float) -> None:
    if not 0 < std < float("inf"):
        raise InputError(f"std is a standard deviation and must be positive; got {std}")


def _check_floor(floor: float) -> None:
    if not 0 < floor < 1:
        raise InputError(f"floor is the share of uniform times, between 0 and 1; got {floor}")


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": Uniform(),
    "stratified": Stratified(),
    "log-normal": LogNormal(),
    "log-normal-wide": LogNormal(0.4, 1.6),
    "logit-normal": LogitNormal(),
    "importance": Importance(),
    "loss-second-moment": LossSecondMoment(),
}
