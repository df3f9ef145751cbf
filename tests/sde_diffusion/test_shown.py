"""Results show themselves: in one line, as a table, as a figure with error bars, and as files for a paper."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, evaluate
from sde_diffusion.comparison import Comparison, compare
from sde_diffusion.data import Data, load_data
from sde_diffusion.data.dataset import as_data
from sde_diffusion.evaluation import Evaluation
from sde_diffusion.evaluation.features import make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.likelihood import log_likelihood
from sde_diffusion.sampling.sampler import sample
from solvers import SOLVERS, Solution, solve
from solvers.display import Displayed

MODEL = GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, 0.0]]), std=0.2, sde=VPSDE())


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    solvers = {name: SOLVERS[name] for name in ("ddim", "pf-ode", "sde")}
    return compare(MODEL, solvers, [4, 8], n=32, paired=16, data=MODEL.draw(200, seed=1), reference_steps=60)


def solution(shape: tuple[int, ...] = (2,)) -> Solution:
    model = ScoreModel(lambda x, t: torch.zeros_like(x), VPSDE(), shape=shape)
    return solve(model.sde.probability_flow(model), model.sde.prior((12, *shape), seeds=range(12)), nfe=5)


def test_a_repr_is_one_line(comparison: Comparison) -> None:
    assert repr(comparison) == "Comparison(ddim, pf-ode, sde at 4, 8 NFE, 32 samples of seed 0, 16 paired)"
    assert repr(solution()) == "Solution(12 samples (2,), 5 NFE, 5 intervals, t = 1 to 0, ok)"
    assert repr(load_data("digits")) == "Data('digits': 1500 images (1, 8, 8), 10 classes)"
    sde = "VPSDE(beta_min=0.1, beta_max=20.0)"
    assert repr(MODEL) == f"GaussianMixture(exact, {sde}, predicts 'data', shape (2,))"
    network = torch.nn.Linear(2, 2)
    assert (
        repr(ScoreModel(network, VPSDE())) == f"ScoreModel(Linear of 6 parameters, {sde}, predicts 'noise', shape None)"
    )


def test_the_table_of_a_comparison_has_values_and_intervals(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert [row["nfe"] for row in rows] == ["4"] * 3 + ["8"] * 3
    assert [row["solver"] for row in rows][2::3] == ["sde", "sde"]  # without an error, so last
    for row, found in zip(rows, comparison.ranked(), strict=True):
        assert float(row["frechet_low"]) < float(row["frechet"]) < float(row["frechet_high"])
        assert float(row["frechet"]) == found.frechet.value
        if found.errors is not None:
            half = 2.131449545559323 * float(found.errors.std()) / 4  # t of 15 degrees of freedom, 16 samples
            assert float(row["error"]) == found.error
            assert float(row["error_high"]) == pytest.approx(found.error + half)
    assert comparison.to_latex().count(r"\\") == 7 and "<table>" in comparison._repr_html_()


def test_the_figure_of_a_comparison_has_the_intervals_as_bars(comparison: Comparison) -> None:
    error, frechet = comparison.plot().axes
    assert error.get_xscale() == error.get_yscale() == "log"
    assert len(frechet.containers) == 3 and len(error.containers) == 2  # the stochastic solver has no error
    (bars,) = error.containers[0].lines[2]
    _, value, low, high = comparison.curves("error")["ddim"][0]
    assert [y for _, y in bars.get_segments()[0]] == pytest.approx([low, high]) and low < value < high


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".csv", ".tex", ".html", ".json"])
def test_results_are_saved_by_the_name_of_the_file(comparison: Comparison, tmp_path: Path, suffix: str) -> None:
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".csv": b"solver,", ".tex": b"\\begin",
             ".html": b"<table>", ".json": b"[\n"}[suffix]  # fmt: skip
    assert comparison.save(tmp_path / f"a{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("shape", [(2,), (5,), (1,), (1, 4, 4), (3, 4, 4), (2, 16)])
def test_samples_of_every_kind_have_a_figure(shape: tuple[int, ...]) -> None:
    made = solution(shape)
    assert len(made.plot().axes) == {(2,): 1, (5,): 16, (1,): 1, (1, 4, 4): 12, (3, 4, 4): 12, (2, 16): 2}[shape]
    assert [record["nfe"] for record in made.table().records] == [5] * 12


def test_volumes_have_none_and_the_error_says_what_has() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\) have no figure; expected images"):
        solution((1, 2, 2, 2)).plot()


def test_data_count_their_classes() -> None:
    data = as_data([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], labels=[7, 9, 9], name="three")
    facts = {record["fact"]: record["value"] for record in data.table().records}
    assert (facts["class 7"], facts["class 9"], facts["samples"], facts["mean"]) == (1, 2, 3, 2.5)
    assert len(data.plot().axes[0].collections[0].get_offsets()) == 3


def test_an_evaluation_is_a_dict_that_shows_itself() -> None:
    real = load_data("moons")
    reference = FeatureStatistics.of(real, make_extractor("pixels"))
    shares: list[float] = []
    found = evaluate(real.x[:400], reference, metrics=["frechet", "kid"], draws=4, progress=shares.append)
    assert isinstance(found, Evaluation) and set(found) == {"frechet", "kid"}
    assert shares == sorted(shares) and shares[-1] == 1
    record = found.table().records[0]
    assert (record["low"], record["high"]) == found["frechet"].interval
    assert repr(found).startswith("Evaluation(frechet ") and len(found.plot().axes) == 2


def test_pandas_has_the_values_of_a_comparison_at_full_precision(comparison: Comparison) -> None:
    pytest.importorskip("pandas")
    frame = comparison.to_pandas()
    ranked = comparison.ranked()
    assert list(zip(frame["solver"], frame["nfe"], strict=True)) == [(row.solver, row.nfe) for row in ranked]
    assert frame["frechet"].tolist() == [row.frechet.value for row in ranked if row.frechet is not None]
    best = frame.dropna(subset=["error"]).groupby("nfe")["error"].min()
    errors = [(row.nfe, float(row.errors.mean())) for row in ranked if row.errors is not None]
    for nfe in (4, 8):
        assert best[nfe] == pytest.approx(min(error for n, error in errors if n == nfe), rel=1e-12)
    assert frame["error"].isna().tolist() == [row.solver == "sde" for row in ranked]
    assert frame["error_low"].dropna().lt(frame["error"].dropna()).all()


def test_pandas_has_the_values_of_samples_data_and_models() -> None:
    pytest.importorskip("pandas")
    made = solution()
    frame = made.to_pandas()
    assert frame["nfe"].tolist() == made.nfe.tolist() and frame["status"].tolist() == ["ok"] * 12
    assert frame["rms"].tolist() == pytest.approx(made.x.square().mean(1).sqrt().tolist())
    data = as_data([[0.0, 1.0], [2.0, 3.0]], labels=[7, 9], name="two").to_pandas().set_index("fact")["value"]
    assert (data["class 7"], data["samples"], data["mean"]) == (1, 2, 1.5)
    assert MODEL.to_pandas().set_index("fact")["value"]["shape"] == (2,)


def test_pandas_has_the_values_of_an_evaluation() -> None:
    pytest.importorskip("pandas")
    real = load_data("moons")
    found = evaluate(real.x[:300], FeatureStatistics.of(real, make_extractor("pixels")), metrics=["kid"], draws=4)
    [row] = found.to_pandas().to_dict("records")
    figure = found["kid"]
    assert (row["figure"], row["value"], row["standard_error"]) == ("kid", figure.value, figure.standard_error)
    assert (row["low"], row["high"]) == figure.interval


@pytest.mark.parametrize("thing", [MODEL, load_data("moons"), solution()], ids=lambda x: type(x).__name__)
def test_everything_has_the_same_ways_to_show_itself(thing: Displayed, tmp_path: Path) -> None:
    assert "\n" not in repr(thing) and len(repr(thing)) < 160
    assert "<table>" in thing._repr_html_() and r"\begin{tabular}" in thing.to_latex()
    assert isinstance(thing, Data | ScoreModel | Solution)
    assert thing.save(tmp_path / "a.svg").stat().st_size > 1000


def test_shares_grow_to_one() -> None:
    ddim = {"ddim": SOLVERS["ddim"]}
    for run in (
        lambda report: sample(MODEL, 50, nfe=4, batch_size=20, progress=report),
        lambda report: compare(MODEL, ddim, [4], n=8, paired=4, reference_steps=10, progress=report),
        lambda report: log_likelihood(MODEL, torch.zeros(3, 2), tolerance=1e-2, other_t_min=1e-3, progress=report),
    ):
        shares: list[float] = []
        run(shares.append)
        assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] == pytest.approx(1.0)
