"""The split of the evaluations of a cascade: the best of all on exact stages, kept for the weights it was found for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sde_diffusion.cascade.drawing import sample_cascade
from sde_diffusion.cascade.split_file import FILE, find_split, keep_split
from sde_diffusion.cascade.splitting import MANY, Split, tuned_split
from sde_diffusion.cli import app
from solvers.errors import InputError
from tests.sde_diffusion.cascade.test_cascade import exact_cascade, toml


def test_the_search_finds_the_best_of_all_splits() -> None:
    stages, _ = exact_cascade(0.4)
    stages = [replace(stage, nfe=share) for stage, share in zip(stages, (1, 9), strict=True)]
    found = tuned_split(stages, 10, n=24, held_out=32, seed=5)

    def distance(split: tuple[int, ...]) -> float:
        ends = [
            sample_cascade([replace(stage, nfe=nfe) for stage, nfe in zip(stages, nfes, strict=True)], 32, seed=6)[-1]
            for nfes in (split, (MANY, MANY))
        ]
        return float((ends[0] - ends[1]).double().square().mean().sqrt())

    every = {(k, 10 - k): distance((k, 10 - k)) for k in range(1, 10)}
    assert found.given == (1, 9) and found.given_error == pytest.approx(every[1, 9], rel=1e-6)
    assert found.error == pytest.approx(min(every.values()), rel=1e-6)
    assert every[found.nfe] == min(every.values()) < 0.5 * every[1, 9] and found.tried == 9


def test_many_splits_are_searched_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stages, _ = exact_cascade(0.0)
    best = tuned_split(stages, 12, n=16, held_out=16)
    monkeypatch.setattr("sde_diffusion.cascade.splitting.ALL", 3)
    start = [replace(stage, nfe=share) for stage, share in zip(stages, (1, 11), strict=True)]
    found = tuned_split(start, 12, n=16, held_out=16)
    assert best.tried == 11 and found.error < 2 * best.error < 0.2 * found.given_error


def test_the_split_before_stays_where_it_is_the_better_one() -> None:
    stages, _ = exact_cascade(0.0)
    best = tuned_split(stages, 8, n=16, held_out=16).nfe
    start = [replace(stage, nfe=nfe) for stage, nfe in zip(stages, best, strict=True)]
    again = tuned_split(start, 8, n=16, held_out=16)
    assert again.nfe == again.given == best and again.error == again.given_error


def test_what_cannot_be_split_is_refused() -> None:
    stages, _ = exact_cascade(0.0)
    with pytest.raises(InputError, match="2 or more stages"):
        tuned_split(stages[:1], 8)
    with pytest.raises(InputError, match="as many evaluations at least; got nfe = 1"):
        tuned_split(stages, 1)
    with pytest.raises(InputError, match="held_out"):
        tuned_split(stages, 8, held_out=0)


def test_a_split_is_kept_for_its_weights_and_noise(tmp_path: Path) -> None:
    one, other = (Split((nfe - 3, 3), 0.1, (nfe // 2, nfe - nfe // 2), 0.2, 9, 5) for nfe in (8, 12))
    for split in (one, other, replace(one, nfe=(4, 4))):
        keep_split(tmp_path, split, ["a", "b"], [0.0, 0.1])
    assert find_split(tmp_path, 8, ["a", "b"], [0.0, 0.1]) == [4, 4]
    assert find_split(tmp_path, 12, ["a", "b"], [0.0, 0.1]) == [9, 3]
    assert find_split(tmp_path, 8, ["a", "c"], [0.0, 0.1]) is None
    assert find_split(tmp_path, 8, ["a", "b"], [0.0, 0.2]) is None
    assert find_split(tmp_path, 9, ["a", "b"], [0.0, 0.1]) is None
    assert find_split(tmp_path / "none", 8, ["a", "b"], [0.0, 0.1]) is None
    (tmp_path / FILE).write_text('{"kind": "other", "format": 1}')
    with pytest.raises(ValueError, match="has no splits of a cascade"):
        find_split(tmp_path, 8, ["a", "b"], [0.0, 0.1])


@pytest.mark.slow
def test_one_command_splits_and_sample_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "batch_size = 16\nsteps = 2\nsample_every = 0\n[[stage]]\nsize = 4\nnfe = 1\n"
    file = toml(tmp_path / "c.toml", text + "[[stage]]\nsize = 8\nnfe = 8\ncondition_noise = 0.4\nnoise = 0.1\n")

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, result.output
        return result.output

    def drawn(*more: str) -> list[int]:
        out = str(tmp_path / f"drawn{len(list(tmp_path.iterdir()))}")
        run("sample", "runs/c", "--n", "3", "--nfe", "9", "--out", out, *more)
        return [stage["nfe"] for stage in json.loads((Path(out) / "samples.json").read_text())["stages"]]

    run("train", "--cascade", "c.toml", "--out", "runs/c", "--channels", "8")
    assert drawn() == [1, 8]
    said = run("tune", "runs/c", "--nfe", "9", "--noise-samples", "8", "--held-out", "8")
    found = json.loads((tmp_path / "runs/c" / FILE).read_text())["splits"][0]
    assert sum(found["split"]) == 9 and " + ".join(map(str, found["split"])) in said
    assert found["split"] != [1, 8] and found["error"] < found["given_error"]
    assert drawn() == found["split"]
    assert drawn("--condition-noise", "0.3") == [1, 8]  # of other noise levels
    assert drawn("--solver", "ddim") == [1, 8]
    toml(file, file.read_text().replace("steps = 2", "steps = 3"))
    run("train", "--cascade", "c.toml", "--out", "runs/c", "--channels", "8", "--resume")
    assert drawn() == [1, 8]  # of other weights
    assert "is a cascade" in run("tune", "runs/c", "--label", "1", code=2)
    assert "as many evaluations at least" in run("tune", "runs/c", "--nfe", "9,1", code=2)
