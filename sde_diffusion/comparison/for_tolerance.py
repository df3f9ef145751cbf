r"""The cheapest solver that meets a tolerance, found on a few pilot samples.

The error of a solver is the mean, over samples, of the root mean square distance to where the model's own probability
flow ends (``sde_diffusion.sampling.reference_solution``), so a tolerance is in units of x: 0.02 is 1 % of the range
of an image. A pilot of n initial noise samples, which no sample of the run uses, gives that mean an upper bound

    m + 1.645 s / sqrt(n) + e,          s the standard deviation, e the error of the flow itself,

one-sided 95 % for errors of moderate spread. Between two modes a rare sample ends far away at every
NFE; events rarer than about 1 in n are not seen by a pilot, and not in the bound. NFE are tried from the
smallest up; the first at which a bound meets the tolerance is taken, and of several solvers there the
one with the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.sampling.sampler import noise_for
from sde_diffusion.sampling.settings import seeds_of
from solvers import SOLVERS, Solver, solve
from solvers.errors import InputError

CANDIDATES = ("pf-ode", "unipc", "dpm++3m", "deis")
LADDER = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 100, 128, 160, 200)
_FIRST_NOISE = 2**31
_FLOW_STEPS = (100, 200, 400, 800, 1600)


@dataclass(frozen=True)
class SolverChoice:
    """The choice of a solver, and its reasons.

    Attributes:
        solver: its name.
        nfe: network evaluations for each sample.
        tolerance: the requested tolerance.
        error: mean error of the pilot.
        bound: upper bound of it.
        pilot: number of pilot samples.
        reference_error: upper bound of the error of the flow that the pilot was measured against.
        tried: (NFE, solver, bound) of all that were run.
    """

    solver: str
    nfe: int
    tolerance: float
    error: float
    bound: float
    pilot: int
    reference_error: float
    tried: list[tuple[int, str, float]]

    @property
    def reason(self) -> str:
        """A sentence that describes the choice."""
        same = {name: bound for nfe, name, bound in self.tried if nfe == self.nfe}
        below = [(nfe, bound) for nfe, _, bound in self.tried if nfe < self.nfe]
        others = ", ".join(f"{name} {bound:.2g}" for name, bound in same.items() if name != self.solver)
        text = (
            f"{self.solver} with {self.nfe} evaluations: error {self.error:.2g}, at most {self.bound:.2g} as far "
            f"estimated on {self.pilot} other samples, within {self.tolerance:g}"
        )
        if others:
            text += f" (at this NFE {others})"
        if below:
            budget = max(nfe for nfe, _ in below)
            text += f"; {budget} evaluations give {min(b for nfe, b in below if nfe == budget):.2g}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: a bound that is not finite is None."""
        tried = [[nfe, name, bound if math.isfinite(bound) else None] for nfe, name, bound in self.tried]
        return {**asdict(self), "tried": tried, "reason": self.reason}


@torch.no_grad()
def choose_solver(
    model: ScoreModel,
    tolerance: float,
    *,
    solvers: Mapping[str, Solver] | None = None,
    n: int = 64,
    seed: int = 0,
    on_try: Callable[[str], None] | None = None,
    **condition: Tensor,
) -> SolverChoice:
    """The cheapest of our fixed-budget solvers whose error meets a tolerance on this model.

    Args:
        model: any ScoreModel with a shape.
        tolerance: on the mean distance of a sample to the model's reference solution, RMS over its entries, units of x.
        solvers: to choose from, by name; ``CANDIDATES`` by default.
        n: samples of the pilot.
        seed: seed of the run whose solver is chosen; the pilot uses other seeds.
        on_try: called with a description of the next computation.
        condition: per-sample tensors (n, ...) that are passed to the network.

    Raises:
        ValueError: a tolerance that is not positive, fewer than 2 samples, a solver that is stochastic or adaptive, or
            no NFE in ``LADDER`` meets the tolerance.
        FloatingPointError: the model returns NaN or inf.

    >>> from sde_diffusion import GaussianMixture, VPSDE
    >>> model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), std=0.2, sde=VPSDE())
    >>> rough, fine = (choose_solver(model, tolerance) for tolerance in (0.1, 0.001))
    >>> rough.nfe < fine.nfe, fine.error < fine.bound <= 0.001
    (True, True)
    """
    refuse_distilled(model, "choose a solver for")
    if not (0 < tolerance < math.inf):
        raise InputError(f"a tolerance is a positive distance in units of a sample, such as 0.02; got {tolerance}")
    if n < 2:
        raise InputError(f"an error bound needs at least 2 samples; got {n}")
    if model.shape is None:
        raise InputError("the model does not know the shape of a sample: set model.shape")
    solvers = {name: SOLVERS[name] for name in CANDIDATES} if solvers is None else solvers
    for name, solver in solvers.items():
        if solver.stochastic or solver.adaptive:
            kind = "draws noise and has no error of this kind" if solver.stochastic else "chooses its own steps"
            raise InputError(f"a tolerance chooses the NFE of a deterministic fixed-step solver; {name} {kind}")
    say = on_try or (lambda what: None)
    model.eval()
    device = model.device
    x1 = noise_for(model, model.shape, seeds_of(seed, n, _FIRST_NOISE))
    given: dict[str, Any] = {name: value.to(device) for name, value in condition.items()}
    for steps in _FLOW_STEPS:
        say(f"the reference solution, {steps} steps")
        endpoints, own = converged(model, x1, steps=steps, **given)
        endpoints, own = model.units.to_data(endpoints), own * model.units.largest_scale
        if own <= tolerance / 10:
            break
    flow = model.sde.probability_flow(model, **given)
    tried: list[tuple[int, str, float]] = []
    errors: dict[tuple[int, str], float] = {}
    for nfe in LADDER:
        for name, solver in solvers.items():
            try:
                solver.steps_for(nfe // model.cost)
            except ValueError:  # below its least, or a table for another NFE
                continue
            say(f"{name}, {nfe} evaluations")
            error = rms(model.units.to_data(solve(flow, x1, solver=solver, nfe=nfe).x) - endpoints)
            error = torch.where(error.isfinite(), error, torch.inf)
            spread = float(error.std()) if bool(error.isfinite().all()) else math.inf
            errors[nfe, name] = float(error.mean())
            tried.append((nfe, name, float(error.mean()) + 1.645 * spread / math.sqrt(n) + own))
        bound, name = min(((b, name) for k, name, b in tried if k == nfe), default=(math.inf, ""))
        if bound <= tolerance:
            return SolverChoice(name, nfe, tolerance, errors[nfe, name], bound, n, own, tried)
    if not tried:
        raise InputError(f"no solver of {', '.join(solvers)} runs with {', '.join(map(str, LADDER))} evaluations")
    nearest = min(tried, key=lambda entry: entry[2])
    raise InputError(
        f"no solver of {', '.join(solvers)} meets the tolerance {tolerance:g} with {LADDER[-1]} evaluations or fewer; "
        f"the nearest is {nearest[1]} with {nearest[0]}, at most {nearest[2]:.2g}. Ask for that, or choose rk45"
    )
