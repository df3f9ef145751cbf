"""Students end to end: training, the run folder, resuming, sampling and the command."""

from __future__ import annotations

import math

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion import VPSDE, GaussianMixture, ScoreModel, distill, load, sample
from sde_diffusion.cli import app
from sde_diffusion.distillation.students import GRID, stages
from sde_diffusion.networks import build
from sde_diffusion.storage.run_folder import run_config
from solvers.diffusion.renoising import Renoising
from solvers.errors import InputError
from solvers.grids import make_grid

ANGLES = torch.arange(8) * math.pi / 4
MIXTURE = GaussianMixture(1.2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), std=0.25, sde=VPSDE())


def points(n: int = 20_000) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    means = 1.2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
    return means[torch.randint(0, 8, (n,), generator=g)] + 0.25 * torch.randn(n, 2, generator=g)


def untrained(width: int = 8) -> ScoreModel:
    return ScoreModel(build("mlp", shape=(2,), width=width, embedding="log"), VPSDE(), "velocity", shape=(2,))


QUICK = {"steps": 3, "batch_size": 16, "progress": False, "normalize": "none"}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "nfe", "steps"), [("consistency", 1, 1500), ("progressive", 4, 1000)])
def test_a_student_is_the_map_of_the_flow(method, nfe, steps) -> None:
    """RMS distance to the exact flow's end of the same noise; the data's standard deviation is 0.9."""
    torch.manual_seed(0)
    few_levels = {"first": 8, "last": 8, "teacher_steps": 4, "huber": 0.1}
    student = distill(
        MIXTURE, points(), method, student=untrained(128), nfe=4, start=16, steps=steps, batch_size=256,
        normalize="none", progress=False, settings=few_levels if method == "consistency" else None,
    )  # fmt: skip
    exact = sample(MIXTURE, 2000, nfe=100, seed=5)
    own = sample(student, 2000, nfe=nfe, seed=5)
    ddim = sample(MIXTURE, 2000, solver="ddim", nfe=nfe, seed=5)
    error, before = (float((x - exact).square().mean().sqrt()) for x in (own, ddim))
    assert error < 0.05 < before


def test_stages_halve() -> None:
    assert stages(1, 8) == [4, 2, 1]
    for nfe, start in ((3, 16), (4, 4), (8, 4)):
        with pytest.raises(InputError, match="half the steps"):
            stages(nfe, start)


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_resuming_is_bit_equal(tmp_path, method) -> None:
    options = {**QUICK, "start": 8, "nfe": 2, "student": untrained(), "steps": 6, "checkpoint_every": 2}
    whole = distill(MIXTURE, points(64), method, out=tmp_path / "whole", **options)
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        _interrupted(method, part, options)
    again = distill(MIXTURE, points(64), method, out=part, resume=True, **options)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def _interrupted(method, out, options) -> None:
    from sde_diffusion.training import trainer

    plain, seen = trainer.Trainer.advance, []

    def advance(self):
        seen.append(1)
        if len(seen) == (5 if method == "consistency" else 9):
            raise KeyboardInterrupt
        plain(self)

    trainer.Trainer.advance = advance
    try:
        distill(MIXTURE, points(64), method, out=out, **options)
    finally:
        trainer.Trainer.advance = plain


def test_a_run_of_another_objective_is_not_resumed(tmp_path) -> None:
    distill(MIXTURE, points(64), "consistency-training", student=untrained(), out=tmp_path / "run", **QUICK)
    with pytest.raises(InputError, match="another objective"):
        distill(MIXTURE, points(64), "consistency", student=untrained(), out=tmp_path / "run", resume=True, **QUICK)


def test_settings_of_the_objective_are_recorded_and_checked(tmp_path) -> None:
    chosen = {"first": 2, "last": 4, "teacher_steps": 2}
    distill(MIXTURE, points(64), student=untrained(), out=tmp_path / "run", settings=chosen, **QUICK)
    assert run_config(tmp_path / "run")["objective"]["settings"] == chosen
    with pytest.raises(InputError, match="another objective"):
        distill(MIXTURE, points(64), student=untrained(), out=tmp_path / "run", resume=True, **QUICK)
    with pytest.raises(InputError, match="setting of consistency 'levels'"):
        distill(MIXTURE, points(64), student=untrained(), settings={"levels": 3}, **QUICK)


def test_the_first_teacher_of_progressive_distillation_is_near_the_flow() -> None:
    """DDIM at the times of the first teacher; on the Karras grid its 32 steps were 0.04 off."""
    times = make_grid(GRID, VPSDE().probability_flow(MIXTURE), 32)
    exact, ddim = (
        sample(MIXTURE, 1000, seed=5, **how) for how in ({"nfe": 60}, {"solver": "ddim", "grid": times})
    )  # fmt: skip
    assert float((exact - ddim).square().mean().sqrt()) < 0.025


def test_a_stored_student_samples_with_its_own_solver(tmp_path) -> None:
    student = distill(MIXTURE, points(64), "consistency", student=untrained(), out=tmp_path / "run", **QUICK)
    again = load(tmp_path / "run")
    assert again.sampler == Renoising()
    torch.testing.assert_close(sample(again, 5), sample(student, 5, nfe=2), rtol=0, atol=0)
    assert not torch.equal(sample(again, 5), sample(again, 5, solver="pf-ode"))


def test_a_progressive_student_takes_its_own_number_of_evaluations(tmp_path) -> None:
    student = distill(MIXTURE, points(64), "progressive", student=untrained(), nfe=2, start=8, **QUICK)
    assert sample(student, 3).shape == (3, 2)
    with pytest.raises(InputError, match="made for 2 evaluations"):
        sample(student, 3, nfe=1)


def test_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    made = run(app, ["train", "--data", "moons", "--steps", "3", "--width", "16", "--out", "teacher"])
    assert made.exit_code == 0, made.output
    done = run(app, ["distill", "teacher", "--steps", "3", "--out", "student"])
    assert done.exit_code == 0, done.output
    assert "sdediff sample student" in done.output
    drawn = run(app, ["sample", "student", "--nfe", "1", "--n", "8", "--out", "drawn"])
    assert drawn.exit_code == 0 and "by distilled, 1 evaluations" in " ".join(drawn.output.split())
    again = run(app, ["sample", "student", "--record", "drawn/samples.json", "--out", "again"])
    assert "bit-equal" in again.output
    words = ["--method", "progressive", "--nfe", "2", "--start", "8", "--steps", "3", "--out", "halved"]
    done = run(app, ["distill", "teacher", *words])
    assert done.exit_code == 0, done.output
    whole = run(app, ["sample", "halved"])
    assert whole.exit_code == 2 and "it holds the runs halved/steps-2, halved/steps-4" in " ".join(whole.output.split())
    wrong = run(app, ["distill", "teacher", "--nfe", "2"])
    assert wrong.exit_code == 2 and "--method progressive" in " ".join(wrong.output.split())
