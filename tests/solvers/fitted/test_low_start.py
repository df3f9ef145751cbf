"""Levels and order of pf-ode where a path starts at a low noise level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.problems import gaussian_spectrum
from sde_diffusion import SDE, VESDE, ScoreModel
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import SOLVERS, solve
from solvers.fitted.engine import engine_grid, prefers_engine
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.planning import plan


@pytest.mark.parametrize(
    ("steps", "exponent", "last"),
    [
        (5, None, 0.1),
        (7, None, 0.5 / 7),
        (10, 20.0, 0.04),
        (12, 10.0, 4 / 144),
        (15, 10.0, 4 / 225),
        (16, 8.0, 2.7 / 256),
    ],
)
def test_many_dimensions_get_the_levels_of_karras_from_a_low_start(steps, exponent, last):
    low = VESDE(sigma_max=20.0)
    rho = low.marginal(engine_grid(low, steps, large=True))[1][:-1]
    assert [float(rho[0]), float(rho[-1])] == pytest.approx([20.0, last], rel=1e-4)
    even = rho.log() if exponent is None else rho ** (1 / exponent)
    assert float(even.diff().diff().abs().max()) < 1e-4
    assert not torch.equal(engine_grid(low, steps), engine_grid(low, steps, large=True))


def test_from_a_low_start_many_dimensions_choose_their_order():
    low = VESDE(sigma_max=20.0)
    ode = low.probability_flow(gaussian_spectrum(torch.ones(500, dtype=torch.float64), low))
    kinds = [plan(ode, (500,), ProbabilityFlow(scale=1.0), nfe=n)[0] for n in (8, 12, 30)]
    assert [kind.fewest for kind in kinds] == [2, 2, None] and all(kind.extrapolated for kind in kinds)
    lowest = VESDE(sigma_max=6.0)
    below = lowest.probability_flow(gaussian_spectrum(torch.ones(500, dtype=torch.float64), lowest))
    kinds = [plan(below, (500,), ProbabilityFlow(scale=1.0), nfe=n)[0] for n in (4, 7, 12, 13)]
    assert [kind.fewest for kind in kinds] == [2, 2, 2, None] and all(kind.extrapolated for kind in kinds)


@pytest.mark.parametrize(
    ("start", "large", "steps", "exponent", "last"),
    [
        (6.0, False, 4, 7.0, 0.125),
        (6.0, False, 14, 9.0, 2.7 / 196),
        (6.0, False, 40, 4.16, 2 / 1600),
        (6.0, True, 4, 11.25, 0.08),
        (6.0, True, 5, 9.0, 0.08),
        (6.0, True, 6, 7.5, 2.7 / 36),
        (6.0, True, 12, 6.0, 2.7 / 144),
        (6.0, True, 16, 5.0, 2.7 / 256),
        (6.0, True, 20, 4.0, 2 / 400),
        (6.0, True, 40, 3.0, 2 / 1600),
        (3.5, False, 10, 6.69, 0.014),
        (3.5, False, 20, 4.36, 2 / 400),
        (3.5, True, 6, 7.5, 2.7 / 36),
    ],
)
def test_a_start_below_10_has_levels_of_karras_with_an_exponent_of_its_own(start, large, steps, exponent, last):
    low = VESDE(sigma_max=start)
    rho = low.marginal(engine_grid(low, steps, large))[1]
    assert [float(rho[0]), float(rho[-2])] == pytest.approx([start, last], rel=1e-4)

    def unevenness(p):
        return float((rho[:-1] ** (1 / p)).diff().diff().abs().max())

    assert min(torch.linspace(2, 12, 1001).tolist(), key=unevenness) == pytest.approx(exponent, abs=0.02)


def test_few_dimensions_choose_their_order_from_two_values_below_a_start_of_4_5():
    def chosen(start, steps):
        low = VESDE(sigma_max=start)
        ode = low.probability_flow(gaussian_spectrum(torch.ones(8, dtype=torch.float64), low))
        return plan(ode, (8,), ProbabilityFlow(scale=1.0), nfe=steps)[0]

    orders = [chosen(4.0, n) for n in (10, 15, 16)] + [chosen(6.0, n) for n in (10, 14, 15, 16)]
    assert [kind.fewest for kind in orders] == [2, 2, None, 2, 2, 2, None]
    assert [kind.extrapolated for kind in orders] == [False, False, False, False, True, True, False]
    assert all(isinstance(chosen(start, n), MixtureOfTables) for start, n in ((4.0, 9), (6.0, 9), (20.0, 10)))


@pytest.mark.parametrize(
    ("start", "numbers"),
    [(4.4, ()), (4.51, range(10, 14)), (9.9, range(10, 14)), (19.9, (11, 12))],
)
def test_a_few_dimensions_have_equal_steps_of_log_rho(start, numbers):
    sde = VESDE(sigma_max=start)
    ode = sde.probability_flow(gaussian_spectrum(torch.ones(8, dtype=torch.float64), sde))

    def is_even(steps):
        rho = sde.marginal(plan(ode, (8,), ProbabilityFlow(scale=1.0), nfe=steps)[1][:-1])[1]
        return float(rho[-1]) == pytest.approx(1.8 / steps**2, rel=1e-4) and bool(rho.log().diff().std() < 1e-4)

    assert [n for n in range(3, 17) if is_even(n)] == list(numbers)
    assert not any(prefers_engine(n, large=False, start=20.0) for n in range(3, 16))
    assert all(plan(ode, (8,), ProbabilityFlow(scale=1.0), nfe=n)[0].fewest == 2 for n in numbers)


class Rough(nn.Module):
    """A denoiser with random weights in 10 dimensions: (x, t) -> D."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(10)
        self.sde = sde
        shapes = ((12, 40), (40, 10))
        self.inner, self.outer = (torch.randn(n, generator=generator, dtype=torch.float64) for n in shapes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = self.sde.marginal(t)[1][:, None]
        size = torch.sqrt(1 + sigma**2)
        hidden = torch.cat([x / size, sigma.log() / 4, (sigma.log() / 2).sin()], 1) @ self.inner / 12**0.5
        return x / size**2 + sigma / size * hidden.tanh() @ self.outer / 40**0.5


@pytest.mark.parametrize(("start", "nfe", "bound"), [(6.6, 10, 0.4), (14.6, 11, 0.5), (14.6, 12, 0.35)])
def test_equal_steps_are_nearer_than_unipc_on_a_rough_network(start, nfe, bound):
    """The last rows of tables had 0.61 and 1.77 of its error, and the engine of a high start 0.44."""
    sde = VESDE(sigma_max=start)
    model = ScoreModel(Rough(sde), sde, "data", (10,))
    x1 = sde.prior((16, 10), seeds=range(16), dtype=torch.float64)
    x0 = converged(model, x1, steps=300)[0]
    ode = sde.probability_flow(model)
    own = solve(ode, x1, solver=SOLVERS["pf-ode"], nfe=nfe).x
    peer = solve(ode, x1, solver=SOLVERS["unipc"], grid="log-snr", nfe=nfe).x
    assert float(rms(own - x0).mean()) < bound * float(rms(peer - x0).mean())
