"""Paired errors are those of the samples, differences are judged sample by sample, failures are rows with a reason."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sde_diffusion import VPSDE, Gaussian, ScoreModel, frechet_distance, sample
from sde_diffusion.comparison.comparison import compare
from sde_diffusion.comparison.report import as_dict, save_comparison, summary, table
from sde_diffusion.comparison.result import TIE, Comparison, ComparisonRow, against
from sde_diffusion.comparison.simultaneous import critical_value, interval
from sde_diffusion.evaluation.metrics import sliced_wasserstein
from sde_diffusion.sampling.settings import seeds_of
from solvers import SOLVERS, Solver

MODEL = Gaussian(torch.tensor([1.0, 0.0]), torch.tensor([[0.5, 0.2], [0.2, 0.1]]), sde=VPSDE())
DATA = MODEL.draw(300, seed=5)


def pick(*names: str) -> dict[str, Solver]:
    return {name: SOLVERS[name] for name in names}


def test_rows_are_the_samples_of_the_same_seed_beside_the_exact_flow() -> None:
    found = compare(MODEL, pick("ddim", "sde"), [6, 12], n=50, paired=20, seed=3, data=DATA, reference_steps=200)
    x1 = MODEL.sde.prior((20, 2), seeds=seeds_of(3, 20))
    exact = MODEL.flow(x1.double(), 1.0, 0.0)
    assert [(row.solver, row.nfe) for row in found.rows] == [("ddim", 6), ("ddim", 12), ("sde", 6), ("sde", 12)]
    for row in found.rows:
        x = sample(MODEL, 50, solver=row.solver, nfe=row.nfe, seed=3)
        assert row.frechet.value + row.frechet.bias == pytest.approx(frechet_distance(x, DATA), rel=1e-9)
        assert row.frechet.standard_error > 0
        assert row.sliced == pytest.approx(sliced_wasserstein(x, DATA, projections=128), rel=1e-9)
        assert row.used == row.nfe
        if row.solver == "sde":
            assert row.errors is None and found.verdict(row) is None
        else:
            errors = (x[:20].double() - exact).square().mean(1).sqrt()
            assert torch.allclose(row.errors, errors, rtol=0, atol=2 * found.reference_error)
            assert row.error == pytest.approx(float(errors.mean()), abs=found.reference_error)


def made(**errors: list[float]) -> Comparison:
    rows = [
        ComparisonRow(name, 8, 8.0, torch.tensor(e, dtype=torch.float64), None, None, 0.1) for name, e in errors.items()
    ]
    return Comparison(rows, 4, 4, 0, 1e-6)


def test_a_difference_within_chance_is_called_so() -> None:
    found = made(a=[0.1, 0.2, 0.3, 0.2], b=[0.15, 0.17, 0.33, 0.19], c=[0.2, 0.3, 0.4, 0.3], d=[0.1, 0.2, 0.3, 0.2])
    a, b, c, _ = found.rows
    assert against(found, a) == "smallest error, 2 not separated from it"
    assert found.verdict(found.rows[3]).tie  # the same errors as the best
    assert found.verdict(b).tie and against(found, b).startswith(TIE)
    # c is worse than a by 0.1 on every noise: paired, that is certain, though the two sets of errors overlap
    verdict = found.verdict(c)
    assert (verdict.best, verdict.low, verdict.high) == ("a", pytest.approx(0.1), pytest.approx(0.1))
    assert against(found, c) == "+0.1 to +0.1"
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(found))
    assert TIE in console.export_text()


def test_budgets_are_judged_apart() -> None:
    rows = [
        ComparisonRow("a", 5, 5.0, torch.full((4,), 0.5), None, None, 0.1),
        ComparisonRow("b", 10, 10.0, torch.full((4,), 0.1), None, None, 0.1),
    ]
    found = Comparison(rows, 4, 4, 0, 1e-6)
    assert [against(found, row) for row in rows] == ["best", "best"]


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = sum(low <= 0 <= high for low, high in (interval(rng.standard_normal(32)) for _ in range(150)))
    assert 0.9 < inside / 150 < 0.995  # standard error 0.018


def false_differences(solvers: int, n: int, law: str, comparisons: int) -> float:
    """The share of comparisons of equal solvers in which one is called worse than the best."""
    rng, found = np.random.default_rng(solvers * n), 0
    for _ in range(comparisons):
        errors = torch.from_numpy(rng.standard_normal((solvers, n)))
        errors = 5 + errors if law == "normal" else errors.exp()
        rows = [ComparisonRow(str(k), 8, 8.0, e, None, None, 0.1) for k, e in enumerate(errors)]
        comparison = Comparison(rows, n, n, 0, None)
        found += any(not comparison.verdict(row).tie for row in rows)
    return found / comparisons


def test_of_six_equal_solvers_one_is_called_worse_in_5_percent_of_comparisons() -> None:
    assert abs(false_differences(6, 16, "log-normal", 150) - 0.05) < 0.045  # 2.5 standard errors of 0.018


@pytest.mark.slow
@pytest.mark.parametrize("law", ["normal", "log-normal"])
@pytest.mark.parametrize(("solvers", "n", "comparisons"), [(2, 16, 1000), (12, 16, 600), (6, 64, 500)])
def test_false_differences_are_as_rare_as_stated(solvers: int, n: int, comparisons: int, law: str) -> None:
    error = (0.05 * 0.95 / comparisons) ** 0.5  # 0.007 to 0.010
    assert abs(false_differences(solvers, n, law, comparisons) - 0.05) < 0.01 + 2 * error


def test_a_difference_that_is_there_is_found_and_its_size_is_in_the_interval() -> None:
    rng = np.random.default_rng(1)
    common = rng.exponential(size=64)  # how hard a noise is, for all
    shift = dict(zip("abcd", (0.0, 0.0, 0.2, 0.5), strict=True))
    found = made(**{k: (common + 0.2 * rng.standard_normal(64) + v).tolist() for k, v in shift.items()})
    verdicts = {row.solver: found.verdict(row) for row in found.rows}
    assert verdicts["a"].tie and verdicts["b"].tie
    for name in "cd":
        assert 0 < verdicts[name].low < shift[name] < verdicts[name].high < shift[name] + 0.25


def test_several_budgets_and_solvers_widen_the_intervals() -> None:
    rng = np.random.default_rng(0)
    values = [critical_value([rng.standard_normal((64, 2))] * budgets) for budgets in (1, 1, 3)]
    more = critical_value([rng.standard_normal((64, 6)), rng.standard_normal((64, 5))])
    assert 1.85 < values[0] < 2.15 < 2.8 < more < 3.6
    assert critical_value([np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]])]) > 4  # three noises: at least t's 4.3
    with pytest.raises(ValueError, match=r"at least 2 samples; got \[1\]"):
        interval(np.ones(1))


def test_what_cannot_run_is_a_row_with_the_reason() -> None:
    found = compare(MODEL, pick("ddim", "sde", "heun"), [1, 4], n=8, paired=8, data=DATA[:1], reference_steps=50)
    rows = {(row.solver, row.nfe): row for row in found.rows}
    assert rows["heun", 4].used == 3
    assert rows["ddim", 4].frechet is None and rows["ddim", 4].sliced is not None  # one sample of data in 2-D
    assert any("no Frechet distance" in line for line in summary(found))
    found = compare(MODEL, {"dear": Expensive(), **pick("ddim")}, [4], n=4, reference_steps=50)
    assert "needs at least 5" in against(found, found.rows[0]) and found.rows[1].error
    assert json.loads(json.dumps(as_dict(found), allow_nan=False))["rows"][0]["used"] is None
    with pytest.raises(ValueError, match=r"no solver could run: dear at 4: .* needs at least 5"):
        compare(MODEL, {"dear": Expensive()}, [4], n=4, reference_steps=50)


class Expensive(type(SOLVERS["ddim"])):  # type: ignore[misc]
    def evaluations(self, steps: int, finish: bool = True) -> int:
        return 5 * steps


def test_a_name_may_have_a_solver_for_each_budget() -> None:
    each = {4: SOLVERS["ddim"], 6: SOLVERS["unipc"]}
    found = compare(MODEL, {"mine": each, **pick("ddim", "unipc")}, [4, 6], n=8, paired=8, reference_steps=50)
    errors = {(row.solver, row.nfe): row.errors for row in found.rows}
    assert torch.equal(errors["mine", 4], errors["ddim", 4]) and torch.equal(errors["mine", 6], errors["unipc", 6])
    with pytest.raises(ValueError, match="'mine' has solvers for 4, 6 evaluations, and none for 5"):
        compare(MODEL, {"mine": each}, [5], n=8, paired=8)


def test_a_reference_that_is_too_coarse_is_named() -> None:
    coarse, fine = (Comparison(made(a=[0.1, 0.2]).rows, 2, 2, 0, error) for error in (0.01, 0.001))
    assert any("more than 1/20 of the smallest error, 0.15" in line for line in summary(coarse))
    assert not any("more than 1/20" in line for line in summary(fine))


def test_bad_input_is_refused() -> None:
    for budgets in ([0], [10, -1], []):
        with pytest.raises(ValueError, match=r"NFE of at least 1; got .* nfe"):
            compare(MODEL, pick("ddim"), budgets)
    for n, paired in ((1, 64), (8, 1)):
        with pytest.raises(ValueError, match=f"at least 2 samples; got n={n}, of which 1 are paired"):
            compare(MODEL, pick("ddim"), [5], n=n, paired=paired)
    with pytest.raises(ValueError, match="expected one solver or more"):
        compare(MODEL, {}, [5])
    broken = ScoreModel(lambda x, t: x * torch.nan, VPSDE(), shape=(2,))
    for name in ("ddim", "sde"):
        with pytest.raises(FloatingPointError, match="model returns NaN or inf"):
            compare(broken, pick(name), [5], n=4, reference_steps=20)


def test_a_failed_save_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(a=[0.1, 0.2], b=[0.2, 0.3])
    save_comparison(found, Path("whole"), {})
    assert sorted(p.name for p in Path("whole").iterdir()) == ["compare.json", "compare.png"]
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_comparison(found, Path("whole"), {})
    with pytest.raises(ValueError):
        save_comparison(found, Path("torn"), {"not": float("nan")})
    assert [p.name for p in Path().iterdir()] == ["whole"]
