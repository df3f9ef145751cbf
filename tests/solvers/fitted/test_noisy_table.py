"""Tables with noise: the steps of DDPM, the exact law on Gaussian data, seeds, and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, CosineVPSDE, Flow, Gaussian, GaussianMixture, sample
from sde_diffusion.interop.driven_run import DrivenRun, asked_times
from sde_diffusion.sde import SDE
from sde_diffusion.storage.solver_file import load_solver, save_solver
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import SOLVERS, solve
from solvers.brownian_path import BrownianPath
from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.noisy_table import NoisyTable, renoised
from solvers.fitted.table import Row, Table
from tests.solvers.linear import law, orders, quadratic

MEANS = torch.tensor([[-1.0, 0.3, 0.0], [1.0, 0.5, 0.2], [0.2, -0.8, 0.4]], dtype=torch.float64)


def mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(MEANS, std=0.2, sde=sde)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("sde", [VPSDE(), Flow(), CosineVPSDE()], ids=str)
def test_on_the_rows_of_ddim_it_is_the_ancestral_step_of_ddpm(sde: SDE, eta: float) -> None:
    """From alpha = 0 on as well, where rho is infinite."""
    model = mixture(sde)
    ddim = compile_table(SOLVERS["ddim"], sde, 7)
    table = renoised(ddim, sde, [eta] * 6, order=1)
    x1 = sde.prior((5, 3), seeds=range(5), dtype=torch.float64)
    own = solve(sde.reverse(model, eta), x1, solver="ddpm", grid=ddim.times, seeds=range(5))
    for process in (sde.reverse(model, 1.0), sde.probability_flow(model)):  # the table has its noise from neither
        made = solve(process, x1, solver=table, seeds=range(5))
        torch.testing.assert_close(made.x, own.x, rtol=0, atol=1e-12)
    assert float((solve(sde.probability_flow(model), x1, solver=ddim).x - own.x).abs().max()) > 0.01


def variance_error(n: int, order: int) -> float:
    """Relative error of the variance of the result on a Gaussian in one dimension, with every other step at half noise.

    Exact moments of linear maps: no sampling error. The last step returns E[x_0 | x_t] for x_t of the exact law.
    """
    data = Gaussian(torch.tensor([0.7]).double(), torch.tensor([0.5]).double(), sde=VPSDE())
    times = torch.cat([quadratic(n - 1), torch.zeros(1).double()])
    base = compile_table(SOLVERS["dpm++2m"], data.sde, n, times)
    mean, variance = law(data, renoised(base, data.sde, [0.5 + 0.5 * (i % 2) for i in range(n - 1)], order), times)
    assert abs(mean - 0.7) < 1e-6
    alpha, sigma = (float(c) for c in data.sde.marginal(times[-2]))
    return variance / (alpha**2 * 0.5**2 / (alpha**2 * 0.5 + sigma**2)) - 1


@pytest.mark.parametrize("order", [1, 2])
def test_noise_of_any_strength_keeps_the_marginals_in_the_limit_of_small_steps(order: int) -> None:
    errors = [abs(variance_error(n, order)) for n in (40, 80, 160)]
    assert errors[-1] < 0.015
    assert min(orders(errors)) > 0.8


def test_weak_noise_changes_the_variance_by_the_square_of_its_share() -> None:
    """The noise that is drawn replaces the noise that is taken away, to first order in f = eta^2 (1 - e^-2h)."""
    data = Gaussian(torch.zeros(1).double(), torch.ones(1).double(), sde=VPSDE())
    times = torch.cat([quadratic(399), torch.zeros(1).double()])
    base = compile_table(SOLVERS["dpm++3m"], data.sde, 400, times)
    plain = law(data, base, times, eta=0.0, draws=1)[1]
    changes = []
    for eta in (0.2, 0.1):
        etas = [0.0] * 399
        etas[200] = eta
        changes.append(abs(law(data, renoised(base, data.sde, etas), times, draws=1)[1] - plain))
    assert changes[0] < 1e-4 and changes[1] < changes[0] / 3


def test_a_table_from_the_mean_has_noise_after_each_evaluation() -> None:
    sde = VPSDE()
    model = mixture(sde)
    longer = compile_table(SOLVERS["ddim"], sde, 5)
    from_mean = MeanStart(longer, tuple(MEANS.mean(0).tolist()))
    etas = [0.7, 0.0, 0.4]
    made = renoised(from_mean, sde, etas, order=2)
    whole = renoised(longer, sde, [0.0, *etas], order=2)
    assert isinstance(made.table, MeanStart) and isinstance(whole.table, Table)
    assert made.table.table == whole.table and made.noise == whole.noise[1:]
    x1 = sde.prior((4, 3), seeds=range(4), dtype=torch.float64)
    out = solve(sde.probability_flow(model), x1, solver=made, nfe=4, seeds=range(4))
    assert out.nfe.tolist() == [4] * 4 and bool(out.x.isfinite().all())
    other = solve(sde.probability_flow(model), x1, solver=made, nfe=4, seeds=range(1, 5))
    assert float((other.x - out.x).abs().max()) > 1e-3


def noisy(sde: SDE, steps: int = 5) -> NoisyTable:
    return renoised(compile_table(SOLVERS["unipc"], sde, steps), sde, [0.8] * (steps - 1)).on(sde)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_sample_depends_on_its_seed_and_not_on_its_batch(batch_size: int) -> None:
    model = mixture(VPSDE()).double()
    whole = sample(model, 7, solver=noisy(model.sde), nfe=5, seed=3, shape=(3,))
    parts = sample(model, 7, solver=noisy(model.sde), nfe=5, seed=3, shape=(3,), batch_size=batch_size)
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)
    assert float((sample(model, 7, solver=noisy(model.sde), nfe=5, seed=4, shape=(3,)) - whole).abs().max()) > 0.1


def test_its_file_serves_every_process_of_the_range(tmp_path: Path) -> None:
    for name, made in (("plain", noisy(Flow())), ("mean", with_mean(noisy(Flow())))):
        assert restore_solver(json.loads(json.dumps(describe_solver(made)))) == made
        save_solver(tmp_path / name, made, Flow())
        other = load_solver(tmp_path / name, CosineVPSDE())
        x1 = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64)

        def run(sde: SDE, solver: NoisyTable, x1: Tensor = x1) -> Tensor:
            return solve(sde.probability_flow(mixture(sde)), x1, solver=solver, seeds=[5]).x

        assert isinstance(other, NoisyTable)
        torch.testing.assert_close(run(CosineVPSDE(), other), run(Flow(), made), rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="another process"):
            run(VPSDE(), made)


def with_mean(made: NoisyTable) -> NoisyTable:
    assert isinstance(made.table, Table)
    return NoisyTable(MeanStart(made.table, (0.1, 0.0, 0.2)), made.noise[1:])


def test_files_of_tables_without_noise_are_as_before(tmp_path: Path) -> None:
    table = Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,))))
    assert describe_solver(table) == {
        "class": "Table",
        "settings": {"times": [1.0, 0.5, 0.0], "rows": [[0.5, [0.5]], [0.0, [1.0]]], "source": "a table", "rho": []},
    }
    save_solver(tmp_path / "s.json", table, Flow())
    assert sorted(json.loads((tmp_path / "s.json").read_text())) == ["format", "kind", "rho", "rows", "source"]


@pytest.mark.parametrize("noise", ["[0.1]", "[0.1, -1.0, 0.0]", "[0.1, 0.1, 0.1]", "[0.0, 0.0, 0.0]", '["x", 0, 0]'])
def test_a_file_with_impossible_noise_is_refused(tmp_path: Path, noise: str) -> None:
    save_solver(tmp_path / "s.json", noisy(Flow(), 3), Flow())
    content = json.loads((tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps(content | {"noise": json.loads(noise)}))
    with pytest.raises(ValueError, match="is damaged"):
        load_solver(tmp_path / "s.json", Flow())


def test_bad_input_is_named() -> None:
    sde = VPSDE()
    table = compile_table(SOLVERS["ddim"], sde, 3)
    for strengths, message in (
        ([0.5], "3 steps take 2 strengths; got 1"),
        ([0.5, 1.5], "between 0 and 1"),
        ([0.5, float("nan")], "between 0 and 1"),
        ([0.0, 0.0], "without noise"),
    ):
        with pytest.raises(ValueError, match=message):
            renoised(table, sde, strengths)
    with pytest.raises(ValueError, match="order is 1 or 2"):
        renoised(table, sde, [0.5, 0.5], order=3)
    for noise, message in (
        ((0.1, 0.0), "3 steps has noise after each"),
        ((0.1, -0.1, 0.0), "not negative"),
        ((0.1, float("inf"), 0.0), "finite"),
        ((0.1, 0.1, 0.1), "would stay in the sample"),
        ((0.0, 0.0, 0.0), "without noise"),
    ):
        with pytest.raises(ValueError, match=message):
            NoisyTable(table, noise)
    with pytest.raises(ValueError, match="deterministic solvers"):
        compile_table(noisy(sde), sde, 5)
    with pytest.raises(ValueError, match="made for 5 evaluations, not for 4"):
        sample(mixture(sde), 2, solver=noisy(sde), nfe=4, shape=(3,))


def test_one_evaluation_at_a_time_it_gives_the_samples_of_solve() -> None:
    """As a pipeline drives it, which diffusers and k-diffusion do."""
    sde = VPSDE()
    table, model = noisy(sde), mixture(sde)
    problem = sde.probability_flow(model)
    x1, seeds = sde.prior((4, 3), seeds=range(4), dtype=torch.float64), torch.arange(4)
    run = DrivenRun(asked_times(problem, (3,), table), lambda times: BrownianPath.along(seeds, problem.clock, times))
    x = x1
    for t in table.grid[:-1]:
        x = run.answer(x, model.denoise(x, torch.full((4,), t, dtype=torch.float64)))
    assert run.done and torch.equal(x, solve(problem, x1, solver=table, seeds=seeds).x)
