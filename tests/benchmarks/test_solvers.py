"""The comparison counts at the model, starts everyone alike, and has one endpoint for all."""

from __future__ import annotations

import json
import math
import re
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

pytest.importorskip("rich")

from benchmarks.peers import LIBRARIES, Config, Task, peers
from benchmarks.problems import Problem, digits, spectrum
from benchmarks.report import main as merge
from benchmarks.report import summarise, write_report
from benchmarks.solvers import Records, command_of, compute, main, measure, ours, with_references
from sde_diffusion import VPSDE, GaussianMixture
from sde_diffusion.comparison.simultaneous import against_others, interval
from sde_diffusion.sampling.reference_solution import converged, rms


def small(std: float = 0.5) -> Problem:
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -0.8]], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 3.0])
    model = GaussianMixture(means, std=std, weights=weights, sde=VPSDE())
    return Problem("small", model, (2,), reference_steps=300)


@lru_cache
def endpoints() -> tuple[Problem, Tensor, Tensor]:
    problem = small()
    x1 = problem.initial_noise(0, 4)
    return problem, x1, problem.endpoints(x1)[0]


def installed(library: str) -> list[Config]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, missing = peers((library,))
    if missing:
        pytest.skip(f"{library} is not installed: {missing[library]}")
    return found


def run(config: Config, nfe: int) -> tuple[int, float]:
    problem, x1, target = endpoints()
    task = Task(problem.model, x1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        x = config.run(task, nfe)
    assert x is not None
    return task.calls, float(rms(x - target).mean())


def test_the_reference_is_the_flow_by_another_integrator() -> None:
    problem, x1, target = endpoints()
    sde = problem.model.sde

    def slope(t: float, x: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(x)[None]
        return sde.probability_flow(problem.model).drift(state, torch.tensor(t, dtype=torch.float64))[0].numpy()

    for k in range(2):
        out = solve_ivp(slope, (1.0, 1e-9), x1[k].numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
        assert np.abs(out.y[:, -1] - target[k].numpy()).max() < 1e-7


def test_the_closed_form_of_the_spectrum_is_its_flow() -> None:
    problem = spectrum()
    x1 = problem.initial_noise(0, 1)
    exact, error = problem.endpoints(x1)
    assert error == 0
    coarse, fine = (float(rms(converged(problem.model, x1, steps=n)[0] - exact)) for n in (200, 800))
    assert fine < min(1e-6, coarse / 30)


def test_the_error_of_a_reference_is_stated_and_falls() -> None:
    problem = small()
    x1 = problem.initial_noise(0, 4)
    coarse, fine = (Problem("small", problem.model, (2,), reference_steps=n).endpoints(x1)[1] for n in (40, 160))
    assert fine < coarse / 16


@pytest.mark.parametrize("config", ours(), ids=lambda c: c.name)
def test_ours_keep_to_the_budget_and_converge(config: Config) -> None:
    assert run(config, 11)[0] in (10, 11)
    errors = [run(config, nfe)[1] for nfe in (20, 160)]
    assert errors[1] < min(errors[0] / 2, 0.02)


# A sampler of each kind, and what its error at 160 evaluations must be below.
SAMPLERS = {
    "diffusers": {
        "DPMSolverMultistep++2M midpoint karras zero": 0.01,
        "DPMSolverMultistep++3M lu zero": 0.01,
        "DPMSolverMultistep-2 exponential": 0.01,
        "DPMSolverSinglestep++2S karras zero": 0.01,
        "UniPCMultistep-2 bh2 exponential zero": 0.01,
        "DEISMultistep-3 uniform": 0.01,
        "SASolver-22 exponential": 0.01,
        "HeunDiscrete karras": 0.01,
        "KDPM2Discrete karras": 0.01,
        "LMSDiscrete karras": 0.01,
        "EulerDiscrete karras": 0.05,
        "DDIM trailing": 0.05,
        "PNDM trailing": 0.05,
        "EDMDPMSolverMultistep++2M karras zero": 0.01,
        "IPNDM angle": 0.01,
        "FlowMatchEulerDiscrete": 0.05,
        "FlowMatchHeunDiscrete": 0.01,
    },
    "k_diffusion": {
        "euler karras sigma_min=model": 0.05,
        "heun karras sigma_min=model": 0.01,
        "dpm_2 karras sigma_min=model": 0.01,
        "lms-4 karras sigma_min=model": 0.01,
        "dpmpp_2s karras sigma_min=model": 0.01,
        "dpmpp_sde eta=0 karras sigma_min=model": 0.01,
        "dpmpp_2m exponential sigma_min=model": 0.01,
        "dpmpp_3m_sde eta=0 exponential sigma_min=model": 0.01,
        "dpm_fast sigma_min=model": 0.01,
    },
    "azula": {
        "Euler Cosine sigma_min=0.001": 0.05,
        "Heun Cosine sigma_min=0.001": 0.02,
        **{f"{kind}-2 Cosine sigma_min=0.001": 0.02 for kind in ("zAB", "vAB", "zEAB", "xEAB")},
        "REAB-2 Cosine sigma_min=0.001": 0.05,
    },
}


@pytest.mark.parametrize(("library", "name"), [(a, b) for a, names in SAMPLERS.items() for b in names])
def test_a_peer_keeps_to_the_budget_and_converges(library: str, name: str) -> None:
    (config,) = (c for c in installed(library) if c.name == name)
    for nfe in (10, 11):
        calls = run(config, nfe)[0]
        two_stage = re.match(r"Heun|KDPM2|FlowMatchHeun|heun|dpm_2|dpmpp_2s|dpmpp_sde", name)
        assert calls == nfe or (two_stage and calls == nfe - 1)
    assert run(config, 160)[1] < SAMPLERS[library][name]


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_peer_exceeds_its_budget(library: str) -> None:
    problem = endpoints()[0]
    for config in installed(library)[::3]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            starts, _ = with_references(problem, 0, 2, 1, "test", Path())
            measure(problem, config, 6, starts, 8)


def test_a_task_starts_at_the_log_snr_of_t_1() -> None:
    problem, x1, _ = endpoints()
    task = Task(problem.model, x1)
    alpha, sigma = problem.model.sde(1.0)[:2]
    assert task.rho_max == pytest.approx(float(sigma / alpha), rel=1e-12)
    torch.testing.assert_close(task.z1 * alpha, x1)
    at_start = task.denoise(task.z1, task.rho_max)
    torch.testing.assert_close(at_start, problem.model.denoise(x1, torch.ones(len(x1))))
    assert task.calls == 1


def test_missing_libraries_are_named() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("azula", "benchmarks.peers.azula_peer"):
            patch.delitem(__import__("sys").modules, module, raising=False)
        patch.setitem(__import__("sys").modules, "azula", None)
        found, missing = peers(("azula",))
    assert found == []
    assert "azula" in missing["azula"]


def test_a_run_is_resumed(tmp_path: Path) -> None:
    arguments = [
        "--problems",
        "checkerboard",
        "--nfe",
        "4",
        "--samples",
        "3",
        "--sets",
        "2",
        "--libraries",
    ]
    arguments += ["--solvers", "ddim", "pf-ode", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.problems.EXACT", {"checkerboard": small})
        main(arguments)
        lines = (tmp_path / "records.jsonl").read_text()
        (tmp_path / "records.jsonl").write_text(lines.splitlines()[0] + '\n{"key": "torn')
        main(arguments)
    first, second = (
        Records.open(tmp_path / "records.jsonl").lines,
        {x["key"]: x for x in map(json.loads, lines.splitlines())},
    )
    assert {k: v["errors"] for k, v in first.items()} == {k: v["errors"] for k, v in second.items()}
    report = json.loads((tmp_path / "report.json").read_text())
    # The folder makes no difference.
    assert list(report["commands"].values()) == [" ".join(["python -m benchmarks.solvers", *arguments[:-2]])]
    assert report["commands"].popitem()[1] in (tmp_path / "report.md").read_text()


def test_more_calls_than_allowed_are_an_error() -> None:
    problem = endpoints()[0]

    def greedy(task: Task, nfe: int) -> Tensor:
        for _ in range(nfe + 1):
            out = task.denoise(task.z1, 1.0)
        return out

    starts, _ = with_references(problem, 0, 2, 1, "test", Path())
    with pytest.raises(RuntimeError, match="made 6 calls with an NFE of 5"):
        measure(problem, Config("x", "greedy", greedy), 5, starts, 8)


def test_a_model_that_returns_nan_is_refused() -> None:
    problem = small()
    problem.model.denoise = lambda x, t: x * math.nan  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="flow of the model is not finite for 2 of 2"):
        problem.endpoints(problem.initial_noise(0, 2))


@pytest.mark.parametrize("bad", [["--nfe", "0"], ["--samples", "1"], ["--sets", "0"]])
def test_bad_arguments_are_refused(bad: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(bad)


def line(library: str, solver: str, errors: list[float]) -> dict[str, object]:
    head = {"problem": "p", "library": library, "solver": solver, "nfe": 5, "sets": 2, "calls": 5}
    return {**head, "errors": errors}


def test_the_summary_names_the_best_peer_and_ties() -> None:
    peer = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9]
    lines = [
        line("a", "worse", [2.0] * 6),
        line("b", "best", peer),
        line("sdediff", "half", [e / 2 for e in peer]),
        line("sdediff", "mixed", [0.5, 0.5, 0.5, 1.4, 1.4, 1.4]),
    ]
    (entry,) = summarise(lines)
    assert entry["best_peer"]["name"] == "b: best"
    assert entry["ours"]["half"]["ratio"] == pytest.approx(0.5)
    assert entry["ours"]["half"]["first"] == "ours"
    assert entry["ours"]["mixed"]["first"] == "tie"


def test_reports_of_several_runs_become_one_in_which_the_later_counts(tmp_path: Path) -> None:
    def report(number: int, ratios: dict[str, float]) -> Path:
        """One folder: a peer with an error of 1 on each problem, and ours."""
        lines = [
            {**line(library, solver, [error] * 4), "problem": problem}
            for problem, ratio in ratios.items()
            for library, solver, error in (("a", "peer", 1.0), ("sdediff", "pf-ode", ratio))
        ]
        out = tmp_path / str(number)
        out.mkdir()
        write_report(lines, dict.fromkeys(ratios, 1e-3), out, {}, f"command {number}")
        return out / "report.json"

    first, second = report(1, {"p": 0.2, "q": 0.4}), report(2, {"q": 0.9, "r": 0.3})
    merge([str(first), str(second), "--out", str(tmp_path / "all")])
    found = json.loads((tmp_path / "all.json").read_text())
    assert {e["problem"]: e["ours"]["pf-ode"]["ratio"] for e in found["entries"]} == {"p": 0.2, "q": 0.9, "r": 0.3}
    text = (tmp_path / "all.md").read_text()
    assert text.index("    command 1") < text.index("    command 2") < text.index("## p")
    assert "best peer, p, 1 cells: geometric mean 0.20" in text
    assert "best peer, q, r, 2 cells: geometric mean 0.52, largest 0.90" in text
    assert "best peer, all, 3 cells: geometric mean 0.38, largest 0.90" in text
    # One command needs no second line for all.
    assert ", all, " not in (first.parent / "report.md").read_text()
    # What it wrote can be merged on.
    merge([str(tmp_path / "all.json"), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again.md").read_text() == text


def test_other_files_than_reports_are_refused_and_the_folder_of_the_result_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "v1.5"
    (tmp_path / "other.json").write_text('{"entries": []}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "torn.json").write_text('{"entries": [')
    for name, message in (
        ("none.json", "cannot be read as a report"),
        ("torn.json", "cannot be read as a report"),
        ("other.json", "is not a report: it lacks commands, references, missing"),
        ("list.json", "is not a report"),
    ):
        with pytest.raises(SystemExit):
            merge([str(tmp_path / name), "--out", str(out)])
        assert f"{tmp_path / name} {message}" in capsys.readouterr().err
    assert not out.parent.exists()
    write_report([line("a", "peer", [1.0] * 4)], {}, tmp_path, {}, "command")
    merge([str(tmp_path / "report.json"), "--out", str(out)])
    assert sorted(path.name for path in out.parent.iterdir()) == ["v1.5.json", "v1.5.md"]


@pytest.mark.parametrize("out", (["--out", "here"], ["--out=here"]))
def test_the_command_of_a_report_says_all_but_the_folder(out: list[str]) -> None:
    expected = "python -m benchmarks.solvers --nfe 5 6 --screen 4 --tuned"
    assert command_of(["--nfe", "5", "6", *out, "--screen", "4", "--tuned"]) == expected


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    with pytest.raises(ValueError, match="at least 2"):
        interval(values[:1])


def test_a_fingerprint_tells_models_apart() -> None:
    assert digits(0.15).fingerprint == digits(0.15).fingerprint
    assert digits(0.15).fingerprint != digits(0.2).fingerprint
    trained = digits(0.15)
    trained.model.eval()
    assert trained.fingerprint == digits(0.15).fingerprint


def test_records_are_kept_by_key(tmp_path: Path) -> None:
    from rich.console import Console

    problem, _, _ = endpoints()
    starts, _ = with_references(problem, 0, 2, 1, "test", tmp_path)
    records = Records.open(tmp_path / "records.jsonl")
    calls = []

    def count(task: Task, nfe: int) -> Tensor:
        calls.append(nfe)
        return task.denoise(task.z1, task.rho_max)

    for _ in range(2):
        compute(problem, [(Config("x", "one", count), 3)], starts, records, 8, Console(quiet=True))
    assert calls == [3]


def test_the_best_of_many_equal_peers_is_no_better_than_ours() -> None:
    rng, held, first = np.random.default_rng(0), 0, 0
    for _ in range(60):
        ours, peers = rng.random(48), rng.random((48, 40))
        low, high = against_others(ours, peers)
        held += low <= 0 <= high
        first += (ours - peers[:, peers.mean(0).argmin()]).mean() > 1.96 * ours.std() * (2 / 48) ** 0.5
    assert held >= 54 and first > 15  # 57 expected; without the choice inside a peer would win a third of the time
    low, high = against_others(rng.random(48) - 0.5, rng.random((48, 40)))
    assert high < 0
