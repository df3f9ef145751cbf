r"""torchdiffeq, scipy and torchsde as solvers of the same table.

They integrate the plain drift (and diffusion) in t over each interval of the grid. Their time is
r = |t - t_start|, which only increases, and their functions are clamped to [0, |s - t|]: however
far a method probes ahead, the model never sees a time outside the interval. Network calls are
counted at the call like those of every solver, and a cap stops the run at the last accepted state.

What these adapters cannot promise: the adaptive methods of torchdiffeq and scipy have one error
norm and one step size for the whole batch, so a sample depends on its batch, and the hardest one
sets the cost of all. A sample whose drift is not finite is set aside, and the others go on from the
last accepted state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.ancestral import ancestral_step
from solvers.errors import choose
from solvers.noise import Noise
from solvers.problem import Problem, ReverseProcess
from solvers.solver import BudgetSpentError, Solver

# Order, and evaluations of n equal steps; None where the library decides.
TORCHDIFFEQ: dict[str, tuple[int, Callable[[int], int] | None]] = {
    "dopri8": (8, None),
    "dopri5": (5, None),
    "bosh3": (3, None),
    "fehlberg2": (2, None),
    "adaptive_heun": (2, None),
    "euler": (1, lambda n: n),
    "midpoint": (2, lambda n: 2 * n),
    "heun2": (2, lambda n: 2 * n),
    "heun3": (3, lambda n: 3 * n),
    "rk4": (4, lambda n: 4 * n),
    "explicit_adams": (4, lambda n: 4 * min(n, 2) + max(n - 2, 0)),
    "implicit_adams": (4, None),
}
_FIXED_GRID = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
SCIPY = {"RK23": 3, "RK45": 5, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}
# Type of the calculus, evaluations in one step, and weak order with additive noise.
TORCHSDE = {
    "euler": ("ito", 1, 1),
    "milstein": ("ito", 1, 1),
    "srk": ("ito", 4, 1),
    "heun": ("stratonovich", 2, 2),
    "midpoint": ("stratonovich", 2, 2),
    "euler_heun": ("stratonovich", 1, 1),
    "reversible_heun": ("stratonovich", 1, 2),
}


class _NotFiniteError(RuntimeError):
    """The drift of some samples is not finite."""


class State(NamedTuple):
    """Per sample: whether it has failed, and a slope that is NaN where it has."""

    stalled: Tensor
    slope: Tensor

    def rows(self, index: Tensor) -> State:
        """The state of a part of the batch."""
        return State(self.stalled[index], self.slope[index])


def _require(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"this solver is the library {name.split('.')[0]}, which is not installed; "
            f"run: pip install {name.split('.')[0]}",
            name=name,
        ) from error


class _Drift:
    """The drift of an interval as a function of r = |t - start| in [0, length], clamped to it."""

    def __init__(self, problem: Problem, x: Tensor, start: Tensor, end: Tensor, check: bool) -> None:
        self.problem, self.check = problem, check
        self.start, self.end = start.reshape(-1)[0].cpu(), end.cpu()
        self.length = abs(float(self.end - self.start))
        self.sign = 1.0 if self.end > self.start else -1.0
        # The last state that the library has accepted, and which samples were not finite.
        self.accepted: tuple[float, Tensor] = (0.0, x)
        self.bad = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def time(self, r: float) -> Tensor:
        """The time t at r."""
        if r >= self.length:
            return self.end
        return self.start + self.sign * max(r, 0.0)

    def __call__(self, r: Any, x: Tensor) -> Tensor:
        slope = self.sign * self.problem.drift(x, self.time(float(r)))
        if self.check:
            self.bad = ~slope.flatten(1).isfinite().all(1)
            if bool(self.bad.any()):
                raise _NotFiniteError
        return slope

    def callback_step(self, r: Tensor, x: Tensor, dr: Tensor) -> None:
        """Torchdiffeq calls this before every attempt, with the state it starts from."""
        self.accepted = (float(r), x)

    def result(self, shape: tuple[int, ...], failed: bool = False) -> tuple[Tensor, Tensor, State]:
        """What a solver returns: how far the accepted state has got."""
        r, x = self.accepted
        at = self.time(r).to(x.device).expand(shape).clone()
        stalled = torch.ones_like(self.bad) if failed else self.bad
        slope = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        return x, at, State(stalled, slope.masked_fill(self.bad[:, None], torch.nan))


def _check(rtol: float, atol: float) -> None:
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be positive; got rtol={rtol}, atol={atol}")


@dataclass(frozen=True)
class TorchDiffEq(Solver):
    """The methods of ``torchdiffeq.odeint``.

    The first step of an adaptive method is |s - t| rtol^(1/order), and the last one ends at s; left
    alone the library evaluates beyond both ends. It has one error norm for the batch, and rounds
    times to the dtype of x.

    Args:
        method: a name in ``TORCHDIFFEQ``.
        rtol: relative tolerance of the adaptive methods.
        atol: absolute tolerance of the adaptive methods.
        substeps: equal steps within each grid interval for the fixed-step methods.

    Raises:
        ValueError: an unknown method, tolerances or substeps not positive.
        ModuleNotFoundError: torchdiffeq is not installed (at the start of a run).

    >>> from solvers import Equation, solve
    >>> decay = Equation(lambda x, t: -x)
    >>> x = torch.ones(1, 1).double()
    >>> out = solve(decay, x, solver=TorchDiffEq("rk4"), grid=[0.0, 0.5, 1.0])
    >>> round(float(out.x), 6), out.nfe.tolist()
    (0.368171, [8])
    """

    method: str = "dopri5"
    rtol: float = 1e-4
    atol: float = 1e-4
    substeps: int = 1

    def __post_init__(self) -> None:
        choose(self.method, TORCHDIFFEQ, "method of torchdiffeq")
        _check(self.rtol, self.atol)
        if self.substeps < 1:
            raise ValueError(f"substeps must be at least 1; got {self.substeps}")

    @property
    def order(self) -> int:
        """Order of the method; of explicit Adams 4 by its Runge-Kutta start, then 3."""
        short = self.method == "explicit_adams" and self.substeps > 2
        return 3 if short else TORCHDIFFEQ[self.method][0]

    @property
    def batch_independent(self) -> bool:
        """Whether the method has no error norm, which the batch would share."""
        return not self.adaptive

    @property
    def adaptive(self) -> bool:
        """Whether the number of evaluations is known only afterwards."""
        return TORCHDIFFEQ[self.method][1] is None

    @property
    def grid(self) -> str:
        """Two ends for the adaptive methods."""
        return "ends" if self.adaptive else "quadratic"

    @property
    def source(self) -> str:
        """Where the method comes from."""
        return f"torchdiffeq ({self.method})"

    @property
    def stages(self) -> int:
        """Evaluations in an interval; 1, the least, for the adaptive methods."""
        count = TORCHDIFFEQ[self.method][1]
        return 1 if count is None else count(self.substeps)

    def init(self, problem: Problem, times: Tensor) -> None:
        """Fail early where the library is missing."""
        _require("torchdiffeq")

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """The whole interval, or as far as the cap allows."""
        drift = _Drift(problem, x, t, s, check=self.adaptive)
        options: dict[str, Any]
        if self.method in _FIXED_GRID:
            options = {"grid_constructor": self._substeps}
        else:
            first = drift.length * min(self.rtol, 1.0) ** (1 / self.order)
            options = {"first_step": first, "max_step": drift.length, "step_t": [drift.length]}
        ends = torch.tensor([0.0, drift.length], dtype=torch.float64, device=x.device)
        try:
            x = _require("torchdiffeq").odeint(
                drift, x, ends, rtol=self.rtol, atol=self.atol, method=self.method, options=options
            )[-1]
        except (BudgetSpentError, _NotFiniteError):
            return drift.result(_shape(x))
        except AssertionError:
            # How the library says that its step has become too small.
            return drift.result(_shape(x), failed=True)
        if not self.adaptive:
            return x, s, state
        drift.accepted = (drift.length, x)
        return drift.result(_shape(x))

    def _substeps(self, f: Any, y: Tensor, r: Tensor) -> Tensor:
        return torch.cat([r[:1] + (r[-1] - r[0]) * k / self.substeps for k in range(self.substeps)] + [r[-1:]])


@dataclass(frozen=True)
class Scipy(Solver):
    """The methods of ``scipy.integrate.solve_ivp``, on the whole batch as one vector of float64.

    Radau, BDF and LSODA are for small stiff problems: they estimate a Jacobian with one evaluation
    for every entry of the batch.

    Args:
        method: a name in ``SCIPY``.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises:
        ValueError: an unknown method, or tolerances not positive.
        ModuleNotFoundError: scipy is not installed (at the start of a run).

    >>> from solvers import Equation, solve
    >>> decay = Equation(lambda x, t: -x)
    >>> x = torch.ones(1, 1).double()
    >>> out = solve(decay, x, solver=Scipy("DOP853", 1e-9, 1e-9), grid=[0.0, 1.0])
    >>> abs(float(out.x) - 0.36787944117) < 1e-9
    True
    """

    method: str = "RK45"
    rtol: float = 1e-4
    atol: float = 1e-4

    adaptive = True
    batch_independent = False
    grid = "ends"

    def __post_init__(self) -> None:
        choose(self.method, SCIPY, "method of scipy")
        _check(self.rtol, self.atol)

    @property
    def order(self) -> int:
        """Order of the method, the highest where it varies."""
        return SCIPY[self.method]

    @property
    def source(self) -> str:
        """Where the method comes from."""
        return f"scipy.integrate ({self.method})"

    def init(self, problem: Problem, times: Tensor) -> None:
        """Fail early where the library is missing."""
        _require("scipy")

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, State]:
        """The whole interval, or as far as the cap allows."""
        integrate = _require("scipy.integrate")
        drift = _Drift(problem, x, t, s, check=True)
        like_x = x

        def tensor(y: Any) -> Tensor:
            return torch.from_numpy(y.copy()).to(like_x).reshape(like_x.shape)

        def function(r: float, y: Any) -> Any:
            return drift(r, tensor(y)).reshape(-1).double().cpu().numpy()

        try:
            run = getattr(integrate, self.method)(
                function,
                0.0,
                x.reshape(-1).double().cpu().numpy(),
                drift.length,
                rtol=self.rtol,
                atol=self.atol,
            )
            while run.status == "running":
                run.step()
                drift.accepted = (float(run.t), tensor(run.y))
        except (BudgetSpentError, _NotFiniteError):
            return drift.result(_shape(x))
        return drift.result(_shape(x), failed=run.status == "failed")


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
        """Where the method comes from."""
        return f"torchsde ({self.method})"

    @property
    def stages(self) -> int:
        """Evaluations in one step; reversible Heun has one more in its first."""
        return TORCHSDE[self.method][1]

    def evaluations(self, steps: int, finish: bool = True) -> int:
        """Model evaluations of a run."""
        first = int(self.method == "reversible_heun" and steps > finish)
        return super().evaluations(steps, finish) + first

    def init(self, problem: Problem, times: Tensor) -> None:
        """Fail early where the library is missing."""
        _require("torchsde")

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """One step of the library."""
        if isinstance(problem, ReverseProcess) and problem.eta > 0 and float(problem.path(t).alpha) == 0:
            return (
                ancestral_step(problem, x, problem.denoise(x, t), t, s, noise.increment(x, t, s)),
                s,
                None,
            )
        equation = _SDE(_Drift(problem, x, t, s, check=False), x, TORCHSDE[self.method][0])
        if state is not None:
            # Reversible Heun carries its slope; the check of shapes below then costs no evaluation.
            equation.seen.append((equation.y, 0.0, state[0]))
        ends = torch.tensor([0.0, equation.drift.length], dtype=torch.float64, device=x.device)
        states, extra = _require("torchsde").sdeint(
            equation,
            equation.y,
            ends,
            bm=_increments(x, t, s, noise, self.method),
            method=self.method,
            dt=equation.drift.length,
            extra=True,
            extra_solver_state=state,
        )
        return states[-1].reshape(x.shape), s, extra or None


class _SDE:
    """An interval as torchsde wants it: state (B, D), time increasing, diagonal noise."""

    noise_type = "diagonal"

    def __init__(self, drift: _Drift, x: Tensor, sde_type: str) -> None:
        self.drift, self.shape, self.sde_type = drift, x.shape, sde_type
        self.y = x.flatten(1)
        # The library asks for the same slopes again, to check shapes and between stages.
        self.seen: list[tuple[Tensor, float, Tensor]] = []

    def f(self, r: Any, y: Tensor) -> Tensor:
        """The drift."""
        for at, time, slope in self.seen:
            if at is y and time == float(r):
                return slope
        slope = self.drift(r, y.reshape(self.shape)).flatten(1)
        self.seen.append((y, float(r), slope))
        return slope

    def g(self, r: Any, y: Tensor) -> Tensor:
        """The diffusion."""
        x = y.reshape(self.shape)
        g = self.drift.problem.diffusion(x, self.drift.time(float(r)))
        return g.to(x).expand(self.shape).flatten(1)


def _increments(x: Tensor, t: Tensor, s: Tensor, noise: Noise, method: str) -> Any:
    """The Brownian motion of one step, as torchsde asks for it."""

    class Increments(_require("torchsde").BaseBrownian):  # type: ignore[misc]
        shape = (len(x), x[0].numel())
        dtype, device = x.dtype, x.device
        levy_area_approximation = "space-time" if method == "srk" else "none"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            h = abs(float(s) - float(t))
            w = noise.increment(x, t, s).flatten(1) * h**0.5
            if not return_U:
                return w
            # U = Int (W_r - W_0) dr given W: mean h W / 2, variance h^3 / 12.
            extra = noise.independent(x, t).flatten(1)
            return w, h / 2 * w + (h**3 / 12) ** 0.5 * extra

        def __repr__(self) -> str:
            return "Increments()"

    return Increments()


def _shape(x: Tensor) -> tuple[int, ...]:
    return (len(x), *(1,) * (x.ndim - 1))
