"""Whether a tuned solver draws noise: the best strengths against no noise, on samples that chose neither.

The strengths are found on drawn samples and one half of the real ones (``strengths``). Then, from other initial noise
and against the other half, the solver with noise is compared with the best solver without. Noise is taken where the
95 % interval of the difference is below 0. This is the only use of these samples, so that of solvers for which noise
changes nothing, one in forty gets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion.evaluation.features import Extractor
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.tuned_record import NoiseEntry
from sde_diffusion.storage.tuned_solver import Tuned
from sde_diffusion.tuning.candidates import Found
from sde_diffusion.tuning.effort import Clock
from sde_diffusion.tuning.fit import with_source
from sde_diffusion.tuning.stochastic.law_distance import (
    ENDPOINTS,
    LawDistance,
    extractor_for,
    features_of_samples,
    law_of_real,
    require_enough,
)
from sde_diffusion.tuning.stochastic.strengths import Drawn, best_strengths
from sde_diffusion.tuning.task import FIRST_NOISE, Task, place
from solvers.errors import InputError, SdediffError, require_whole
from solvers.fitted.noisy_table import NoisyTable

FIRST_DRAWN = FIRST_NOISE + 2**30
DETERMINISTIC_SHARE = 0.3  # of a given time, for the solver without noise and its reference solutions
FITS_SHARE = 0.22  # of the time that is left after these, for the fits
_RUNS = 6  # of the solver for each sample, about: those for the choice and for the decision
_MOST = 20_000


@dataclass(frozen=True)
class NoiseChoice:
    """How noise is judged.

    Args:
        extractor: the features.
        law: the distance to given real samples; None for the endpoints of the reference solution.
        samples: number of samples for the decision, of which half as many precede for the choice; with a time limit it
            follows from that.
        seed: seed of the run.
        dimensions: of the features.
    """

    extractor: Extractor
    law: LawDistance | None
    samples: int
    seed: int
    dimensions: int

    def require_endpoints(self, n: int) -> None:
        """Refuse too few reference solutions, which stand for real samples.

        Raises:
            InputError: see above.
        """
        require_enough(self.dimensions, n, self.samples, ENDPOINTS)

    def seconds(self, steps: int, call: float) -> float:
        """The time for a solver, with so many seconds for one call of the network on one sample."""
        return _RUNS * self.samples * steps * call

    def on(self, task: Task) -> LawDistance:
        """The distance, for a task.

        Raises:
            InputError: too few endpoints of the reference solution.
        """
        if self.law is not None:
            return self.law
        to_samples = task.model.to_samples
        ends = torch.cat([task.fit.x0, task.held.x0]).to(task.fit.x1.dtype)
        law = LawDistance(self.extractor, to_samples, features_of_samples(self.extractor, to_samples(ends)), ENDPOINTS)
        require_enough(self.dimensions, len(ends), math.inf, ENDPOINTS)  # their number may follow from the time
        return law

    def decided(self, task: Task, found: Found, best: Tuned, law: LawDistance, clock: Clock) -> Tuned:
        """The tuned solver with noise where that is better beyond doubt, and the record of the decision.

        Unchanged where there is no step that could have noise, or too little time.
        """
        base, tell = found.base, found.reporter.tell
        if base is None or len(base.grid) < 3:
            return best
        n = self.samples
        if clock.seconds is not None:
            call = task.effort.evaluation * task.model.cost
            n = min(int(clock.left() / (_RUNS * (len(base.grid) - 1) * call)), _MOST)
            if n < law.least:
                return best
        tell(1.0, "strengths of noise")
        shape = tuple(task.fit.x1.shape[1:])
        drawn = Drawn(base, task.fit, len(task.fit.x1), shape, law, self.seed, FIRST_DRAWN)
        strengths = best_strengths(drawn, max(n // 2, law.least), lambda: clock.left() > 0)
        tell(1.0, "whether noise is better")
        other = replace(drawn, first=FIRST_DRAWN + n, known={})
        with_noise, without = other.of([strengths], n)[0], other.of_solver(best.table, n)
        gap = law.difference(with_noise, without, testing=True)
        if not math.isfinite(gap.value):
            return best
        entry: NoiseEntry = {
            "strengths": list(strengths),
            "taken": gap.interval[1] < 0,
            "criterion": "frechet",
            "extractor": law.entry(),
            "real": law.real,
            "samples": n,
            "distance": law.distance(with_noise, testing=True),
            "distance_without": law.distance(without, testing=True),
            "difference": [gap.value, *gap.interval],
        }
        made = drawn.table(strengths)
        if entry["taken"]:
            assert isinstance(made, NoisyTable)
            source = f"{with_source(base, 'sdediff tune').source}, noise by features {law.extractor.name}"
            return replace(best, table=replace(made, source=source), noise=entry)
        return replace(best, noise=entry)


def noise_choice(
    model: ScoreModel,
    shape: tuple[int, ...],
    seed: int,
    features: str | Extractor | Callable[[Tensor], Tensor] | None,
    real: Tensor | None,
    samples: int,
    timed: bool,
) -> NoiseChoice:
    """How noise is judged, with everything checked before the work.

    Args:
        model: the model.
        shape: shape of its x.
        seed: seed of the run.
        features: a name, an Extractor or a function; None for those of samples of this shape.
        real: real samples; None for the endpoints of the reference solution.
        samples: number of samples for the decision.
        timed: whether this number follows from the time instead.

    Raises:
        InputError: features, real samples or numbers that are not possible.
    """
    require_whole("law_samples", samples, 1, 2**31)
    extractor = extractor_for(model, shape, features)
    probe = torch.zeros(2, *shape, device=place(model)[0])
    try:
        d = features_of_samples(extractor, model.to_samples(probe)).shape[1]
    except SdediffError:
        raise
    except Exception as error:  # of a function of the caller, or a network inside an extractor
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the features '{extractor.name}' fail on samples of the model: {line}") from error
    law = None
    if real is not None:
        law = law_of_real(model, shape, extractor, real)
        require_enough(d, len(real), math.inf if timed else samples, law.real)
    return NoiseChoice(extractor, law, samples, seed, d)


def words_on_noise(made: Tuned) -> str:
    """Whether a tuned solver draws noise, and the distances that decided.

    >>> from solvers import SOLVERS
    >>> words_on_noise(Tuned(SOLVERS["ddim"], 1, 0.1, 0.1, {}, 0.0))
    'noise: none tried, for want of steps or of time'
    """
    if (found := made.noise) is None:
        return "noise: none tried, for want of steps or of time"
    strengths = ", ".join(f"{eta:g}" for eta in found["strengths"])
    gap, low, high = found["difference"]
    return (
        f"noise: {'taken' if found['taken'] else 'not taken'}, strengths {strengths}; Frechet distance of the features "
        f"{found['extractor']['name']} to {found['real']} {found['distance']:.4g} with it and "
        f"{found['distance_without']:.4g} without, difference {gap:.3g} ({low:.3g} to {high:.3g}, {found['samples']} "
        "samples)"
    )
