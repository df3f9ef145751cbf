"""The work of the app, without its widgets: samples of one model as images, two solvers compared, the path of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor

from sde_diffusion.data.labels import class_index
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.film import Reverse, film_frames, picture_of
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.job import settings_for
from sde_diffusion.sampling.reference_solution import rms
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sampling.shown.reverse_states import reverse_run
from sde_diffusion.storage.checkpoint import StoredModel, load
from solvers import GRIDS, SOLVERS
from solvers.errors import InputError, require_whole

NO_LABEL, ALL_LABELS, OWN_GRID, OWN_SOLVER = "none", "all, in turn", "the solver's own", "the model's own"
MOST = 4096  # samples at once


@dataclass(frozen=True)
class Choice:
    """The settings of a sampling run that the app offers.

    Attributes:
        solver: a name in ``SOLVERS``, or ``OWN_SOLVER``, that of a distilled model.
        nfe: network evaluations for each sample.
        grid: a name in ``GRIDS``, or ``OWN_GRID``.
        label: the name or number of a class, ``NO_LABEL`` or ``ALL_LABELS``.
        guidance: scale of classifier-free guidance.
        seed: seed of the initial noise.
        n: number of samples.
    """

    solver: str = "pf-ode"
    nfe: int = 20
    grid: str = OWN_GRID
    label: str = NO_LABEL
    guidance: float = 1.0
    seed: int = 0
    n: int = 16


class Studio:
    """A loaded model and the samples, figures and paths that the app draws from it.

    Args:
        stored: from ``storage.locate.find_model``, or a model of one's own.
        device: a device of torch.

    Raises:
        ValueError: the model does not say the shape of a sample.
    """

    def __init__(self, stored: StoredModel, device: str = "cpu") -> None:
        self.stored = stored
        self.model: ScoreModel = load(stored, device=device).eval()
        if self.model.shape is None:
            raise InputError(f"{stored.path} does not say the shape of a sample")

    @property
    def solvers(self) -> list[str]:
        """The solvers with fixed steps, whose paths can be shown; that of a distilled model first."""
        own = [] if self.model.sampler is None else [OWN_SOLVER]
        return own + [name for name, solver in SOLVERS.items() if not solver.adaptive]

    @property
    def first(self) -> Choice:
        """What the app offers first: the default of ``sample``."""
        own = self.model.sampler
        return Choice() if own is None else Choice(OWN_SOLVER, own.usual_nfe)

    @property
    def grids(self) -> list[str]:
        """The time grids, the solver's own first."""
        return [OWN_GRID, *GRIDS]

    @cached_property
    def labels(self) -> list[str]:
        """The classes by name, if the model takes labels; none and all first."""
        settings = (self.stored.model["network"] or {}).get("settings") or {}
        classes = settings.get("classes") or (getattr(self.model.network, "settings", None) or {}).get("classes")
        if not classes:
            return [NO_LABEL]
        names = self.stored.data.get("class_names") or [str(k) for k in range(classes)]
        return [NO_LABEL, ALL_LABELS, *names]

    def run(self, choice: Choice) -> tuple[Reverse, Tensor, str]:
        """The states of a run, its network evaluations, and a line that says what was drawn in what time.

        Raises:
            ValueError: settings out of range or in conflict, see the message.
        """
        require_whole("n", choice.n, 1, MOST)
        require_whole("NFE", choice.nfe, 1, 10_000)
        labels = self._labels(choice.label)
        rule = GuidanceSettings(choice.guidance)
        model, condition = guided_model(self.model, choice.n, labels, rule)
        grid = None if choice.grid == OWN_GRID else choice.grid
        begin = time.perf_counter()
        solver = None if choice.solver == OWN_SOLVER else choice.solver
        settings = settings_for(self.stored, SamplingSettings(solver, choice.nfe, grid=grid, seed=choice.seed))
        out, shown = reverse_run(model, settings, choice.n, condition)
        lost = sum(status != "ok" for status in out.status)
        line = (
            f"{choice.n} samples by {settings.called}, {int(out.nfe.max())} evaluations each, in "
            f"{time.perf_counter() - begin:.1f} s with the denoised states"
        )
        return shown, out.nfe, f"{line}; {lost} of them did not end well" if lost else line

    def _labels(self, label: str) -> list[int] | None:
        if label == NO_LABEL:
            return None
        count = len(self.labels) - 2
        if label == ALL_LABELS:
            return list(range(count))
        return [class_index(label, self.stored.data.get("class_names"), count)]

    def picture(self, shown: Reverse, k: int = -1) -> Image.Image:
        """The samples at the k-th time of a run, at its end by default."""
        reach = 1.1 * float(shown.denoised[-1].abs().max()) or 1.0
        return picture_of(shown.states[k], reach)

    def frames(self, shown: Reverse) -> list[Image.Image]:
        """x_t beside E[x_0 | x_t] at each time of a run."""
        return film_frames(*shown)

    def compared(self, first: Choice, second: Choice) -> tuple[Image.Image, Image.Image, str]:
        """The samples of two choices, and how far they are apart, if their noise is the same."""
        one, _, line = self.run(first)
        two, _, other = self.run(second)
        text = f"{line}\n\n{other}"
        if (first.seed, first.n) == (second.seed, second.n):
            gap = rms(one.states[-1] - two.states[-1])
            text += f"\n\ndistance of the samples from the same noise: RMS {float(gap.mean()):.4g} on average, "
            text += f"{float(gap.max()):.4g} at most"
        return self.picture(one), self.picture(two), text


def choice_of(*values: Any) -> Choice:
    """A choice from the values of the widgets, in the order of its fields; numbers of the browser are floats.

    >>> choice_of("ddim", 10.0, OWN_GRID, NO_LABEL, 1.5, 3.0, 4.0)
    Choice(solver='ddim', nfe=10, grid="the solver's own", label='none', guidance=1.5, seed=3, n=4)
    """
    solver, nfe, grid, label, guidance, seed, n = values
    for name, value in (("NFE", nfe), ("seed", seed), ("number of samples", n)):
        if value is None or int(value) != value:
            raise InputError(f"{name} is a whole number; got {value}")
    return Choice(solver, int(nfe), grid, label, float(guidance), int(seed), int(n))


def step_of(count: int, share: float) -> int:
    """The number of the time, of so many, at a share of the way from 0 at the noise to 1 at the data.

    >>> step_of(5, 0.5)
    2
    """
    return round(share * (count - 1))
