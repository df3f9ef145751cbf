"""Grids: exact ends, strict monotonicity, spacing in the stated variable, refusal of bad times."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from solvers import GRIDS, SOLVERS, Equation, ReverseProcess, make_grid
from solvers.grids import rho_min, time_at
from solvers.noise_clock import clock
from solvers.planning import plan

PATHS = [VPSDE(), SubVPSDE(), VESDE(), EDM(), Flow(), CosineVPSDE()]


def process(sde: SDE) -> ReverseProcess:
    return sde.probability_flow(GaussianMixture(torch.zeros(1, 2), 1.0, sde=sde))


@pytest.mark.parametrize("sde", PATHS, ids=repr)
@pytest.mark.parametrize("name", [n for n in GRIDS if n != "ends"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_length_ends_and_order(name: str, sde: SDE, steps: int) -> None:
    times = make_grid(name, process(sde), steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert float(times[0]) == 1.0 and float(times[-1]) == 0.0
    assert bool((times.diff() < 0).all())


VARIABLE = {
    "uniform": lambda t, rho: t,
    "quadratic": lambda t, rho: clock(rho).sqrt(),
    "power": lambda t, rho: clock(rho) ** 0.4,
    "log-snr": lambda t, rho: rho.log(),
    "karras": lambda t, rho: rho ** (1 / 7),
    "angle": lambda t, rho: rho.atan(),
}


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), EDM()], ids=repr)
@pytest.mark.parametrize("name", VARIABLE)
def test_equal_steps_in_the_stated_variable(name: str, sde: SDE) -> None:
    times = make_grid(name, process(sde), 12)[:-1]
    alpha, sigma = sde(times)[:2]
    gaps = VARIABLE[name](times, sigma / alpha).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["power", "log-snr", "karras", "angle"])
def test_last_time_before_zero_follows_the_rule(name: str) -> None:
    for steps in (4, 10, 30):
        times = make_grid(name, process(VPSDE()), steps)
        alpha, sigma = VPSDE()(times[-2])[:2]
        assert float(sigma / alpha) == pytest.approx(4 / steps**2, rel=1e-9)
    assert rho_min(1) == 0.5
    # Above 40 steps it goes on falling, faster.
    assert rho_min(160) == pytest.approx(4 / 160**2 / 2)


@pytest.mark.parametrize("name", ["quadratic", "power"])
def test_on_the_process_of_the_clock_grids_are_powers_of_its_time(name: str) -> None:
    times = make_grid(name, process(VPSDE()), 12)[:-1]
    gaps = (times ** {"quadratic": 0.5, "power": 0.4}[name]).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if not (s.adaptive or s.grid == "uniform")])
def test_default_grids_are_noise_levels_whatever_a_path_calls_its_times(name: str) -> None:
    """Of one range of sigma / alpha: 1000 betas, the same ends on a linear beta(t), and sigma proportional to t."""
    betas = DDPM(betas=torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().tolist())
    alpha, sigma = (float(c) for c in betas.marginal(1.0))
    others = [EDM(sigma / alpha), VESDE(sigma_min=0.01, sigma_max=math.hypot(sigma / alpha, 0.01))]
    levels = []
    for sde in (betas, *others):
        model = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0, sde=sde)
        times = plan(sde.reverse(model, 0.0), (2,), name, steps=11)[1]
        alpha, sigma = sde(times)[:2]
        levels.append(sigma / alpha)
    for other in levels[1:]:
        torch.testing.assert_close(other, levels[0], rtol=1e-6, atol=1e-8)


def test_time_at_inverts_any_path() -> None:
    for sde in PATHS:
        lam = torch.linspace(-3, 5, 9, dtype=torch.float64)
        torch.testing.assert_close(time_at(sde, lam), sde.time(lam), rtol=1e-9, atol=1e-12)


def test_a_named_grid_cannot_be_changed_from_outside() -> None:
    first = make_grid("karras", process(VPSDE()), 5)
    first[1] = 0.0
    assert float(make_grid("karras", process(VPSDE()), 5)[1]) > 0.5


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("karas", "did you mean 'karras'"),
        ([1.0, 0.5, 0.5, 0.0], "times 1 and 2 are 0.5 and 0.5"),
        ([1.0, 0.4, 0.6, 0.0], "times 1 and 2 are 0.4 and 0.6"),
        ([1.2, 0.5, 0.0], r"lie in \[0, 1\]"),
        ([1.0, math.nan, 0.0], r"lie in \[0, 1\]"),
        ([1.0], "at least 2"),
        (torch.ones(2, 2), "at least 2"),
    ],
)
def test_bad_grids_are_refused(grid: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(grid, process(VPSDE()), 4 if isinstance(grid, str) else None)  # type: ignore[arg-type]


def test_steps_and_grid_must_agree() -> None:
    with pytest.raises(ValueError, match="has 2 steps, but steps=5"):
        make_grid([1.0, 0.5, 0.0], process(VPSDE()), 5)
    with pytest.raises(ValueError, match="at least 1"):
        make_grid("uniform", process(VPSDE()), 0)
    with pytest.raises(ValueError, match="pass the times"):
        make_grid("uniform", Equation(lambda x, t: -x), 5)
