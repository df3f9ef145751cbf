r"""Denoisers of azula as score models.

azula's denoisers return a posterior whose ``mean`` is E[x_0 | x_t = x], at a time t in [0, 1] of a schedule that has
alpha(t) and sigma(t), 0 at the data and 1 at the noise as here. Its schedules end at sigma(0) > 0: so do samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion.interop.foreign import ForeignModel, ForeignNetwork
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import SDE
from solvers.errors import InputTypeError


@dataclass(frozen=True, eq=False)
class ScheduledPath(SDE):
    """The path of a schedule t -> (alpha, sigma)."""

    schedule: Any

    def alpha(self, t: Tensor) -> Tensor:
        """Alpha of the schedule."""
        found: Tensor = self.schedule(t)[0]
        return found.expand_as(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Sigma of the schedule."""
        found: Tensor = self.schedule(t)[1]
        return found.expand_as(t)


class PosteriorNetwork(ForeignNetwork):
    """A network that returns a posterior; its mean is taken."""

    def call(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """The posterior at (x, t)."""
        return self.network(x, label, **condition)


def from_azula(denoiser: Any, shape: tuple[int, ...] | None = None) -> ScoreModel:
    """The score model of a denoiser of azula, on the path of its schedule.

    Args:
        denoiser: with ``schedule``.
        shape: shape of one sample.

    Raises:
        TypeError: no schedule.
    """
    schedule = getattr(denoiser, "schedule", None)
    if schedule is None:
        raise InputTypeError(f"a denoiser of azula has a schedule; {type(denoiser).__name__} has none")
    return ForeignModel(PosteriorNetwork(denoiser), ScheduledPath(schedule), "data", shape)
