r"""Progressive distillation (Salimans & Ho 2022): one step of DDIM learns two steps of its teacher.

The student has half the steps of the teacher. From x_t at one of its times, two DDIM steps of the teacher lead to
x_s; the D of a single DDIM step from x_t to the same x_s is

    x~ = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),

and the student minimises (1 + alpha_t^2 / sigma_t^2) ||D_student(x_t, t) - x~||^2 / d, the error of the velocity. At
s = 0 the D of the step is x_s itself. Halving again and again leads from many steps to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import SDE
from sde_diffusion.sde.base import per_sample
from sde_diffusion.training.losses import Objective
from solvers.errors import InputError
from solvers.fitted.table import Row, Table


class _Marginal(NamedTuple):
    alpha: Tensor
    sigma: Tensor


def check_teacher(student: ScoreModel, teacher: ScoreModel) -> None:
    """Refuse a teacher whose x_t is not that of the student.

    Raises:
        ValueError: another process or other units of the data.
    """
    if teacher.sde != student.sde:
        raise InputError(
            f"the teacher is a model of {teacher.sde}, the student of {student.sde}; give both one process"
        )
    if teacher.units.entry() != student.units.entry():
        raise InputError("the teacher has other units of the data than the student; start the student from the teacher")


def ddim_table(sde: SDE, times: Sequence[float]) -> Table:
    """DDIM on given times, as a solver for just these.

    Args:
        sde: the process.
        times: from 1 to 0.

    >>> from sde_diffusion.sde import VPSDE
    >>> ddim_table(VPSDE(), [1.0, 0.5, 0.0]).rows[-1]
    Row(decay=0.0, weights=(1.0,))
    """
    alpha, sigma = (c.tolist() for c in sde.marginal(torch.tensor(times, dtype=torch.float64, device="cpu")))
    rows = []
    for i in range(len(times) - 1):
        decay = sigma[i + 1] / sigma[i]
        rows.append(Row(decay, (alpha[i + 1] - decay * alpha[i],)))
    return Table(tuple(times), tuple(rows), "Salimans & Ho 2022").on(sde)


class ProgressiveLoss(Objective):
    """The loss of a student with half the steps of its teacher.

    Args:
        model: the student.
        network: module that replaces its network, as in ``LossModule``.
        teacher: any model on the same process; it is not changed.
        times: times of the teacher's DDIM, from 1 to 0; every second is one of the student's.

    Raises:
        ValueError: another process, or an odd number of steps.
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor

    def __init__(self, model: ScoreModel, network: nn.Module, teacher: ScoreModel, times: Sequence[float]) -> None:
        super().__init__(model, network)
        check_teacher(model, teacher)
        if len(times) % 2 == 0 or len(times) < 3:
            raise InputError(f"a student takes half the steps of its teacher, so these are even; got {len(times) - 1}")
        self.teacher = teacher
        alpha, sigma = model.sde.marginal(torch.tensor(times, dtype=torch.float64, device="cpu"))
        self.register_buffer("times", torch.tensor(times, dtype=torch.float64), persistent=False)
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)

    def forward(
        self, x0: Tensor, t: Tensor, eps: Tensor, factor: Tensor, condition: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of each sample at the student's time with the rank of t; see ``LossModule.forward``."""
        given = condition or {}
        steps = (len(self.times) - 1) // 2
        k = 2 * ((1 - t) * steps).long().clamp(0, steps - 1)
        start, end = self._at(k, x0), self._at(k + 2, x0)
        x = start.alpha * x0 + start.sigma * eps
        with torch.no_grad():
            y = x
            for j in (0, 1):
                now, then = self._at(k + j, x0), self._at(k + j + 1, x0)
                decay = then.sigma / now.sigma
                y = decay * y + (then.alpha - decay * now.alpha) * self.teacher.denoise(y, self.times[k + j], **given)
            decay = end.sigma / start.sigma
            target = (y - decay * x) / (end.alpha - decay * start.alpha)
        error = (self.model.denoise(x, self.times[k], **given) - target).float()
        weight = 1 + (self.alpha[k] / self.sigma[k]).square()
        losses = weight.float() * error.square().flatten(1).mean(1)
        return losses.detach(), losses

    def _at(self, k: Tensor, x: Tensor) -> _Marginal:
        return _Marginal(per_sample(self.alpha[k], x), per_sample(self.sigma[k], x))
