"""The default solver: what its samples may depend on, its tables from every start, and the engine beyond them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.problems import gaussian_spectrum
from sde_diffusion import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged, rms
from solvers import SOLVERS, ReverseProcess, solve
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.fitted_tables import fitted_steps, fitted_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow, fixed_order_engine
from solvers.planning import plan

MEANS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NFE = (2, 3, 5, 8, 10, 15, 16, 20, 50)
SCALED_LINEAR = DDPM(betas=(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).tolist())


def noise(n: int = 8) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def samples(
    sde: SDE, nfe: int, means: Tensor = MEANS, std: float = 0.3, size: float = 1.0, shift: float = 0.0
) -> Tensor:
    """From z_1 = rho_1 eps (eps where rho_1 is infinite), in units of the data's size and moved with it."""
    model = GaussianMixture(size * means + shift, std=size * std, sde=sde)
    if size != 1:
        model.sigma_data = size * 0.5
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    return solve(sde.probability_flow(model), sigma * noise() + alpha * shift, nfe=nfe).x


def test_there_are_tables() -> None:
    assert fitted_steps() == [5, 6, 7, 8, 10]


def same_range() -> list[SDE]:
    """Stable Diffusion's betas, and other names for the times of the same noise levels."""
    alpha, sigma = (float(c) for c in SCALED_LINEAR.marginal(1.0))
    rho = sigma / alpha
    beta_max = 2 * math.log1p(rho**2) - 0.1
    return [SCALED_LINEAR, VPSDE(beta_max=beta_max), EDM(rho), VESDE(sigma_min=0.01, sigma_max=math.hypot(rho, 0.01))]


@pytest.mark.parametrize("nfe", NFE)
def test_samples_do_not_depend_on_the_name_of_time(nfe: int) -> None:
    first, *others = (samples(sde, nfe) for sde in same_range())
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-6)
    torch.testing.assert_close(samples(Flow(), nfe), samples(CosineVPSDE(), nfe), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sde", [VPSDE(), Flow(), EDM(), SCALED_LINEAR], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("nfe", NFE)
def test_samples_move_with_the_data(sde: SDE, nfe: int) -> None:
    torch.testing.assert_close(samples(sde, nfe, shift=3.0), samples(sde, nfe) + 3, rtol=0, atol=1e-8)


@pytest.mark.parametrize("sde", [VPSDE(), Flow(), EDM(), VESDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("nfe", range(1, 21))
def test_a_point_mass_is_exact(sde: SDE, nfe: int) -> None:
    point = ReverseProcess(lambda x, t: torch.full_like(x, 3.0), sde)
    torch.testing.assert_close(
        solve(point, 5 * noise(), nfe=nfe).x, torch.full((8, 3), 3.0).double(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("nfe", NFE)
def test_samples_have_the_unit_of_the_data_where_it_is_stated(nfe: int) -> None:
    for small, large in ((Flow(), Flow()), (EDM(80.0), EDM(8000.0))):
        torch.testing.assert_close(samples(large, nfe, size=100.0), 100 * samples(small, nfe), rtol=1e-8, atol=1e-8)
    # Where nothing states it the noise levels are those of data of standard deviation 0.5.
    model = GaussianMixture(MEANS, std=0.3, sde=EDM())
    assert EDM().probability_flow(model).data_std is None
    model.sigma_data = 0.5
    assert EDM().probability_flow(model).data_std == 0.5


def test_the_solver_that_runs_follows_the_grid() -> None:
    sde = VPSDE()
    ode = sde.probability_flow(GaussianMixture(MEANS, std=0.3, sde=sde))

    def resolved(**budget):
        return plan(ode, (3,), "pf-ode", **budget)

    table, times = resolved(nfe=8)
    assert isinstance(table, MixtureOfTables) and tuple(times.tolist()) == table.times
    assert resolved(grid="fitted", nfe=8)[0] == resolved(grid=times)[0] == table
    assert resolved(nfe=2)[0] == ExponentialAdams(2, variable="time", corrector=True)
    larger = ExponentialAdams(5, variable="time", corrector=True)
    own = torch.linspace(1, 0, 9, dtype=torch.float64)
    for engine in (resolved(grid=own)[0], resolved(grid=torch.linspace(1, 0, 41))[0], resolved(nfe=60)[0]):
        assert engine == VariableOrder(larger)
    assert fixed_order_engine(7) == larger
    x1 = sde.prior((4, 3), seeds=range(4), dtype=torch.float64)
    assert torch.equal(solve(ode, x1, nfe=8).x, solve(ode, x1, solver=table, nfe=8).x)
    with pytest.raises(TypeError, match="takes no steps itself"):
        ProbabilityFlow().step(ode, x1, times[0], times[1], None, None)


def test_a_path_that_starts_low_gets_the_engine() -> None:
    low = VESDE(sigma_max=1.0)
    assert fitted_table(low, 8) is None
    assert fitted_table(EDM(2.5), 8) is not None
    assert bool(samples(low, 8).isfinite().all())


def test_levels_depend_on_the_dimensions_of_a_sample() -> None:
    few, many = (fitted_table(VPSDE(), 8, d) for d in (3, 3072))
    assert few is not None and many is not None and few.times != many.times


@pytest.fixture(scope="module")
def digits_24() -> tuple[GaussianMixture, Tensor, Tensor]:
    """Digits of 24 x 24, outside every training set, with initial noise and endpoints."""
    small = torch.from_numpy(load_digits().images[1400:1700] / 8 - 1)[:, None]
    means = interpolate(small, size=24, mode="bilinear").flatten(1)
    model = GaussianMixture(means, std=0.05, sde=VPSDE())
    x1 = model.sde.prior((24, 576), seeds=range(24), dtype=torch.float64)
    return model, x1, converged(model, x1, steps=300)[0]


@pytest.mark.parametrize("nfe", [5, 8])
def test_many_dimensions_on_data_of_no_family(digits_24, nfe: int) -> None:
    model, x1, x0 = digits_24
    ode = model.sde.probability_flow(model)
    own, unipc = (float(rms(solve(ode, x1, solver=SOLVERS[s], nfe=nfe).x - x0).mean()) for s in ("pf-ode", "unipc"))
    assert own < 0.9 * unipc


@pytest.mark.parametrize("sde", [VPSDE(), EDM(), Flow(), SCALED_LINEAR], ids=lambda sde: type(sde).__name__)
def test_more_evaluations_are_never_worse(sde: SDE) -> None:
    """From the tables over to the engine as well."""
    model = GaussianMixture(MEANS, std=0.3, sde=sde)
    x1 = sde.prior((64, 3), seeds=range(64), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=300)
    ode = sde.probability_flow(model)
    errors = [float(rms(solve(ode, x1, nfe=n).x - truth).mean()) for n in (3, 5, 7, 10, 15, 16, 20, 30, 50)]
    assert all(b < a for a, b in pairwise(errors)), errors
    assert errors[-1] < 1e-4


def test_the_floor_falls_on_with_more_evaluations() -> None:
    model = GaussianMixture(MEANS, std=0.3, sde=VPSDE())
    x1 = VPSDE().prior((64, 3), seeds=range(64), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=3000)
    ode = VPSDE().probability_flow(model)
    coarse, fine = (float(rms(solve(ode, x1, nfe=n).x - truth).median()) for n in (64, 500))
    assert coarse < 1.5e-6 and fine < 1e-9


def others():
    """Exact problems of no family: mixtures in 3 and 32 dimensions with wide and narrow data, a Gaussian, a line.

    And three of many dimensions: digits at 24 x 24 without more contrast, a cloud, a Gaussian of 3,000.
    """
    sde = VPSDE()

    def cloud(n, d, size, std, seed):
        means = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return GaussianMixture(size * means, std=std, sde=sde), d

    line = torch.tensor([[-0.8], [0.1], [0.7]], dtype=torch.float64)
    images = torch.from_numpy(load_digits().images[1400:1700] / 8 - 1)[:, None]
    large = interpolate(images, size=24, mode="bilinear", align_corners=False).reshape(-1, 576)
    return [
        (GaussianMixture(large, std=0.2, sde=sde), 576),
        cloud(20, 900, 0.3, 0.15, 5),
        (gaussian_spectrum(torch.arange(1, 3001, dtype=torch.float64) ** -0.9, sde), 3000),
        cloud(8, 3, 0.5, 0.1, 0),
        cloud(8, 3, 1.0, 0.2, 1),
        cloud(40, 32, 0.5, 0.1, 2),
        cloud(40, 32, 1.0, 0.3, 3),
        cloud(40, 32, 0.5, 0.02, 4),
        (gaussian_spectrum(torch.arange(1, 101, dtype=torch.float64) ** -1.2, sde), 100),
        (GaussianMixture(line, std=0.1, sde=sde), 1),
    ]


def test_on_problems_that_no_table_was_fitted_to():
    """Mean error over that of UniPC from the same initial noise, with the tables at usual numbers of evaluations."""
    ratios = []
    for model, d in others():
        x1 = model.sde.prior((96, d), seeds=range(96), dtype=torch.float64)
        truth, _ = converged(model, x1, steps=400)
        ode = model.sde.probability_flow(model)
        for nfe in (5, 6, 8, 10):
            ours, theirs = (float(rms(solve(ode, x1, solver=s, nfe=nfe).x - truth).mean()) for s in ("pf-ode", "unipc"))
            ratios.append(ours / theirs)
    assert max(ratios) < 1.3, ratios
    assert torch.tensor(ratios).log().mean().exp() < 0.7, ratios
