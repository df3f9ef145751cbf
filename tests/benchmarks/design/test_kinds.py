"""Fitting mixtures of tables."""

from __future__ import annotations

import pytest
import torch

from benchmarks.design.kinds import Kinds, Run
from sde_diffusion import VPSDE, GaussianMixture
from sde_diffusion.sampling.reference_solution import converged
from sde_diffusion.tuning.fit import TableFit, descend, run
from solvers import SOLVERS
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import GatingNetwork, MixtureOfTables
from solvers.fitted.pf_ode import table_entry

SDE = VPSDE()
STEPS = 4


def fit_of(std: float, seed: int, dimension: int = 6) -> TableFit:
    """A mixture, sixteen initial noise samples and their endpoints."""
    g = torch.Generator().manual_seed(seed)
    model = GaussianMixture(0.6 * torch.randn(5, dimension, dtype=torch.float64, generator=g), std=std, sde=SDE)
    x1 = SDE.prior((16, dimension), seeds=range(16), dtype=torch.float64)
    return TableFit(lambda x, t, rows: model.denoise(x, t), SDE, x1, converged(model, x1, steps=100)[0])


@pytest.fixture(scope="module")
def fits() -> list[TableFit]:
    return [fit_of(0.05, 0), fit_of(0.4, 1), fit_of(1.0, 2)]


@pytest.fixture(scope="module")
def start() -> Kinds:
    plain = compile_table(SOLVERS["dpm++2m"], SDE, STEPS, "power")
    return Kinds.copies(table_entry(SDE, MixtureOfTables((plain,), (None,) * STEPS)), 3, 0.5)


def changed(kinds: Kinds, size: float) -> Kinds:
    g = torch.Generator().manual_seed(5)
    return kinds.at(size * torch.randn(kinds.total, dtype=torch.float64, generator=g))


def features(kinds: Kinds, i: int, fit: TableFit) -> torch.Tensor:
    """What gate i sees, of the whole run from the start."""
    table, one = kinds.table(fit), Run(fit)
    for _ in range(i):
        one.advance(table)
    return one.features(table)


def test_copies_are_the_plain_table(start, fits):
    plain = compile_table(SOLVERS["dpm++2m"], SDE, STEPS, "power")
    torch.testing.assert_close(start.endpoints(fits[0]), run(plain, fits[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.8])
def test_derivatives_are_those_of_the_ends(slope, start, fits):
    """Gates that do not look at their features, whose unequal weights tell the kinds apart, and gates that do."""
    gates = [GatingNetwork.of([0.0] * n, [1.0] * n, [[slope, -slope, 0.0]] * n, [0.4, -0.7, 0.1]) for n in (2, 4, 6)]
    kinds = changed(Kinds(start.numbers, start.rho, (None, *gates)), 0.2)
    q = 0.02 * torch.randn(kinds.total, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    ends, jacobian = kinds.sensitivities(q, fits[0])
    torch.testing.assert_close(ends, kinds.at(q).endpoints(fits[0]), rtol=1e-10, atol=1e-11)
    for number, direction in enumerate(torch.eye(kinds.total, dtype=torch.float64)):
        expected = (kinds.at(q + 1e-5 * direction).endpoints(fits[0]) - ends) / 1e-5
        error = (jacobian[number] - expected).norm() / expected.norm().clamp_min(1e-3)
        assert error < 0.02, (number, float(error))


def test_gates_recognise_the_kinds(start, fits):
    kinds = start.with_gates(fits, [0, 1, 2])
    gate = kinds.gates[-1]
    assert gate is not None
    for kind, fit in enumerate(fits):
        assert float(gate(features(kinds, STEPS - 1, fit))[:, kind].mean()) > 0.95


def test_numbers_by_kind_are_better_than_one_table_for_all(start, fits):
    """After a few steps the error is below what the same steps reach with gates that do not look."""

    def error(kinds: Kinds) -> float:
        def ends(q):
            made = kinds.at(q)
            return [made.endpoints(fit) for fit in fits] if made.ordered else None

        found = [torch.zeros(kinds.total, dtype=torch.float64)]
        descend(
            found[0],
            ends,
            lambda q: [kinds.sensitivities(q, fit) for fit in fits],
            fits,
            [0.01] * 3,
            8,
            lambda q: not found.append(q),
        )
        made = kinds.at(found[-1])
        return sum(float(fit.errors(made.endpoints(fit)).mean()) for fit in fits)

    blind = [GatingNetwork.of([0.0] * n, [1.0] * n, [[0.0] * 3] * n, [0.0] * 3) for n in (2, 4, 6)]
    assert error(start.with_gates(fits, [0, 1, 2])) < 0.9 * error(Kinds(start.numbers, start.rho, (None, *blind)))


def test_typical_rows_are_the_mean_of_what_the_models_of_a_kind_get(start, fits):
    kinds = changed(start, 0.1).with_gates(fits, [0, 1, 2])
    made = Kinds.mean_table(kinds.entry(), fits, [0, 1, 1], 0.5)
    assert made.numbers.shape == (2, STEPS, STEPS + 1) and made.gates == (None,) * STEPS
    torch.testing.assert_close(made.rho, kinds.rho)
    for i, gate in enumerate(kinds.gates):
        weights = [torch.eye(3)[0] if gate is None else gate(features(kinds, i, fit)).mean(0) for fit in fits]
        rows = [(w[:, None] * kinds.numbers[:, i]).sum(0) for w in weights]
        torch.testing.assert_close(made.numbers[0, i], rows[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(made.numbers[1, i], (rows[1] + rows[2]) / 2, rtol=1e-9, atol=1e-12)
    assert float((made.numbers[0] - made.numbers[1]).abs().max()) > 1e-3
