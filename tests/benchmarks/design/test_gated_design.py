"""The fit of a mixture of tables to a small training set."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from benchmarks.design.gated_design import GatedDesign
from benchmarks.design.training_problems import TrainingProblem
from sde_diffusion import VPSDE, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.tuning.fit import TableFit, objective, run
from solvers import SOLVERS
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import scale_noise_levels, table_entry, table_of

SDE = VPSDE()
STEPS = 4
EXPERTS = {"narrow": ("narrow",), "wide": ("wide",), "wider": ("wider",)}


def member(name: str, std: float, network: bool) -> TrainingProblem:
    g = torch.Generator().manual_seed(1)
    model = GaussianMixture(0.6 * torch.randn(5, 6, dtype=torch.float64, generator=g), std=std, sde=SDE)
    x1 = SDE.prior((32, 6), seeds=range(32), dtype=torch.float64)
    x0, _ = converged(model, x1, steps=100)
    first, second = (
        TableFit(lambda x, t, rows: model.denoise(x, t), SDE, x1[p], x0[p]) for p in (slice(16), slice(16, 32))
    )
    return TrainingProblem(name, first, second, network)


def problems() -> list[TrainingProblem]:
    return [member("narrow", 0.05, True), member("wide", 0.4, False), member("wider", 1.0, False)]


@pytest.fixture(scope="module")
def starts():
    plain = compile_table(SOLVERS["dpm++2m"], SDE, STEPS, "power")
    entry = table_entry(SDE, MixtureOfTables((plain,), (None,) * STEPS))
    return [entry, scale_noise_levels(entry, 3.0)]


@pytest.fixture
def design(starts):
    return GatedDesign(problems(), EXPERTS, starts, Console(file=io.StringIO()))


def score(design: GatedDesign, entry) -> float:
    ends = [run(table_of(SDE, entry), one.held) for one in design.problems]
    return objective([one.held for one in design.problems], ends, design.units)


@pytest.mark.slow
def test_what_is_made_is_better_than_every_start(design, starts):
    made = design.make()
    assert score(design, made) == pytest.approx(design.best, rel=1e-5)
    assert score(design, made) < 0.8 * min(score(design, start) for start in starts)


def test_some_numbers_are_fitted_and_no_others(design):
    design.offer("gates", design.starts[0].with_gates(design.fits, design.kinds))
    before, first = design.found, design.best
    numbers = [n for n, (kind, _, _) in enumerate(before.places) if kind == 1]
    design.fit("wide", [1], numbers, 5)
    assert design.best < first
    assert torch.equal(design.found.numbers[::2], before.numbers[::2]) and torch.equal(design.found.rho, before.rho)
    assert not torch.equal(design.found.numbers[1], before.numbers[1])


@pytest.mark.slow
def test_the_last_stage_leaves_times_and_the_rows_of_networks(starts):
    design = GatedDesign(problems(), EXPERTS, starts, Console(file=io.StringIO()), search=False)
    network = design.problems[0]
    errors = [float(network.held.errors(run(table_of(SDE, start), network.held)).mean()) for start in starts]
    assert design.bases[0] == pytest.approx(min(errors), rel=1e-9)
    design.offer_gates("gates", design.starts)
    before, first = design.found, design.best
    made = design.exact()
    assert design.best < 0.95 * first and score(design, made) == pytest.approx(design.best, rel=1e-5)
    assert torch.equal(design.found.rho, before.rho)
    assert torch.equal(design.found.numbers[0], before.numbers[0])
    assert not any(torch.equal(design.found.numbers[k], before.numbers[k]) for k in (1, 2))


def test_a_model_far_from_every_start_does_not_decide_all(starts):
    few = problems()
    free, bound = (GatedDesign(few, EXPERTS, starts, Console(file=io.StringIO()), most) for most in (1e9, 1.0))
    for one, least, most in zip(few, free.bases, bound.bases, strict=True):
        errors = [float(one.held.errors(run(table_of(SDE, start), one.held)).mean()) for start in starts]
        assert most == pytest.approx(max(least, min(errors)), rel=1e-9)
    assert bound.bases != free.bases
