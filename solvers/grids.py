r"""Time grids: float64, strictly monotone, from t = 1 to t = 0 exactly, ``steps + 1`` times.

The last interval of a named grid ends at t = 0, where every solver returns E[x_0 | x_t]. Apart from
"uniform" and "quadratic", which reach 0 by themselves, the last time before 0 has

    rho_min = sigma / alpha = 4 / steps^2,   kept below 0.5; above 40 steps it falls as steps^(-2.5),

since the error of that last jump and of the steps before it must shrink together. All grids but "uniform" are noise
levels: with rho_1 the level at t = 1 and tau(rho) the clock of ``solvers.noise_clock``, the time of VPSDE(0.1, 20),
processes with one rho_1 have one grid whatever they call their times.

    uniform    t linear
    quadratic  tau = tau(rho_1) u^2                      (Song, Meng & Ermon 2021, appendix D.3)
    power      tau = u^2.5 from tau(rho_1) down to rho_min
    log-snr    lambda linear                             (Lu et al. 2022, section 3.3)
    karras     rho^(1/7) linear                          (Karras et al. 2022, eq. 5)
    angle      atan(rho) linear: equal steps of the velocity parametrization's angle
    ends       1, rho_min and 0 only, for solvers that choose their own steps between

Where rho_1 is above 400, as with straight and cosine paths, the second level is spaced from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from solvers.errors import InputError, choose
from solvers.noise_clock import clock, noise_level
from solvers.problem import Equation, Path, Problem

# lambda(1) may be -inf, and infinity cannot be spaced: the second time is spaced from here.
_RHO_MAX = 400.0
_RHO_END = 0.002  # for solvers that choose their own steps
_MANY = 40  # steps from which rho_min falls faster


def time_at(path: Path, half_log_snr: Tensor) -> Tensor:
    """The times at which a path has the given lambda: bisection to float64 resolution.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> float(time_at(straight, torch.tensor(0.0, dtype=torch.float64)))
    0.5
    """

    def lam(t: Tensor) -> Tensor:
        alpha, sigma = path(t)[:2]
        return torch.log(alpha) - torch.log(sigma)

    return time_where(lam, half_log_snr)


def time_where(decreasing: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The t in [0, 1] at which a decreasing function has a value; beyond its range the nearer end.

    >>> float(time_where(lambda t: 1 - t, torch.tensor(0.25, dtype=torch.float64)))
    0.75
    """
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(64):
        middle = (low + high) / 2
        beyond = decreasing(middle) < value
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return (low + high) / 2


def rho_min(steps: int) -> float:
    """The default sigma / alpha at the last time before 0.

    >>> rho_min(10), rho_min(1000)
    (0.04, 8e-07)
    """
    return min(4 / steps**2, 0.5) * min(1.0, (_MANY / steps) ** 0.5)


def first_noise_level(path: Path) -> float:
    """The rho from which grids are spaced: that of t = 1, or 400 if that is larger."""
    alpha, sigma = (float(c) for c in path(torch.ones((), dtype=torch.float64, device="cpu"))[:2])
    return sigma / alpha if alpha * _RHO_MAX > sigma else _RHO_MAX


def at_noise_levels(path: Path, rho: Tensor) -> Tensor:
    """The grid of t = 1, the times at which sigma / alpha is rho[1:], and 0: (len(rho) + 1,) float64."""
    t = time_at(path, -torch.log(rho))
    t[0] = 1.0
    return torch.cat([t, t.new_zeros(1)])


def power(path: Path, steps: int, end: float, exponent: float) -> Tensor:
    """Clock u^exponent from t = 1 down to rho = end, then 0: (steps + 1,) float64.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> power(straight, 3, 0.1, 2.0)
    tensor([1.0000, 0.6310, 0.0909, 0.0000], dtype=torch.float64)
    """
    first, last = clock(torch.tensor([first_noise_level(path), end], dtype=torch.float64, device="cpu")).tolist()
    root = torch.linspace(first ** (1 / exponent), last ** (1 / exponent), steps, dtype=torch.float64, device="cpu")
    return at_noise_levels(path, noise_level(root**exponent))


def _uniform(path: Path, steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")


def _quadratic(path: Path, steps: int) -> Tensor:
    first = clock(torch.tensor(first_noise_level(path), dtype=torch.float64, device="cpu"))
    return at_noise_levels(
        path, noise_level(first * torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")[:-1] ** 2)
    )


def _power(path: Path, steps: int) -> Tensor:
    return power(path, steps, rho_min(steps), 2.5)


def _in_rho(forward: Callable[[float], float], inverse: Callable[[Tensor], Tensor]) -> Callable[[Path, int], Tensor]:
    """Equal steps of a function of rho from t = 1 to rho_min, then 0."""

    def grid(path: Path, steps: int) -> Tensor:
        ends = forward(first_noise_level(path)), forward(rho_min(steps))
        return at_noise_levels(path, inverse(torch.linspace(*ends, steps, dtype=torch.float64, device="cpu")))

    return grid


def _ends(path: Path, steps: int) -> Tensor:
    last = time_at(path, torch.tensor(-math.log(_RHO_END), dtype=torch.float64, device="cpu"))
    return torch.tensor([1.0, float(last), 0.0], dtype=torch.float64, device="cpu")


GRIDS: dict[str, Callable[[Path, int], Tensor]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "power": _power,
    "log-snr": _in_rho(math.log, torch.exp),
    "karras": _in_rho(lambda rho: rho ** (1 / 7), lambda v: v**7),
    "angle": _in_rho(math.atan, torch.tan),
    "ends": _ends,
}
"""Time grids by name: functions of the process and the number of steps."""


@lru_cache(maxsize=256)
def _named(name: str, path: Path, steps: int) -> Tensor:
    return choose(name, GRIDS, "grid")(path, steps)


def make_grid(grid: str | Tensor | Sequence[float], problem: Problem, steps: int | None) -> Tensor:
    """The times of a run, (steps + 1,) float64.

    Args:
        grid: a name in ``GRIDS``, or the times themselves: strictly decreasing to generate, strictly
            increasing to encode, within [0, 1].
        problem: whose path spaces the named grids.
        steps: number of intervals of a named grid.

    Returns:
        (steps + 1,) float64 on the CPU.

    Raises:
        ValueError: an unknown name; times not monotone, repeated, not finite or outside [0, 1].

    >>> from solvers import ReverseProcess, Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> make_grid("uniform", ReverseProcess(lambda x, t: x, straight), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if isinstance(grid, str):
        if steps is None or steps < 1:
            raise InputError(f"steps is the number of grid intervals, at least 1; got {steps}")
        if isinstance(problem, Equation):
            raise InputError("an Equation has no noise levels to space a named grid by; pass the times as a tensor")
        # A copy: the cached tensor must not be changed by a caller.
        return _named(grid, problem.path, steps).clone()
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"a grid is a list of at least 2 times; got shape {tuple(times.shape)}")
    if not bool(torch.isfinite(times).all()) or times.min() < 0 or times.max() > 1:
        raise InputError(f"grid times must lie in [0, 1]; got {times.min():.6g} to {times.max():.6g}")
    steps_of_grid = times.diff()
    if not (bool((steps_of_grid < 0).all()) or bool((steps_of_grid > 0).all())):
        wrong = steps_of_grid.sign() != (times[-1] - times[0]).sign()
        k = int(wrong.nonzero()[0])
        raise InputError(
            "grid times must be strictly monotone, decreasing to generate or increasing to encode; "
            f"times {k} and {k + 1} are {times[k]:.6g} and {times[k + 1]:.6g}"
        )
    if steps is not None and steps != len(times) - 1:
        raise InputError(f"the grid has {len(times) - 1} steps, but steps={steps}; leave steps out")
    return times
