r"""Consistency training and distillation (Song, Dhariwal, Chen & Sutskever 2023; Song & Dhariwal 2024).

The student f(x_t, t) maps every point of a path of the probability flow to the path's end. It is trained on pairs
of neighbouring points,

    L = E  w  ( sqrt( ||f(x_t, t) - f^-(x_s, s)||^2 + c^2 ) - c ),    c = 0.00054 sqrt(d),    w = 1 / (rho_t - rho_s),

where f^- takes no gradient, rho = sigma / alpha, and s lies one N-th of the Karras grid of noise levels below t:
rho_s^(1/7) = rho_t^(1/7) - (rho_max^(1/7) - rho_min^(1/7)) / N; below rho_min it is 0, where f is the identity for a
network that predicts the velocity or is preconditioned.

- distillation: x_s comes from x_t by a step of Heun's method on the flow of a teacher;
- training: x_s = alpha_s x_0 + sigma_s eps with the noise of x_t, and no teacher.

N doubles during training from ``first`` to ``last`` (Song & Dhariwal 2024, section 3.4).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.distillation.progressive import check_teacher
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde.base import per_sample
from sde_diffusion.training.losses import Objective
from solvers.errors import InputError

RHO_MIN, RHO_MAX, POWER = 0.002, 80.0, 7
HUBER = 0.00054
SAFE = ("velocity", "edm")  # at t = 0 their x_0 is x


def levels_between(step: int, steps: int, first: int, last: int) -> int:
    """N at a step: it doubles at equal intervals, from ``first`` to ``last``.

    >>> [levels_between(k, 100, 10, 80) for k in (1, 26, 51, 76, 100)]
    [10, 20, 40, 80, 80]
    """
    doublings = math.ceil(math.log2(last / first)) + 1
    return min(first * 2 ** ((step - 1) * doublings // steps), last)


class ConsistencyLoss(Objective):
    """The loss of a consistency model.

    Args:
        model: the student; it predicts "velocity" or "edm".
        network: module that replaces its network, as in ``LossModule``.
        teacher: a score model on the same process, for distillation; None for consistency training.
        steps: number of training steps over which N rises.
        first: N of the first step.
        last: N of the last step.
        teacher_steps: steps of Heun's method from x_t to x_s.
        huber: c / sqrt(d).

    Raises:
        ValueError: another parametrization or process, or a range of N that is none.
    """

    def __init__(
        self,
        model: ScoreModel,
        network: nn.Module,
        teacher: ScoreModel | None,
        steps: int,
        first: int = 10,
        last: int = 160,
        teacher_steps: int = 1,
        huber: float = HUBER,
    ) -> None:
        super().__init__(model, network)
        if model.predicts not in SAFE:
            raise InputError(
                f"a consistency model is the identity at t = 0: it predicts {' or '.join(SAFE)}; got {model.predicts}"
            )
        if not 1 <= first <= last:
            raise InputError(f"the number of noise levels rises from first to last; got {first} and {last}")
        if teacher is not None:
            check_teacher(model, teacher)
        self.teacher = teacher
        self.steps, self.first, self.last = steps, first, last
        self.teacher_steps, self.huber = teacher_steps, huber
        self.levels = first

    def begin(self, step: int) -> None:
        """Set N for a step."""
        self.levels = levels_between(step, self.steps, self.first, self.last)

    def earlier(self, t: Tensor, share: float = 1.0) -> Tensor:
        """The time s of each t, or one a share of the way to it; float64 like t, and 0 below the lowest level."""
        sde = self.model.sde
        rho = torch.exp(-sde.half_log_snr(t))
        lowest = RHO_MIN ** (1 / POWER)
        root = rho ** (1 / POWER) - share * (RHO_MAX ** (1 / POWER) - lowest) / self.levels
        s = sde.time(-POWER * torch.log(root.clamp_min(lowest)))
        return torch.where(root <= lowest, torch.zeros_like(t), torch.minimum(s, t))

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of each sample; see ``LossModule.forward``."""
        given, sde = condition or {}, self.model.sde
        t = t.to(torch.float64)
        s = self.earlier(t)
        x = sde.perturb(x0, t, eps)
        with torch.no_grad():
            y = sde.perturb(x0, s, eps) if self.teacher is None else self._along_flow(x, t, given)
            end = self.model.denoise(y, s, **given)
            at_data = per_sample((s == 0).to(x.dtype), x)
            end = torch.lerp(end, y, at_data)
        error = (self.model.denoise(x, t, **given) - end).float().flatten(1)
        c = self.huber * math.sqrt(error.shape[1])
        rho_t, rho_s = torch.exp(-sde.half_log_snr(t)), torch.where(s > 0, torch.exp(-sde.half_log_snr(s)), 0.0)
        weight = (1 / (rho_t - rho_s)).float()
        square = error.square().sum(1)
        losses = weight * square / ((square + c * c).sqrt() + c)  # sqrt(.) - c, without the cancellation
        return losses.detach(), losses * factor.float()

    def _along_flow(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        """x_s on the teacher's flow, by ``teacher_steps`` steps."""
        shares = [k / self.teacher_steps for k in range(1, self.teacher_steps + 1)]
        for now, then in pairwise([t, *(self.earlier(t, share) for share in shares)]):
            x = torch.where(per_sample(now == 0, x).bool(), x, self._heun(x, now, then, given))
        return x

    def _heun(self, x: Tensor, t: Tensor, s: Tensor, given: dict[str, Any]) -> Tensor:
        """One step of Heun's method in rho = sigma / alpha, of y = x / alpha with dy / drho = (y - D) / rho."""
        assert self.teacher is not None
        sde = self.model.sde
        (at, st), (a_s, ss) = (tuple(per_sample(c, x) for c in sde.marginal(u)) for u in (t, s))
        y, rho, rho_s = x / at, st / at, ss / a_s
        slope = (y - self.teacher.denoise(x, t, **given)) / rho
        end = y + (rho_s - rho) * slope
        at_data = rho_s == 0
        safe = torch.where(at_data, torch.ones_like(rho_s), rho_s)
        # At rho_s = 0 the step of Euler is D itself, and the second slope has no value.
        second = (end - self.teacher.denoise(a_s * end, torch.where(s > 0, s, t), **given)) / safe
        heun = y + (rho_s - rho) * (slope + second) / 2
        return a_s * torch.where(at_data, end, heun)
