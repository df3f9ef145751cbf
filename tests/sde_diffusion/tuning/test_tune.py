"""Tuning: never worse, repeatable, and its derivatives are those of the run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, tune
from sde_diffusion.cli import app
from sde_diffusion.guidance import Guided
from sde_diffusion.sampling.reference_solution import converged, rms
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.tuned_solver import find_tuned, load_tuned, save_tuned
from sde_diffusion.tuning import tuned_each, tuned_for
from sde_diffusion.tuning.default_pf_ode import mean_table
from sde_diffusion.tuning.effort import effort_for
from sde_diffusion.tuning.fit import TableFit, TableParameters, differences, run, sensitivities
from sde_diffusion.tuning.grid_families import spaced
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import ProbabilityFlow, fitted_table
from solvers.grids import GRIDS
from tests.evaluation_clock import evaluation_clock


def mixture(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return GaussianMixture(torch.randn(6, 3, dtype=dtype, generator=g), std=0.15, sde=VPSDE())


def fit_of(model, n=8):
    x1 = model.sde.prior((n, 3), seeds=range(n), dtype=torch.float64)
    return TableFit(lambda x, t, rows: model.denoise(x, t), model.sde, x1, converged(model, x1, steps=200)[0])


def test_sensitivities_are_differences_of_whole_runs():
    model = mixture()
    fit = fit_of(model)
    parameters = TableParameters.around(compile_table(SOLVERS["unipc"], model.sde, 5), fit, 0.8)
    q = 0.01 * torch.randn(parameters.total, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, jacobian = sensitivities(parameters, q, fit)
    table = parameters.table(q, fit)
    assert table is not None
    torch.testing.assert_close(x, run(table, fit), rtol=1e-12, atol=1e-12)
    for k in range(parameters.total):
        e = torch.zeros_like(q)
        e[k] = 1e-3
        forward = (run(parameters.table(q + e, fit), fit) - x) / 1e-3
        torch.testing.assert_close(jacobian[k], forward, rtol=1e-8, atol=1e-8, msg=str(k))


def test_differences_go_backward_where_there_is_nothing_forward():
    """The derivative of sin is cos, from either side; where there is neither side, nothing is known and 0 is taken."""

    def endpoints(q):
        if q[1] > 0.7 or abs(q[2] - 0.2) > 0:  # such as times that lose their order
            return None
        return [torch.sin(q[:2])[None]]

    q = torch.tensor([0.3, 0.7, 0.2], dtype=torch.float64)
    ((x, jacobian),) = differences(endpoints)(q)
    torch.testing.assert_close(x, torch.sin(q[:2])[None])
    expected = torch.zeros(3, 1, 2, dtype=torch.float64)
    expected[0, 0, 0], expected[1, 0, 1] = torch.cos(q[:2])
    torch.testing.assert_close(jacobian, expected, atol=1e-3, rtol=0)


def gated(nfe=5):
    table = fitted_table(VPSDE(), nfe)
    assert table is not None and table.gates[1] is not None
    return table


def test_the_default_takes_part_as_it_is():
    model = mixture()
    fit = fit_of(model)
    own = solve(model.sde.probability_flow(model), fit.x1, nfe=5).x
    torch.testing.assert_close(run(gated(), fit), own, rtol=1e-12, atol=1e-12)


def test_the_typical_table_has_the_mean_of_the_numbers_that_the_samples_had():
    model = mixture()
    fit = fit_of(model)
    one = TableFit(fit.denoise, fit.sde, fit.x1[3:4], fit.x0[3:4])
    torch.testing.assert_close(run(mean_table(gated(), one), one), run(gated(), one), rtol=1e-12, atol=1e-12)
    each = [mean_table(gated(), TableFit(fit.denoise, fit.sde, fit.x1[k : k + 1], fit.x0[k : k + 1])) for k in range(8)]
    for i, row in enumerate(mean_table(gated(), fit).rows):
        expected = torch.tensor([[table.rows[i].decay, *table.rows[i].weights] for table in each]).double().mean(0)
        torch.testing.assert_close(torch.tensor([row.decay, *row.weights]).double(), expected)


def test_the_default_is_kept_with_its_gates_where_nothing_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With endpoints that are the default's own, its error is zero and no table's is."""
    model = mixture(torch.float32)
    monkeypatch.setattr(
        "sde_diffusion.tuning.task.converged",
        lambda model, x1, **_: (solve(model.sde.probability_flow(model), x1, nfe=5).x, 0.0),
    )
    found = tuned_for(model, [5], shape=(3,), noise_samples=16, held_out=16)[5]
    assert isinstance(found.table, MixtureOfTables) and found.error == pytest.approx(0, abs=1e-6)
    stored = find_model("bundled")
    save_tuned(tmp_path / "nfe-5.json", found, stored, seed=0)
    again = load_tuned(tmp_path / "nfe-5.json", stored, 5)
    x1 = model.sde.prior((8, 3), seeds=range(8))
    ode = model.sde.probability_flow(model)
    assert again == found.table and torch.equal(solve(ode, x1, solver=again).x, solve(ode, x1, nfe=5).x)


def test_the_default_for_many_steps_takes_part_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its order depends on the sample, so no table is the same; where nothing is better it is kept itself."""
    model = mixture(torch.float32)
    monkeypatch.setattr(
        "sde_diffusion.tuning.task.converged",
        lambda model, x1, **_: (solve(model.sde.probability_flow(model), x1, nfe=17).x, 0.0),
    )
    monkeypatch.setattr("sde_diffusion.tuning.stages.search", lambda *_: [])
    found = tuned_for(model, [17], shape=(3,), noise_samples=16, held_out=16)[17]
    assert found.table == ProbabilityFlow(large=False) and found.error == pytest.approx(0, abs=1e-6)
    assert found.stages["default, one table"] > 1e-5
    stored = find_model("bundled")
    save_tuned(tmp_path / "nfe-17.json", found, stored, seed=0)
    assert load_tuned(tmp_path / "nfe-17.json", stored, 17) == found.table


@pytest.mark.parametrize("nfe", [1, 2, 3, 6])
def test_tuned_is_never_worse_and_uses_its_budget(nfe):
    model = mixture()
    found = tuned_for(model, [nfe], shape=(3,), noise_samples=32, held_out=32)[nfe]
    assert found.error <= found.default_error
    if nfe == 6:
        assert found.error < 0.7 * found.default_error
    # On samples that tuning never saw.
    x1 = model.sde.prior((128, 3), seeds=range(128), dtype=torch.float64)
    truth, _ = converged(model, x1, steps=400)
    out = solve(model.sde.probability_flow(model), x1, solver=found.table, nfe=nfe)
    assert set(out.nfe.tolist()) == {nfe}
    default = solve(model.sde.probability_flow(model), x1, solver="pf-ode", nfe=nfe).x
    assert float(rms(out.x - truth).mean()) < 1.1 * float(rms(default - truth).mean())


@pytest.mark.slow
def test_one_seed_gives_one_solver():
    model = mixture()
    tables = [tune(model, 3, shape=(3,), seed=5, noise_samples=16, held_out=16) for _ in range(2)]
    assert tables[0] == tables[1]
    assert tune(model, 3, shape=(3,), seed=6, noise_samples=16, held_out=16) != tables[0]


def test_conditions_follow_their_samples():
    """A model whose mean is its condition: tuning must see each noise with its own."""

    class Shifted(torch.nn.Module):
        def forward(self, x, t, mean):
            alpha, sigma = (c[:, None] for c in VPSDE().marginal(t.double()))
            centre = x - alpha * mean
            return mean + 0.09 * alpha * centre / (0.09 * alpha**2 + sigma**2)

    model = ScoreModel(Shifted(), VPSDE(), "data", shape=(2,))
    torch.set_default_dtype(torch.float64)
    try:
        mean = torch.arange(48.0)[:, None] % 5 - 2
        found = tuned_for(model, [4], noise_samples=16, held_out=32, mean=mean)[4]
    finally:
        torch.set_default_dtype(torch.float32)
    # Gaussian data of one width are a linear problem: the fit is good to the ridge, with any mean.
    assert found.error < 0.3 * found.default_error
    with pytest.raises(ValueError, match="'mean' has 3 entries for 48 noise samples"):
        tune(model, 4, noise_samples=16, held_out=32, mean=mean[:3])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 1 for this model; got 0"):
        tune(mixture(), 0, shape=(3,))
    with pytest.raises(ValueError, match="does not know the shape"):
        tune(ScoreModel(lambda x, t: x, VPSDE()), 4)
    with pytest.raises(ValueError, match="at least 16 noise samples"):
        tune(mixture(), 4, shape=(3,), noise_samples=3)
    lost = ScoreModel(lambda x, t: x * float("nan"), VPSDE(), shape=(3,))
    with pytest.raises(FloatingPointError, match="NaN"):
        tune(lost, 4, noise_samples=16, held_out=2)


def test_files_hold_the_solver_and_refuse_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    stored = find_model("bundled")
    found = tuned_for(mixture(), [3], shape=(3,), noise_samples=16, held_out=16)[3]
    path = tmp_path / "tuned" / "nfe-3.json"
    save_tuned(path, found, stored, seed=0)
    assert load_tuned(path, stored, 3) == found.table
    assert find_tuned(stored, None) == found.table
    with pytest.raises(ValueError, match="made for 3 evaluations, and 4"):
        load_tuned(path, stored, 4)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "model": {"sha256": "0" * 64, "step": 7}}))
    with pytest.raises(ValueError, match=r"000000000000.*step 7") as refused:
        load_tuned(path, stored, 3)
    assert stored.sha256[:12] in str(refused.value)
    with pytest.raises(FileNotFoundError, match="sdediff tune"):
        find_tuned(stored, 9)


def test_a_solver_is_stored_before_the_next_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = tuned_for(mixture(), [2], shape=(3,), noise_samples=16, held_out=16)[2]

    def interrupted(*args, **options):
        yield made
        raise KeyboardInterrupt

    monkeypatch.setattr("sde_diffusion.cli.commands.tune.tuned_each", interrupted)
    done = CliRunner().invoke(app, ["tune", "bundled", "--nfe", "2,3", "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["nfe-2.json"]
    assert load_tuned(tmp_path / "nfe-2.json", find_model("bundled"), 2) == made.table


@pytest.mark.slow
def test_the_command_makes_a_solver_that_sample_uses_and_makes_again(tmp_path: Path):
    def sdediff(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sde_diffusion", *args], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    said = sdediff("tune", "bundled", "--nfe", "2", "--noise-samples", "16", "--held-out", "16")
    assert "use it: sdediff sample bundled --nfe 2" in said
    first = (tmp_path / "tuned" / "nfe-2.json").read_bytes()
    sdediff("tune", "bundled", "--nfe", "2", "--noise-samples", "16", "--held-out", "16")
    assert (tmp_path / "tuned" / "nfe-2.json").read_bytes() == first
    assert [p.name for p in (tmp_path / "tuned").iterdir()] == ["nfe-2.json"]
    sdediff("sample", "bundled", "--solver", "tuned", "--n", "4", "--out", "drawn")
    assert "bit-equal" in sdediff("sample", "--record", "drawn/samples.json", "--out", "again")


def test_spacings_are_even_in_what_they_name():
    sde = VPSDE()
    for kind, even in {
        "power-2": lambda t, rho: t.sqrt(),
        "angle": lambda t, rho: rho.atan(),
        "angle-0.5": lambda t, rho: (2 * rho).atan(),
        "flow-2": lambda t, rho: rho / (2 + rho),
        "karras": lambda t, rho: rho ** (1 / 7),
        "log-snr": lambda t, rho: rho.log(),
        "sine": lambda t, rho: rho.atan().sin().sqrt().asin(),
    }.items():
        t = spaced(sde, kind, 9, 0.05)
        alpha, sigma = sde.marginal(t[:-1])
        steps = even(t[:-1], sigma / alpha).diff()
        assert float(steps.std() / steps.abs().mean()) < 1e-6, kind
        assert t[0] == 1 and t[-1] == 0 and abs(float(sigma[-1] / alpha[-1]) - 0.05) < 1e-9
    for name in ("karras", "angle", "log-snr"):
        torch.testing.assert_close(spaced(sde, name, 9, 4 / 81), GRIDS[name](sde, 9), rtol=1e-9, atol=1e-12)


def test_a_time_is_kept_said_before_and_worth_its_while() -> None:
    model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -0.8]]), 0.15, sde=VPSDE())
    seen, efforts, clock = [], [], evaluation_clock(model, 1e-4)
    (found,) = tuned_each(model, [5], minutes=0.1, timer=clock, progress=seen.append, on_effort=efforts.append)
    assert clock() < 7  # 6 s, and an iteration at most beyond it
    assert found.error < 0.9 * found.default_error
    (effort,) = efforts
    assert effort.seconds == 6 and effort.reference_steps >= 48 and "about 6 s" in str(effort)
    shares = [p.share for p in seen]
    assert shares == sorted(shares) and shares[-1] == 1
    assert seen[0].gain is None and seen[-1].gain == pytest.approx(found.error / found.default_error)
    assert all(0 <= p.left <= 6 for p in seen)


def test_what_a_time_pays_for() -> None:
    short, long = (effort_for(seconds, 0.005, [8], 128, 128) for seconds in (20.0, 600.0))
    assert short.noise_samples + short.held_out < 25 and long.noise_samples + long.held_out == 454
    least = effort_for(1.0, 0.05, [8], 128, 128)
    assert (least.noise_samples, least.held_out) == (4, 4)
    assert long.reference_steps > short.reference_steps == 48
    cheap = [effort_for(600.0, 1e-5, [8], 128, 128, most=most) for most in (2048, 700, 1)]
    assert [e.noise_samples + e.held_out for e in cheap] == [2048, 700, 32] and cheap[0].reference_steps == 256
    whole = effort_for(None, 0.005, [8], 128, 128)
    assert (whole.noise_samples, whole.held_out, whole.reference_steps) == (128, 128, 256) and whole.seconds > 600


def test_bad_times_and_unknown_arguments_are_refused() -> None:
    model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.15, sde=VPSDE())
    for minutes in (0, -1, math.inf):
        with pytest.raises(ValueError, match="a positive number; got"):
            tune(model, 4, minutes=minutes)
    with pytest.raises(TypeError, match="minute"):
        tune(model, 4, minute=1)
    with pytest.raises((TypeError, ValueError), match=r"8 or more; got \[3\]|'label'"):
        tune(model, 4, minutes=1, label=torch.zeros(3))


def test_conditions_are_tensors_within_dicts_flags_and_shared_values_too() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, text: dict[str, Any], strength: float) -> Tensor:
        seen.append((len(x), len(text["rows"]), len(text["shared"]), strength))
        alpha, sigma = (c.to(x).reshape(-1, 1) for c in VPSDE().marginal(t))
        mean = strength * text["rows"] + text["shared"].mean()
        return sigma * (x - alpha * mean) / (0.04 * alpha**2 + sigma**2)

    model = ScoreModel(network, VPSDE(), shape=(1,))
    rows = torch.linspace(-1, 1, 24).reshape(24, 1)
    text = {"rows": rows, "shared": torch.ones(3)}
    solver = tune(model, 4, noise_samples=16, held_out=8, condition={"text": text, "strength": 2.0})
    assert solver.evaluations(4) == 4
    assert all(n == of and shared == 3 and strength == 2.0 for n, of, shared, strength in seen)
    with pytest.raises(ValueError, match="23 entries for 24 noise samples"):
        tune(model, 4, noise_samples=16, held_out=8, condition={"text": rows[:23], "strength": 2.0})


def test_a_null_with_a_row_for_each_sample_is_cut_with_its_condition_when_the_time_is_given() -> None:
    """Each null belongs to its sample: here null = -condition, so that a call tells whether both were cut alike."""
    wrong = []

    def network(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        if len(x) % 2 == 0 and not torch.equal(text[: len(x) // 2], -text[len(x) // 2 :]):
            wrong.append(text)
        alpha, sigma = (c.to(x).reshape(-1, 1) for c in VPSDE().marginal(t))
        return sigma * (x - alpha * text) / (0.04 * alpha**2 + sigma**2)

    plain = ScoreModel(network, VPSDE(), shape=(1,))
    text = torch.linspace(0.1, 1, 3000).reshape(3000, 1)
    found = tuned_for(Guided(plain, 1.5, null={"text": -text}), [4], minutes=0.01, text=text)[4]
    assert not wrong and 8 <= found.noise_samples + found.held_out < 3000
