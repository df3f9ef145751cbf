"""Strengths of noise: chosen where a biased model needs them, left out where it does not, and how they are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, sample, tune
from sde_diffusion.cli import app
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.metrics import Moments, frechet_difference
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.tuned_solver import Tuned, load_tuned, save_tuned, tuned_folder
from sde_diffusion.tuning import tuned_each
from sde_diffusion.tuning.candidates import Found
from sde_diffusion.tuning.effort import Clock, Effort, Reporter
from sde_diffusion.tuning.fit import TableFit
from sde_diffusion.tuning.stochastic.decision import noise_choice
from sde_diffusion.tuning.stochastic.law_distance import ENDPOINTS, GIVEN, LawDistance
from sde_diffusion.tuning.stochastic.strengths import Drawn, best_strengths, changes, families, groups
from sde_diffusion.tuning.task import Task
from solvers import SOLVERS, solve
from solvers.fitted.compile import compile_table
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.noisy_table import NoisyTable, renoised
from solvers.fitted.table import Table

POINTS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -0.8]])
SDE = VPSDE()
EXACT = GaussianMixture(POINTS, std=0.2, sde=SDE)
STEPS = 8


def real(n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return POINTS[torch.randint(3, (n,), generator=g)] + 0.2 * torch.randn(n, 2, generator=g)


class Biased(nn.Module):
    """The exact prediction, moved along the first axis near sigma / alpha = 3: a flow keeps what it is moved there."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift, self.calls = shift, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += len(x)
        alpha, sigma = SDE.marginal(t.double())
        bump = torch.exp(-torch.log(sigma / alpha / 3).square()).reshape(-1, 1)
        return EXACT.denoise(x, t) + (self.shift * bump * torch.tensor([1.0, 0.0])).to(x)


def model_of(shift: float) -> ScoreModel:
    return ScoreModel(Biased(shift), SDE, predicts="data").eval()


def problem(model: ScoreModel, base: Table | MeanStart) -> tuple[Task, Found, Tuned]:
    """A task without reference solutions, and a solver that tuning could have found."""
    x1 = SDE.prior((16, 2), seeds=range(16))
    fit = TableFit(lambda x, t, rows: model.denoise(x, t), SDE, x1, x1)
    task = Task(model, fit, fit, 0.0, Effort(16, 16, 64, 1.0, False, 1e-6))
    found = Found(task, Reporter(None, Clock(None)))
    found.offer("default", base)
    return task, found, Tuned(found.table, STEPS, found.error, found.error, dict(found.stages), 0.0)


def drawn(model: ScoreModel, base: Table | MeanStart, law: LawDistance) -> Drawn:
    fit = TableFit(lambda x, t, rows: model.denoise(x, t), SDE, SDE.prior((4, 2), seeds=range(4)), torch.zeros(4, 2))
    return Drawn(base, fit, 4, (2,), law, seed=0, first=1000)


def decided(shift: float, n: int = 1000) -> Tuned:
    model = model_of(shift)
    choice = noise_choice(model, (2,), 0, None, real(4000), n, False)
    task, found, best = problem(model, compile_table(SOLVERS["unipc"], SDE, STEPS))
    return choice.decided(task, found, best, choice.on(task), Clock(None))


def test_noise_is_taken_where_the_score_is_biased_and_is_better_on_new_samples() -> None:
    made = decided(0.5)
    assert isinstance(made.table, NoisyTable) and made.noise is not None and made.noise["taken"]
    assert made.noise["difference"][2] < 0 and made.noise["distance"] < 0.8 * made.noise["distance_without"]
    assert "noise by features pixels" in made.table.source
    # Noise in the last steps, after the bias.
    assert made.noise["strengths"][0] == 0 < made.noise["strengths"][-1]
    assert sum(n > 0 for n in made.table.noise) == sum(eta > 0 for eta in made.noise["strengths"])
    model = model_of(0.5)
    other = {
        name: sample(model, 2000, solver=solver, nfe=STEPS, seed=7, shape=(2,))
        for name, solver in (("with", made.table), ("without", made.table.table), ("unipc", SOLVERS["unipc"]))
    }
    gap = frechet_difference(other["with"], other["unipc"], Moments.of(real(20_000, seed=1)))
    assert gap.interval[1] < 0, gap


def test_noise_is_not_taken_where_the_model_is_exact_and_the_table_accurate() -> None:
    made = decided(0.0)
    assert isinstance(made.table, Table) and made.noise is not None and not made.noise["taken"]
    assert made.noise["difference"][2] > 0


@pytest.mark.parametrize("start", [False, True])
def test_candidates_share_their_first_steps_and_are_still_the_samples_of_solve(start: bool) -> None:
    model = model_of(0.3)
    plain = compile_table(SOLVERS["unipc"], SDE, STEPS + start)
    base = MeanStart(plain, tuple(POINTS.mean(0).tolist())) if start else plain
    law = LawDistance(make_extractor(lambda x: x), lambda x: x, real(100), GIVEN)
    made = drawn(model, base, law)
    wanted = [(0.5,) * 7, (0.0,) * 7, (0.0,) * 5 + (1.0, 0.5), (0.0,) * 6 + (1.0,), (0.0, 1.0) + (0.0,) * 5]
    calls = model.network.calls
    made.of(wanted, 10)  # the rest is drawn for the others alone
    features = made.of(wanted, 200)
    spent = model.network.calls - calls
    assert spent == 200 * (STEPS + sum(STEPS - 1 - k for k in (0, 5, 6, 1)))
    seeds = torch.arange(1000, 1200)
    x1 = SDE.prior((200, 2), seeds=seeds)
    for strengths, found in zip(wanted, features, strict=True):
        solver = renoised(base, SDE, strengths) if any(strengths) else base
        expected = solve(SDE.probability_flow(model), x1, solver=solver, seeds=seeds).x
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.of_solver(base, 200), features[1], rtol=0, atol=1e-6)


def test_the_search_finds_strengths_that_it_did_not_begin_with() -> None:
    """The distance counts how far the strengths, read off the samples, are from (0, 0, 1, 0.5)."""
    target = torch.tensor([0.0, 0.0, 1.0, 0.5])

    class Exactly(LawDistance):
        def distance(self, features: Tensor, testing: bool = False) -> float:
            return float((features.mean(0) - target).square().sum())

        def difference(self, a: Tensor, b: Tensor, testing: bool = False) -> Any:
            gap = self.distance(a) - self.distance(b)
            return type("Estimate", (), {"value": gap, "standard_error": 0.0, "interval": (gap, gap)})()

    class Read(Drawn):
        def of(self, wanted: Any, n: int) -> list[Tensor]:
            return [torch.tensor(strengths).expand(n, 4) for strengths in wanted]

    base = compile_table(SOLVERS["ddim"], SDE, 5)
    law = Exactly(make_extractor(lambda x: x), lambda x: x, torch.zeros(100, 4), GIVEN)
    fit = TableFit(lambda x, t, rows: x, SDE, torch.zeros(1, 2), torch.zeros(1, 2))
    found = best_strengths(Read(base, fit, 1, (2,), law, 0, 0), 100)
    assert found not in families(4) and found == (0.0, 0.0, 1.0, 0.5)


def test_families_and_changes_are_strengths_of_every_step() -> None:
    for n in range(1, 20):
        every = families(n)
        assert len(set(every)) == len(every) and all(len(s) == n and any(s) and max(s) <= 1 for s in every)
        assert (1.0,) * n in every
        for strengths in every:
            for first, last in groups(n):
                for changed in changes(strengths, first, last):
                    assert any(changed) and len(changed) == n and changed != strengths
                    assert (changed[:first], changed[last:]) == (strengths[:first], strengths[last:])


def test_a_sample_that_is_not_finite_loses() -> None:
    law = LawDistance(make_extractor(lambda x: x), lambda x: x, real(400), GIVEN)
    x = real(100)
    bad = x.clone()
    bad[3, 1] = float("inf")
    assert law.distance(law.of(bad)) == float("inf") > law.distance(law.of(x))
    assert law.difference(law.of(bad), law.of(x)).value == float("inf")


def test_the_halves_of_the_real_samples_are_apart() -> None:
    """Odd samples are moved: the distance of the decision sees them, and that of the choice does not."""
    both = real(400).double()
    both[1::2] += 1
    law = LawDistance(make_extractor(lambda x: x), lambda x: x, both, GIVEN)
    x = real(400, seed=1).double()
    assert law.distance(x) < 0.1 and law.distance(x, testing=True) > 1


@pytest.mark.slow
def test_tune_with_noise_says_what_it_did_and_is_the_same_every_time(tmp_path: Path) -> None:
    model = model_of(0.5)
    options = {"shape": (2,), "noise_samples": 16, "held_out": 16, "progress": False, "law_samples": 400}
    first, second = (next(tuned_each(model, [6], stochastic=True, real=real(4000), **options)) for _ in range(2))
    plain = next(tuned_each(model, [6], **options))
    assert first.table == second.table and first.noise == second.noise and isinstance(first.table, NoisyTable)
    assert first.noise is not None and first.noise["real"] == GIVEN and first.noise["samples"] == 400
    # The errors are those of the solver without noise, which tuning finds as without noise.
    assert (first.error, first.stages) == (plain.error, plain.stages) and plain.noise is None
    ends = next(tuned_each(model, [3], stochastic=True, **options))
    assert ends.noise is not None and ends.noise["real"] == ENDPOINTS
    assert next(tuned_each(model, [1], stochastic=True, real=real(100), **options)).noise is None


def test_a_guided_model_has_noise_for_its_conditions() -> None:
    """The condition of a drawn sample is that of its place: with noise every sample goes to its own mode."""

    class Labelled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return POINTS[label].to(x)

    model = ScoreModel(Labelled(), SDE, predicts="data").eval()
    labels = torch.arange(32) % 3
    made = next(
        tuned_each(
            model, [3], shape=(2,), noise_samples=16, held_out=16, stochastic=True, real=POINTS.repeat(200, 1)
            + 0.01 * torch.randn(600, 2, generator=torch.Generator().manual_seed(0)), law_samples=48, label=labels,
            progress=False,
        )
    )  # fmt: skip
    assert made.noise is not None and abs(made.noise["distance"]) < 0.05  # three modes in equal shares


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stochastic": False}, "give stochastic=True"),
        ({"real": real(20)}, "16 real samples for the choice and 16 for the decision; got 20 given samples"),
        ({"real": real(100)[:, :1]}, r"samples of shape \(2,\); the real ones have shape \(100, 1\)"),
        ({"real": real(100) / 0}, "not finite"),
        ({"real": real(100).long()}, "floats; got a tensor of torch.int64"),
        ({"real": [[0.0, 1.0]] * 100}, "floats; got list"),
        ({"law_samples": 5}, "16 samples or more; got law_samples = 5"),
        ({"law_samples": 0}, "law_samples"),
        ({"real": None, "noise_samples": 16, "held_out": 4}, "got 20 endpoints of the reference solution"),
        ({"features": "mnist"}, "take samples of shape"),
        ({"features": "pca"}, "fitted to data"),
        ({"features": lambda x: x @ torch.ones(7, 1)}, "fail on samples"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("reference solutions were computed")

    monkeypatch.setattr("sde_diffusion.tuning.task.converged", never)
    with pytest.raises((ValueError, TypeError), match=message):
        tune(EXACT, nfe=3, shape=(2,), **{"stochastic": True, "real": real(100), **options})


def test_commands_take_a_solver_with_noise_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are made again to the bit, and do not depend on their batch."""
    monkeypatch.chdir(tmp_path)
    stored = find_model("bundled")
    sde = load(stored).sde
    table = renoised(compile_table(SOLVERS["unipc"], sde, 3), sde, [0.5, 1.0]).on(sde)
    path = tuned_folder(stored) / "nfe-3.json"
    save_tuned(path, Tuned(table, 3, 0.1, 0.1, {}, 0.0), stored)
    assert load_tuned(path, stored, 3) == table

    def sdediff(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    sdediff("sample", "bundled", "--solver", "tuned", "--nfe", "3", "--n", "4", "--out", "drawn")
    assert "bit-equal" in sdediff("sample", "--record", "drawn/samples.json", "--out", "again")
    sdediff("sample", "bundled", "--solver", "tuned", "--nfe", "3", "--n", "4", "--batch-size", "1", "--out", "single")
    one, four = (torch.from_numpy(np.load(tmp_path / name / "samples.npz")["x"]) for name in ("single", "drawn"))
    torch.testing.assert_close(one, four, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_command_judges_by_the_training_data_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def sdediff(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == code, done.output
        return done.output

    counts = ("--noise-samples", "16", "--held-out", "16", "--law-samples", "128")
    said = sdediff("tune", "bundled", "--nfe", "2", *counts, "--stochastic")
    assert "Frechet distance of the features digits to given samples" in " ".join(said.split())
    record = json.loads(next(tmp_path.rglob("nfe-2.json")).read_text())
    assert record["noise"]["samples"] == 128 and len(record["noise"]["strengths"]) == 1
    assert record["noise"]["taken"] == (record["solver"]["class"] == "NoisyTable")
    said = sdediff(
        "evaluate", "bundled", "--solver", "tuned", "--nfe", "2", "--n", "100", "--draws", "2", "--metrics", "kid"
    )
    assert "fitted to these features (digits)" in " ".join(said.split())
    assert "only --stochastic" in sdediff("tune", "bundled", "--law-samples", "128", code=2)
