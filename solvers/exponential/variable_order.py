r"""An exponential Adams method whose order depends on the sample.

One more interpolation node reduces the error where the values are smooth on the scale of the steps, and increases it
where they are not: values of a network are rough, and differences of rough values grow with their order. The
differences of the method's own predictions show both. With x^(p) the prediction from the last p values, and for each
sample

    e_p = rms(x^(p) - x^(p-1)),      r = min(e_p / e_{p-1}, sqrt(e_p / e_{p-2})),

the differences of a smooth function fall and those of noise rise, and the step is

    x = (1 - g) x^(p-1) + g x^(p),      g = (1 - r) / (1 - 1/2), kept within [0, 1]:

g = 1 while the differences halve, and g = 0 where they do not fall. (A single difference can be small by chance where
it changes sign, and e_p then seems large: hence two.) The corrector of the step keeps its g. As
steps shrink r does too, and the order is that of the larger method. Codes for smooth equations choose their order by
the same comparison (Shampine & Gordon 1975, chapter 7); here every sample has its own g, and g is continuous.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.exact_step import ancestral_step
from solvers.exponential.adams import ExponentialAdams, MultistepState, PlannedStep, Update, combine
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import LocalErrorEstimate, Solver, sum_of

# Differences that fall to this share are those of a smooth function; those that do not fall are not.
_SMOOTH, _ROUGH = 0.5, 1.0

_Weights = tuple[float, ...]


class OrderChoice(NamedTuple):
    """Difference of a step of the larger and the smaller method, as weights of the values.

    Attributes:
        predictor: weights of x^(p) - x^(p-1).
        smaller: weights of x^(p-1) - x^(p-2).
        least: weights of x^(p-2) - x^(p-3).
        corrector: weights of the difference of the corrected ones.
    """

    predictor: _Weights
    smaller: _Weights
    least: _Weights
    corrector: _Weights


class VariableOrderRun(NamedTuple):
    """The history, the choices of all steps, and g of the last step where there was one."""

    history: MultistepState
    choices: tuple[OrderChoice | None, ...]
    share: Tensor | None


@dataclass(frozen=True)
class VariableOrder(Solver):
    """Exponential Adams with p values, p - 1 values or a mixture, chosen by the differences of each sample.

    Args:
        larger: the method with p values, deterministic and with p at least 4.

    Raises:
        ValueError: another method.

    Where D does not change, all methods are exact:

    >>> from solvers import ReverseProcess, Scales, solve
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> dirac = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), straight)
    >>> solver = VariableOrder(ExponentialAdams(5, variable="time", corrector=True))
    >>> solver.order, solve(dirac, torch.randn(2, 1), solver=solver, nfe=12).x.flatten().tolist()
    (6, [3.0, 3.0])
    """

    larger: ExponentialAdams

    needs = (ReverseProcess,)
    data_independent = False
    source = "Shampine & Gordon 1975, chapter 7, on Zhao et al. 2023"

    def __post_init__(self) -> None:
        if self.larger.sde or self.larger.predictor_order < 4 or self.larger.lower_order_final:
            raise InputError(
                "the order is chosen between p and p - 1 values of a deterministic method with p >= 4 and without "
                f"lower_order_final; got {self.larger}"
            )

    @property
    def smaller(self) -> ExponentialAdams:
        """The method with p - 1 values."""
        return replace(self.larger, predictor_order=self.larger.predictor_order - 1)

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
        choices = _choices(self.larger, problem.path, tuple(times.tolist()))
        return VariableOrderRun(self.smaller.init(problem, times), choices, None)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: VariableOrderRun, noise: Noise
    ) -> tuple[Tensor, Tensor, VariableOrderRun]:
        """Evaluate at t, correct x there with the g of the step before, and predict x at s."""
        history, choices, share = state
        step, i = history.planned(t, s), history.number
        x0 = problem.denoise(x, t)
        if step.order == 0:
            return ancestral_step(problem, x, x0, t, s, None), s, VariableOrderRun(history.after(), choices, None)
        values = (step.interpolated(x0, x), *history.values)
        if history.base is not None and (redo := history.plan[i - 1].corrector):
            x = combine(redo, history.base, values)
            if share is not None and (last := choices[i - 1]):
                x.add_(share * sum_of(last.corrector, values))
        values = values[: self.larger.predictor_order]
        out, share = combine(step.predictor, x, values), None
        if choice := choices[i]:
            more = sum_of(choice.predictor, values)
            share = _share(more, sum_of(choice.smaller, values), sum_of(choice.least, values))
            out.add_(share * more)
        return out, s, VariableOrderRun(history.after(values, x), choices, share)

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


def _share(*differences: Tensor) -> Tensor:
    """G of each sample, (B, 1, ..., 1) like x: from the differences that p, p - 1 and p - 2 values make."""
    first = differences[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    norms = (torch.linalg.vector_norm(d.flatten(1), dim=1, dtype=dtype) for d in differences)
    # Where none makes any, all methods are exact.
    e, once, twice = (norm.clamp_min_(torch.finfo(dtype).tiny) for norm in norms)
    ratio = torch.minimum(e / once, (e / twice).sqrt_())
    share = ((_ROUGH - ratio) / (_ROUGH - _SMOOTH)).clamp_(0, 1)
    return share.to(first.dtype).reshape(-1, *[1] * (first.ndim - 1))


@lru_cache(maxsize=128)
def _choices(larger: ExponentialAdams, path: Path, times: tuple[float, ...]) -> tuple[OrderChoice | None, ...]:
    """One entry for each planned step; None for steps with fewer than p values."""
    p = larger.predictor_order
    plans = [replace(larger, predictor_order=q).plan(path, 0.0, times) for q in range(p, p - 4, -1)]
    return tuple(_choice(*steps) if steps[0].order == p else None for steps in zip(*plans, strict=True))


def _choice(*steps: PlannedStep) -> OrderChoice:
    """From the steps of p, p - 1, p - 2 and p - 3 values."""
    larger, smaller = (step.corrector for step in steps[:2])
    corrector = _difference(larger, smaller) if larger and smaller else ()
    predictor, once, twice = (_difference(a.predictor, b.predictor) for a, b in pairwise(steps))
    return OrderChoice(predictor, once, twice, corrector)


def _difference(a: Update, b: Update) -> _Weights:
    return tuple(p - q for p, q in zip_longest(a.weights, b.weights, fillvalue=0.0))
