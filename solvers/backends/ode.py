"""The methods of torchdiffeq and of scipy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.backends.interval import BackendState, Interval, NonFiniteDriftError, check_tolerances, require
from solvers.errors import InputError, choose
from solvers.noise import Noise
from solvers.problem import Problem
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
"""Methods of ``torchdiffeq.odeint``: their order, and evaluations for n steps (None for adaptive methods)."""
_FIXED_GRID = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
SCIPY = {"RK23": 3, "RK45": 5, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}
"""Methods of ``scipy.integrate.solve_ivp`` and their orders."""


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
        check_tolerances(self.rtol, self.atol)
        if self.substeps < 1:
            raise InputError(f"substeps must be at least 1; got {self.substeps}")

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
        """The source of the method."""
        return f"torchdiffeq ({self.method})"

    @property
    def stages(self) -> int:
        """Evaluations in an interval; 1, the least, for the adaptive methods."""
        count = TORCHDIFFEQ[self.method][1]
        return 1 if count is None else count(self.substeps)

    def init(self, problem: Problem, times: Tensor) -> None:
        """Fail early where the library is missing."""
        require("torchdiffeq")

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """The whole interval, or as far as the cap allows."""
        drift = Interval(problem, x, t, s, check=self.adaptive)
        options: dict[str, Any]
        if self.method in _FIXED_GRID:
            options = {"grid_constructor": self._substeps}
        else:
            first = drift.length * min(self.rtol, 1.0) ** (1 / self.order)
            options = {"first_step": first, "max_step": drift.length, "step_t": [drift.length]}
        ends = torch.tensor([0.0, drift.length], dtype=torch.float64, device=x.device)
        try:
            x = require("torchdiffeq").odeint(
                drift, x, ends, rtol=self.rtol, atol=self.atol, method=self.method, options=options
            )[-1]
        except (BudgetSpentError, NonFiniteDriftError):
            return drift.result()
        except AssertionError:
            # The library's message for a step that has become too small.
            return drift.result(failed=True)
        if not self.adaptive:
            return x, s, state
        drift.accepted = (drift.length, x)
        return drift.result()

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
        check_tolerances(self.rtol, self.atol)

    @property
    def order(self) -> int:
        """Order of the method, the highest where it varies."""
        return SCIPY[self.method]

    @property
    def source(self) -> str:
        """The source of the method."""
        return f"scipy.integrate ({self.method})"

    def init(self, problem: Problem, times: Tensor) -> None:
        """Fail early where the library is missing."""
        require("scipy")

    def step(
        self, problem: Problem, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, BackendState]:
        """The whole interval, or as far as the cap allows."""
        integrate = require("scipy.integrate")
        drift = Interval(problem, x, t, s, check=True)
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
        except (BudgetSpentError, NonFiniteDriftError):
            return drift.result()
        return drift.result(failed=run.status == "failed")
