"""A student has no probability flow: what needs one refuses it at the door."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from sde_diffusion import VPSDE, ScoreModel, distill, log_likelihood, sample, tune
from sde_diffusion.cli import app
from sde_diffusion.comparison.comparison import compare
from sde_diffusion.comparison.for_tolerance import choose_solver
from sde_diffusion.guidance import DPS, Mask
from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.likelihood.lower_bound import elbo
from sde_diffusion.networks import build
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.local_errors import error_profile
from solvers import SOLVERS
from solvers.diffusion.renoising import Renoising
from solvers.errors import InputError


def model(sampler=None) -> ScoreModel:
    return ScoreModel(build("mlp", shape=(2,), width=8), VPSDE(), "velocity", shape=(2,), sampler=sampler)


X = torch.zeros(2, 2)
FLOW = {
    "compare": lambda m: compare(m, {"ddim": SOLVERS["ddim"]}, [2], n=4, paired=2, reference_steps=8),
    "its own solver compared": lambda m: compare(m, {"own": Renoising()}, [2], n=4, paired=2),
    "tolerance": lambda m: choose_solver(m, 0.1, n=2),
    "tune": lambda m: tune(m, 2, noise_samples=16, held_out=2),
    "likelihood": lambda m: log_likelihood(m, X),
    "bound": lambda m: elbo(m, X, steps=2),
    "encode": lambda m: encode(m, X),
    "decode": lambda m: decode(m, X),
    "local errors": lambda m: error_profile(m, n=2),
    "observation": lambda m: DPS(m, Mask(torch.tensor([True, False])), torch.zeros(1, 2), 0.1),
    "teacher": lambda m: distill(m, torch.zeros(16, 2), "consistency", steps=1, batch_size=8, progress=False),
}


@pytest.mark.parametrize("use", FLOW.values(), ids=FLOW)
def test_a_student_is_refused(use) -> None:
    with pytest.raises(InputError, match=r"student of few steps.*\(Renoising\).*teacher"):
        use(model(Renoising()))


def test_a_guided_student_is_one() -> None:
    with pytest.raises(InputError, match="student of few steps"):
        tune(Guided(model(Renoising()), 2.0, null={"label": 0}), 2)


def test_its_samples_are_not() -> None:
    assert sample(model(Renoising()), 3, nfe=2).shape == (3, 2)
    assert sample(model(Renoising()), 3, solver="pf-ode", nfe=4).shape == (3, 2)


def test_the_commands(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["train", "--data", "moons", "--steps", "2", "--width", "8", "--out", "teacher"]).exit_code == 0
    assert run(app, ["distill", "teacher", "--steps", "2", "--out", "student"]).exit_code == 0
    for words in (
        ["compare", "student", "--nfe", "2", "--n", "4"],
        ["tune", "student", "--nfe", "2", "--noise-samples", "16", "--held-out", "2"],
        ["likelihood", "student", "--n", "2"],
        ["show", "solvers", "student", "--nfe", "2", "--n", "2"],
        ["show", "score", "student"],
    ):
        done = run(app, words)
        assert done.exit_code == 2 and "student of few steps" in " ".join(done.output.split()), (words, done.output)
