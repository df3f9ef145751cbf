"""The methods of torchsde."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.backends.interval import Interval, require
from solvers.errors import choose
from solvers.exact_step import ancestral_step
from solvers.noise import Noise
from solvers.problem import Problem, ReverseProcess
from solvers.solver import Solver

TORCHSDE = {
    "euler": ("ito", 1, 1),
    "milstein": ("ito", 1, 1),
    "srk": ("ito", 4, 1),
    "heun": ("stratonovich", 2, 2),
    "midpoint": ("stratonovich", 2, 2),
    "euler_heun": ("stratonovich", 1, 1),
    "reversible_heun": ("stratonovich", 1, 2),
}
"""Methods of ``torchsde.sdeint``: calculus, evaluations in one step, and weak order with additive noise."""

_ROOTS = {"milstein", "srk"}  # which take the root of a time as that of a tensor


@dataclass(frozen=True)
class TorchSDE(Solver):
    """The fixed-step methods of ``torchsde.sdeint``, one step for every grid interval.

    The library is given the increments of this package's Brownian path in place of its own, so a
    sample depends on its seed alone and finer grids follow the same path. Where alpha(t) = 0 the
    coefficients of the reverse SDE are infinite and the exact transition is taken, as in
    Euler-Maruyama. Reversible Heun is not damped: it carries a second state and needs small steps.

    Args:
        method: a name in ``TORCHSDE``.

    Raises:
        ValueError: an unknown method.
        ModuleNotFoundError: torchsde is not installed (at the start of a run).

    >>> TorchSDE("heun").evaluations(steps=10)
    19
    """

    method: str = "euler"

    stochastic = True
    grid = "uniform"

    def __post_init__(self) -> None:
        choose(self.method, TORCHSDE, "method of torchsde")

    @property
    def order(self) -> int:
        """Weak order with additive noise; of srk at least 1."""
        return TORCHSDE[self.method][2]

    @property
    def strong_order(self) -> float:
        """1 with additive noise."""
        return 1.0

    @property
    def source(self) -> str:
        """The source of the method."""
        return f"torchsde ({self.method})"

    @property
    def stages(self) -> int:
        """Evaluations in one step; reversible Heun has one more in its first."""
        return TORCHSDE[self.method][1]

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """Model evaluations of a run."""
        first = int(self.method == "reversible_heun" and steps > finish)
        return super().evaluations(steps, finish) + first

    def init(self, problem: Problem, times: Tensor) -> _Run:
        """One of the classes that ``torchsde.sdeint`` steps with, for all steps of this run.

        The function itself is as long about checking its arguments as the rest of a step is at work
        (benchmarks/overhead: 0.4 ms), and so is making these classes.
        """
        methods, base = require("torchsde._core.methods"), require("torchsde._core.base_sde")
        calculus = TORCHSDE[self.method][0]
        equation, increments = _SDE(calculus), _Increments("space-time" if self.method == "srk" else "none")
        stepper = methods.select(self.method, calculus)(
            sde=base.ForwardSDE(equation), bm=increments, dt=0.0, adaptive=False, rtol=0.0, atol=0.0, dt_min=0.0,
            options={},
        )  # fmt: skip
        return _Run(equation, increments, stepper, None)

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: _Run, noise: Noise
    ) -> tuple[Tensor, Tensor, _Run]:
        """One step of the library."""
        if isinstance(problem, ReverseProcess) and problem.eta > 0 and float(problem.path(t).alpha) == 0:
            x = ancestral_step(problem, x, problem.denoise(x, t), t, s, noise.increment(x, t, s))
            return x, s, state
        equation, stepper = state.equation, state.stepper
        equation.begin(problem, x, t, s)
        state.increments.begin(x, t, s, noise)
        ends: tuple[Any, ...] = (0.0, equation.drift.length)
        if self.method in _ROOTS:
            ends = torch.tensor(ends, dtype=torch.float64, device="cpu").unbind()
        start = stepper.init_extra_solver_state(ends[0], equation.y) if state.extra is None else state.extra
        y, extra = stepper.step(*ends, equation.y, start)
        return y.reshape(x.shape), s, state._replace(extra=extra or None)


class _Run(NamedTuple):
    """The library's stepper in one run, with the state of reversible Heun."""

    equation: _SDE
    increments: _Increments
    stepper: Any
    extra: Any


class _SDE:
    """An interval as torchsde wants it: state (B, D), time increasing, diagonal noise."""

    noise_type = "diagonal"

    drift: Interval
    y: Tensor

    def __init__(self, sde_type: str) -> None:
        self.sde_type = sde_type

    def begin(self, problem: Problem, x: Tensor, t: Tensor, s: Tensor) -> None:
        """The interval from t to s, with x at its start."""
        self.drift, self.shape = Interval(problem, x, t, s, check=False), x.shape
        self.y = x.flatten(1)
        # The library asks for the same slopes again between stages.
        self.seen: list[tuple[Tensor, float, Tensor]] = []

    def f(self, r: Any, y: Tensor) -> Tensor:
        """The drift."""
        r = float(r)
        for at, time, slope in self.seen:
            if at is y and time == r:
                return slope
        problem, t, x = self.drift.problem, self.drift.time(r), y.reshape(self.shape)
        if isinstance(problem, ReverseProcess):
            slope = problem.drift_from(problem.denoise(x, t), x, t)
        else:
            slope = problem.drift(x, t)
        slope = (self.drift.sign * slope).flatten(1)
        self.seen.append((y, r, slope))
        return slope

    def g(self, r: Any, y: Tensor) -> Tensor:
        """The diffusion."""
        g = self._diffusion(r, y).to(y)
        return g.expand_as(y) if g.ndim == 0 else g.expand(self.shape).flatten(1)

    def g_prod(self, r: Any, y: Tensor, v: Tensor) -> Tensor:
        """The diffusion times v; by one number where it is one."""
        g = self._diffusion(r, y)
        return v * g if g.ndim == 0 else v * g.to(v).expand(self.shape).flatten(1)

    def _diffusion(self, r: Any, y: Tensor) -> Tensor:
        return self.drift.problem.diffusion(y.reshape(self.shape), self.drift.time(float(r)))


class _Increments:
    """The Brownian motion of one step, as torchsde asks for it."""

    def __init__(self, levy_area_approximation: str) -> None:
        self.levy_area_approximation = levy_area_approximation

    def begin(self, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> None:
        """The increment from t to s."""
        self.x, self.t, self.s, self.noise = x, t, s, noise

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        """The increment, and its integral over time where asked."""
        h = abs(float(self.s) - float(self.t))
        w = self.noise.increment(self.x, self.t, self.s).flatten(1) * h**0.5
        if not return_U:
            return w
        # U = Int (W_r - W_0) dr given W: mean h W / 2, variance h^3 / 12.
        extra = self.noise.independent(self.x, self.t).flatten(1)
        return w, h / 2 * w + (h**3 / 12) ** 0.5 * extra
