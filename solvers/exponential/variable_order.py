r"""An exponential Adams method whose order depends on the sample.

One more interpolation node reduces the error where the values are smooth on the scale of the steps, and increases it
where they are not: values of a network are rough, and differences of rough values grow with their order. The
differences of the method's own predictions show both. With x^(p) the prediction from the last p values, and for each
sample

    e_p = rms(x^(p) - x^(p-1)),      r_p = min(e_p / e_{p-1}, sqrt(e_p / e_{p-2})),

the differences of a smooth function fall and those of noise rise, and the step is the last of

    y^(p) = (1 - g_p) y^(p-1) + g_p x^(p),      g_p = (1 - r_p) / (1 - 1/2), kept within [0, 1],

which start from the fewest values, y^(k) = x^(k): g_p = 1 while the differences halve, and g_p = 0 where they do not
fall. (A single difference can be small by chance where it changes sign, and e_p then seems large: hence two.) The
corrector of the step keeps its g_p. As steps shrink r_p does too, and the order is that of the method with most values.
Codes for smooth equations choose their order by the same comparison (Shampine & Gordon 1975, chapter 7); here every
sample has its own g_p, and they are continuous.

The step to zero noise is x_0 = D_N. With ``extrapolated`` it is the limit of the last values of D
(``solvers.exponential.zero_noise``), and the last state is corrected like the others: D_N = D(x_N) moves by as much as
x_N / alpha_N, since D follows the state where the data are wide against the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exact_step import ancestral_step
from solvers.exponential.adams import ExponentialAdams, MultistepState, PlannedStep, Update, combine
from solvers.exponential.zero_noise import ZeroNoise
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import LocalErrorEstimate, Solver, sum_of

# Differences that fall to this share are those of a smooth function; those that do not fall are not.
_SMOOTH, _ROUGH = 0.5, 1.0

_Weights = tuple[float, ...]


class OrderChoice(NamedTuple):
    """Differences of a step between methods with one value more and less, as weights of the values.

    Attributes:
        predictors: weights of x^(p) - x^(p-1), for each p from two below the first choice up.
        correctors: the same of the corrected ones, from the first choice up.
    """

    predictors: tuple[_Weights, ...]
    correctors: tuple[_Weights, ...]


class VariableOrderRun(NamedTuple):
    """The history, the choices of all steps, the shares of the differences in the last step where it chose, the end."""

    history: MultistepState
    choices: tuple[OrderChoice | None, ...]
    shares: tuple[Tensor, ...] | None
    end: ZeroNoise | None


@dataclass(frozen=True)
class VariableOrder(Solver):
    """Exponential Adams with up to p values, chosen by the differences of each sample.

    Args:
        larger: the method with p values, deterministic and with p at least 4.
        fewest: k, the number of values that the choice starts from, from 2 to p - 1; None is p - 1.
        extrapolated: whether the last step extrapolates D to zero noise, from 3 evaluations on.

    Raises:
        ValueError: another method, such as one that does not interpolate D where ``extrapolated``, or another k.

    Where D does not change, all methods are exact:

    >>> from solvers import ReverseProcess, Scales, solve
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> dirac = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), straight)
    >>> solver = VariableOrder(ExponentialAdams(5, variable="time", corrector=True))
    >>> solver.order, solve(dirac, torch.randn(2, 1), solver=solver, nfe=12).x.flatten().tolist()
    (6, [3.0, 3.0])
    """

    larger: ExponentialAdams
    fewest: int | None = None
    extrapolated: bool = False

    needs = (ReverseProcess,)
    data_independent = False
    source = "Shampine & Gordon 1975, chapter 7, on Zhao et al. 2023"

    def __post_init__(self) -> None:
        p = self.larger.predictor_order
        if self.larger.sde or p < 4 or self.larger.lower_order_final:
            raise InputError(
                "the order is chosen between p and fewer values of a deterministic method with p >= 4 and without "
                f"lower_order_final; got {self.larger}"
            )
        if self.fewest is not None and not 2 <= self.fewest < p:
            raise InputError(f"fewest is from 2 to p - 1 = {p - 1}; got {self.fewest}")
        if self.extrapolated and self.larger.form != "data":
            raise InputError(f"only a method with form='data' is extrapolated to zero noise; got {self.larger.form!r}")

    @property
    def owns_last_step(self) -> bool:
        """Whether it extrapolates in the step to zero noise."""
        return self.extrapolated

    @property
    def smaller(self) -> ExponentialAdams:
        """The method with k values."""
        fewest = self.larger.predictor_order - 1 if self.fewest is None else self.fewest
        return replace(self.larger, predictor_order=fewest)

    @property
    def order(self) -> int:
        """The value of the larger method."""
        return self.larger.order

    @property
    def uses_corrector(self) -> bool:
        """Whether it has the corrector."""
        return self.larger.uses_corrector

    @property
    def grid(self) -> str:
        """The value of the larger method."""
        return self.larger.grid

    def init(self, problem: ReverseProcess, times: Tensor) -> VariableOrderRun:
        """Plan the whole grid; plans are cached."""
        choices = _choices(self.larger, self.smaller.predictor_order, problem.path, tuple(times.tolist()))
        end = _end(problem.path, tuple(times.tolist())) if self.extrapolated else None
        return VariableOrderRun(self.smaller.init(problem, times), choices, None, end)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: VariableOrderRun, noise: Noise
    ) -> tuple[Tensor, Tensor, VariableOrderRun]:
        """Evaluate at t, correct x there with the shares of the step before, and predict x at s."""
        history, choices, shares, end = state
        if history.number == len(history.plan):  # to zero noise
            x0 = problem.denoise(x, t)
            if end is None:
                return x0, s, state
            values = (x0, *history.values)
            shift = (_corrected(state, x, values) - x) / float(problem.path(t).alpha)
            return end(values).add_(shift), s, state
        step, i = history.planned(t, s), history.number
        x0 = problem.denoise(x, t)
        if step.order == 0:
            return ancestral_step(problem, x, x0, t, s, None), s, VariableOrderRun(history.after(), choices, None, end)
        values = (step.interpolated(x0, x), *history.values)
        x = _corrected(state, x, values)
        values = values[: self.larger.predictor_order]
        out, shares = combine(step.predictor, x, values), None
        if choice := choices[i]:
            differences = [sum_of(weights, values) for weights in choice.predictors]
            shares = _shares(differences, len(choice.correctors))
            for share, more in zip(shares, differences[-len(shares) :], strict=True):
                out.add_(share * more)
        return out, s, VariableOrderRun(history.after(values, x), choices, shares, end)

    def estimate(
        self,
        problem: ReverseProcess,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        before: VariableOrderRun,
        after: VariableOrderRun,
    ) -> LocalErrorEstimate | None:
        """RMS of corrected minus predicted x for the step before; None without corrector."""
        return self.smaller.estimate(problem, x, t, s, before.history, after.history) if self.uses_corrector else None


def _corrected(state: VariableOrderRun, x: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """x by the step before, repeated with the value at its end and with its shares."""
    history, i = state.history, state.history.number
    if history.base is None or not (redo := history.plan[i - 1].corrector):
        return x
    x = combine(redo, history.base, values)
    if state.shares is not None and (last := state.choices[i - 1]):
        for share, weights in zip(state.shares, last.correctors, strict=True):
            x.add_(share * sum_of(weights, values))
    return x


def _shares(differences: Sequence[Tensor], choices: int) -> tuple[Tensor, ...]:
    """The shares of the last differences in y^(p), of 1 - (1 - g_q) ... (1 - g_p) for each q, (B, 1, ..., 1) like x."""
    first = differences[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    norms = [torch.linalg.vector_norm(d.flatten(1), dim=1, dtype=dtype) for d in differences]
    # Where none makes any, all methods are exact.
    e = torch.stack(norms).clamp_min_(torch.finfo(dtype).tiny)
    ratio = e[1:] / e[:-1]
    ratio[1:] = torch.minimum(ratio[1:], (e[2:] / e[:-2]).sqrt_())
    shares = [*((_ROUGH - ratio[-choices:]) / (_ROUGH - _SMOOTH)).clamp_(0, 1)]
    for i in reversed(range(choices - 1)):
        shares[i] = shares[i] + (1 - shares[i]) * shares[i + 1]
    return tuple(share.to(first.dtype).reshape(-1, *[1] * (first.ndim - 1)) for share in shares)


@lru_cache(maxsize=128)
def _end(path: Path, times: tuple[float, ...]) -> ZeroNoise | None:
    """From the noise levels of the last three evaluations; None for fewer, or where a run ends above zero noise."""
    alpha, sigma = path(torch.tensor(times[-4:], dtype=torch.float64, device="cpu"))[:2]
    if len(times) < 4 or float(sigma[-1]) > 0:
        return None
    return ZeroNoise.of((sigma / alpha)[:-1].tolist())


@lru_cache(maxsize=128)
def _choices(
    larger: ExponentialAdams, fewest: int, path: Path, times: tuple[float, ...]
) -> tuple[OrderChoice | None, ...]:
    """One entry for each planned step; None for steps without more than the fewest values."""
    lowest = max(fewest - 2, 1)
    orders = range(lowest, larger.predictor_order + 1)
    plans = [replace(larger, predictor_order=q).plan(path, 0.0, times) for q in orders]
    return tuple(
        _choice(steps[: steps[-1].order + 1 - lowest], fewest) if steps[-1].order > fewest else None
        for steps in zip(*plans, strict=True)
    )


def _choice(steps: Sequence[PlannedStep], fewest: int) -> OrderChoice:
    """From the steps of all numbers of values, the fewest first."""
    apart = [*pairwise(steps)]
    correctors = (
        _difference(b.corrector, a.corrector) if a.corrector and b.corrector else ()
        for a, b in apart
        if b.order > fewest
    )
    return OrderChoice(tuple(_difference(b.predictor, a.predictor) for a, b in apart), tuple(correctors))


def _difference(a: Update, b: Update) -> _Weights:
    return tuple(p - q for p, q in zip_longest(a.weights, b.weights, fillvalue=0.0))
