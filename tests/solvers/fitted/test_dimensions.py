"""From how many dimensions on pf-ode has the settings of many."""

from __future__ import annotations

import pytest
import torch

from benchmarks.problems import gaussian_spectrum
from sde_diffusion import SDE, VESDE, GaussianMixture, ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import SOLVERS, solve
from solvers.fitted.dimensions import is_large
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.planning import plan


@pytest.mark.parametrize(
    ("entries", "start", "steps"),
    [
        (12, 4.4, range(5, 10)),
        (448, 3.0, range(5, 10)),
        (11, 4.4, ()),
        (12, 4.5, ()),
        (32, 9.9, (6, 7, 11, 12, 13)),
        (89, 6.6, (6, 7, 11, 12, 13)),
        (90, 6.6, range(6, 14)),
        (31, 6.6, ()),
        (11, 14.6, ()),
        (12, 10.0, (4,)),
        (149, 19.0, (4, 6, 7, 8)),
        (150, 19.0, range(4, 16)),
        (448, 20.0, ()),
        (448, float("inf"), ()),
        (449, 3.0, range(1, 60)),
        (449, 80.0, range(1, 60)),
    ],
)
def test_numbers_of_steps_with_the_settings_of_many_dimensions(entries, start, steps):
    assert [n for n in range(1, 60) if is_large((entries,), start, n)] == list(steps)
    assert is_large((1, 2, entries), start, 8) == is_large((2 * entries,), start, 8)


def cloud(sde: SDE) -> ScoreModel:
    """Points of data that no setting was chosen on, in 36 dimensions."""
    generator = torch.Generator().manual_seed(36)
    return GaussianMixture(0.6 * torch.randn(45, 36, generator=generator, dtype=torch.float64), std=0.2, sde=sde)


def spectrum(sde: SDE) -> ScoreModel:
    """A Gaussian of falling variances in 220 dimensions."""
    v = torch.arange(1, 221, dtype=torch.float64) ** -1.1
    return gaussian_spectrum(0.3 * v / v.mean(), sde)


@pytest.mark.parametrize(
    ("make", "start", "nfe", "bound"),
    [(cloud, 3.0, 6, 0.8), (spectrum, 3.0, 7, 0.6), (spectrum, 6.6, 9, 0.6), (spectrum, 14.6, 8, 0.7)],
)
def test_they_are_better_there(make, start, nfe, bound):
    sde = VESDE(sigma_max=start)
    model = make(sde)
    x1 = sde.prior((16, *model.shape), seeds=range(70, 86), dtype=torch.float64)
    x0 = converged(model, x1, steps=300)[0]
    ode = sde.probability_flow(model)
    before, after = (
        rms(solve(ode, x1, solver=s, nfe=nfe).x - x0) for s in (ProbabilityFlow(large=False), SOLVERS["pf-ode"])
    )
    assert float(after.mean()) < bound * float(before.mean())
    assert float(after.median()) < bound * float(before.median())


def test_data_that_are_seen_to_be_wide_have_the_settings_of_their_own_start():
    """From rho = 32 in units of 8 the start is 4: many dimensions there, and few from 32."""
    sde = VESDE(sigma_max=32.0)
    ode = sde.probability_flow(spectrum(sde))
    seen, _ = plan(ode, (40,), "pf-ode", nfe=8)
    own = seen.chooser.for_scale(8.0).resolve(ode, (40,), None, 8)[0]
    assert plan(ode, (40,), ProbabilityFlow(scale=8.0), nfe=8)[0] == own
    assert plan(ode, (40,), ProbabilityFlow(large=True, scale=8.0), nfe=8)[0] == own
    assert plan(ode, (40,), ProbabilityFlow(large=False, scale=8.0), nfe=8)[0] != own
