"""Training: it learns, it draws what it says, it is repeatable, and it stops in good order."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from sde_diffusion.data import as_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sde import VPSDE, CosineVPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.run_folder import Run, checkpoints
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.config_file import read_options
from sde_diffusion.training.randomness import StepRandomness
from sde_diffusion.training.time_sampling import stratified
from sde_diffusion.training.training_run import train

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {
    "batch_size": 8,
    "log_every": 4,
    "checkpoint_every": 6,
    "warmup": 3,
    "progress": False,
}


def mlp(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build("mlp", shape=(2,), width=8, depth=1, **settings)


def model(network: nn.Module | None = None) -> ScoreModel:
    return ScoreModel(network or mlp(), VPSDE())


def weights(model: ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def test_training_reaches_the_known_minimum_on_gaussian_data() -> None:
    s, sde = 0.5, VPSDE()
    x = s * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    start = ScoreModel(build("mlp", shape=(2,), width=32, depth=2), sde)
    trained = train(start, x, steps=400, batch_size=128, progress=False, ema=0.99, normalize="none")

    def optimum(t: float) -> float:
        alpha, sigma = (float(c) for c in sde(t)[:2])
        return (alpha * s) ** 2 / (sigma**2 + (alpha * s) ** 2)

    minimum = quad(optimum, 0, 1)[0]  # 0.18; an untrained network has 1
    # The excess over the minimum is E ||eps_theta - eps*||^2: measured against the known eps*.
    t = ((torch.arange(4000) + 0.5) / 4000).double()
    alpha, sigma = (c[:, None].float() for c in sde(t)[:2])
    generator = torch.Generator().manual_seed(1)
    xt = alpha * s * torch.randn(4000, 2, generator=generator) + sigma * torch.randn(4000, 2, generator=generator)
    with torch.no_grad():
        best = sigma / (sigma**2 + (alpha * s) ** 2) * xt
        excess = float((trained.noise(xt, t) - best).square().mean())
    assert excess < 0.03 * minimum


def test_two_trainings_are_equal_and_leave_the_callers_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.manual_seed(7)
    results = []
    for other in (1, 2):
        start = model(mlp(dropout=0.3))
        torch.manual_seed(other)  # must not matter
        state = torch.get_rng_state()
        results.append(train(start, POINTS, steps=9, **SMALL))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(results[0]), weights(results[1]))
    assert not torch.equal(
        weights(results[0]),
        weights(train(model(mlp(dropout=0.3)), POINTS, steps=9, seed=1, **SMALL)),
    )
    torch.set_rng_state(before)


def test_with_and_without_a_folder_the_result_is_the_same(tmp_path: Path) -> None:
    kept, saved = model(), model()
    a = train(kept, POINTS, steps=9, **SMALL)
    b = train(saved, POINTS, steps=9, out=tmp_path / "run", **SMALL)
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(weights(kept), weights(saved))
    assert not torch.equal(weights(a), weights(kept))
    assert torch.equal(weights(load(tmp_path / "run")), weights(a))


def test_one_step_is_clipped_adam_on_the_stated_draws() -> None:
    # After one step Adam has moved every weight by lr * g / (|g| + 1e-8).
    start = model()
    reference = model()
    train(start, POINTS, steps=1, batch_size=8, warmup=0, schedule="constant", seed=3, progress=False)
    draws = StepRandomness(seed=3, samples=50, batch_size=8)
    x0 = POINTS[draws.index(1)]
    t, eps = stratified(8, 1e-5, draws.generator("times", 1)), draws.noise(1, x0)
    alpha, sigma = (c[:, None].float() for c in VPSDE()(t)[:2])
    reference.train()
    loss = (reference.network(alpha * x0 + sigma * eps, t.float()) - eps).square().mean()
    gradients = torch.autograd.grad(loss, list(reference.parameters()), allow_unused=True)
    clip = min(1.0, 1 / float(torch.stack([g.norm() for g in gradients]).norm()))
    for before, after, g in zip(reference.parameters(), start.parameters(), gradients, strict=True):
        step = 2e-3 * clip * g / (clip * g.abs() + 1e-8)
        torch.testing.assert_close(after, before - step, rtol=1e-4, atol=2e-6)


def test_every_sample_is_seen_once_per_epoch_in_changing_order() -> None:
    draws = StepRandomness(seed=0, samples=10, batch_size=4)
    seen = torch.cat([draws.index(k) for k in range(1, 6)]).reshape(2, 10)
    assert torch.equal(seen.sort().values, torch.arange(10).repeat(2, 1))
    assert not torch.equal(seen[0], seen[1])
    small = StepRandomness(seed=0, samples=3, batch_size=7)
    assert small.index(1).bincount().tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_noise_is_standard_normal_and_new_at_every_step() -> None:
    draws = StepRandomness(seed=0, samples=10, batch_size=4)
    noise = torch.stack([draws.noise(k, torch.zeros(100)) for k in range(1, 401)])
    n = noise.numel()
    assert abs(float(noise.mean())) < 4 / n**0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / n) ** 0.5
    neighbours = float((noise[1:] * noise[:-1]).mean())
    assert abs(neighbours) < 4 / n**0.5


def test_log_lines_are_means_of_the_steps_and_checkpoints_are_the_newest(tmp_path: Path) -> None:
    train(model(), POINTS, steps=25, out=tmp_path / "a", keep=3, **SMALL)
    each = {**SMALL, "log_every": 1}
    train(model(), POINTS, steps=25, out=tmp_path / "b", **each)
    lines, single = metrics(tmp_path / "a"), metrics(tmp_path / "b")
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24, 25]
    losses = [float(line["loss"]) for line in single]
    assert lines[1]["loss"] == pytest.approx(sum(losses[4:8]) / 4, rel=1e-12)
    assert lines[6]["loss"] == losses[24]
    rates = [line["learning_rate"] for line in single]
    assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
    assert rates[24] == pytest.approx(0, abs=1e-9)
    names = [c.name for c in checkpoints(tmp_path / "a")]
    assert names == ["step-000025", "step-000024", "step-000018"]
    assert len(checkpoints(tmp_path / "b")) == 2


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    train(model(), POINTS, steps=2, out=tmp_path / "run", **SMALL)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"--resume.*--out"):
        train(model(), POINTS, steps=2, out=tmp_path / "run", **SMALL)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(model(), POINTS, steps=2, out=tmp_path / "other", resume=True, **SMALL)
    assert not (tmp_path / "other").exists()


class Poisoned(nn.Module):
    """Returns NaN for the second sample of the batch from its eighth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += self.training
        factor = torch.ones(len(x), 1)
        if self.calls >= 8:
            factor[1] = float("nan")
        return self.weight * x * factor


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path: Path) -> None:
    draws = StepRandomness(seed=0, samples=50, batch_size=8)
    sample, t = int(draws.index(8)[1]), float(stratified(8, 1e-5, draws.generator("times", 8))[1])
    message = rf"loss of step 8 .* 1 of 8 samples .* number {sample}; t from {t:.3g} to {t:.3g}"
    options = {**SMALL, "log_every": 100}
    with pytest.raises(FloatingPointError, match=message):
        train(model(Poisoned()), POINTS, steps=50, out=tmp_path / "run", **options)
    assert [c.name for c in checkpoints(tmp_path / "run")] == ["step-000006", "step-000000"]
    assert weights(load(tmp_path / "run", network=Poisoned(), weights="model")).isfinite().all()
    written = json.loads((tmp_path / "run/non-finite.json").read_text())
    assert written == {"step": 8, "what": "loss", "samples": [sample], "t": [t]}


class Raising(nn.Module):
    """A network during whose n-th step a signal arrives."""

    def __init__(self, inner: nn.Module, at: int, number: int) -> None:
        super().__init__()
        self.inner, self.at, self.number, self.calls = inner, at, number, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == self.at:
            signal.raise_signal(self.number)
        return self.inner(x, t)


@pytest.fixture
def listening() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a test run in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_the_step_and_the_rest_can_follow(
    tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    whole = train(model(Raising(mlp(), 0, number)), POINTS, steps=20, out=tmp_path / "a", **SMALL)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        train(model(Raising(mlp(), 9, number)), POINTS, steps=20, out=tmp_path / "b", **SMALL)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert checkpoints(tmp_path / "b")[0].name == "step-000009"
    # Step 9 is in the middle of a line of the log, and that line comes out whole.
    rest = train(model(Raising(mlp(), 0, number)), POINTS, out=tmp_path / "b", resume=True, progress=False)
    assert torch.equal(weights(whole), weights(rest))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_resuming_something_else_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(model(), POINTS, steps=6, out=tmp_path / "run", **SMALL)

    def resume(start: ScoreModel, x: Tensor, **options: Any) -> ScoreModel:
        options = {"progress": False, **options}
        return train(start, x, out=tmp_path / "run", resume=True, **options)

    with pytest.raises(ValueError, match=r"another train \(seed: 0 in the run, 1 now\)"):
        resume(model(), POINTS, seed=1)
    with pytest.raises(ValueError, match=r"another data \(fingerprint"):
        resume(model(), POINTS + 1)
    with pytest.raises(ValueError, match=r"another model .*sde: .*vp.* in the run, .*cosine.* now"):
        resume(ScoreModel(mlp(), CosineVPSDE(), "data"), POINTS)
    with pytest.raises(ValueError, match="already at step 6, beyond steps=4"):
        resume(model(), POINTS, steps=4)
    with pytest.raises(ValueError, match=r"another model"):
        resume(ScoreModel(mlp(), CosineVPSDE(), "data"), POINTS, force=True)
    untouched = load(tmp_path / "run")
    assert torch.equal(weights(resume(model(), POINTS)), weights(untouched))  # finished: no-op
    resume(model(), POINTS, steps=8)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [4, 6, 8]
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["steps"] == 8


def test_force_goes_on_with_other_options_and_says_so(tmp_path: Path) -> None:
    train(model(), POINTS, steps=6, out=tmp_path / "run", **SMALL)
    with pytest.warns(UserWarning, match=r"goes on with another train \(clip: 1.0 in the run, 0.5 now; seed: 0 in"):
        train(model(), POINTS, out=tmp_path / "run", resume=True, force=True, progress=False, steps=8, seed=1, clip=0.5)
    stored = json.loads((tmp_path / "run/config.json").read_text())["train"]
    assert (stored["seed"], stored["clip"], stored["steps"]) == (1, 0.5, 8)
    assert read_options(tmp_path / "run/config.toml")["seed"] == 1
    with pytest.raises(ValueError, match=r"step-000008 has no ema-0.5: a resumed run cannot add"):
        train(model(), POINTS, out=tmp_path / "run", resume=True, force=True, progress=False, ema=(0.999, 0.5))


def test_options_that_are_younger_than_a_run_have_their_defaults(tmp_path: Path) -> None:
    train(model(), POINTS, steps=6, out=tmp_path / "run", **SMALL)
    file = tmp_path / "run/config.json"
    stored = json.loads(file.read_text())
    for name in ("time_sampling", "precision", "ema_widths", "accumulate"):
        del stored["train"][name]
    file.write_text(json.dumps(stored))
    train(model(), POINTS, out=tmp_path / "run", resume=True, progress=False, steps=8)
    with pytest.raises(ValueError, match="precision: 'fp32' in the run, 'bf16' now"):
        train(model(), POINTS, out=tmp_path / "run", resume=True, progress=False, precision="bf16")


def test_two_trainers_cannot_share_a_run(tmp_path: Path) -> None:
    train(model(), POINTS, steps=2, out=tmp_path / "run", **SMALL)
    run = Run.reopen(tmp_path / "run")
    with pytest.raises(RuntimeError, match="another process is training"):
        train(model(), POINTS, out=tmp_path / "run", resume=True, progress=False)
    run.close()
    train(model(), POINTS, out=tmp_path / "run", resume=True, progress=False)


def test_resuming_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    train(model(), POINTS, steps=12, out=tmp_path / "run", **SMALL)
    good = metrics(tmp_path / "run")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "loss": 1.0}\n{"step": 17, "lo')
    rubbish = [tmp_path / f"run/checkpoints/.step-000011.{end}" for end in ("partial", "rubbish")]
    for folder in rubbish:
        folder.mkdir()
    train(model(), POINTS, out=tmp_path / "run", resume=True, progress=False)
    assert metrics(tmp_path / "run") == good
    assert not any(folder.exists() for folder in rubbish)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1; got 0"),
        ({"steps": 10.5}, TypeError, "steps must be a whole number; got 10.5"),
        ({"keep": True}, TypeError, "keep must be a whole number; got True"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number; got 'fast'"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be positive"),
        ({"t_min": 0.0}, ValueError, r"t_min must be in \(0, 1\)"),
        ({"ema": 1.0}, ValueError, r"ema must be in \[0, 1\)"),
        ({"ema": [0.9, "slow"]}, TypeError, "ema must be a number; got 'slow'"),
        ({"ema": []}, ValueError, "ema must name one decay at least"),
        ({"ema": (0.9, 0.9)}, ValueError, "ema names an average twice: 0.9, 0.9"),
        ({"ema_widths": 0.1}, TypeError, "ema_widths must be a list of numbers; got 0.1"),
        ({"ema_widths": [0.3]}, ValueError, r"ema_widths must be in \(0, 0.288\]; got 0.3"),
        ({"labels": "yes"}, TypeError, "labels must be true or false; got 'yes'"),
        ({"labels": True}, ValueError, "labels=True, but array has no labels"),
        ({"drop_label": 1.5}, ValueError, r"drop_label must be in \[0, 1\]; got 1.5"),
        ({"time_sampling": "unifrom"}, ValueError, "did you mean 'uniform'"),
        ({"precision": "half"}, ValueError, "unknown precision 'half'"),
        (
            {"accumulate": 3, "batch_size": 8},
            ValueError,
            r"8; .* a multiple of 3 = 1 \(processes\) x 3 \(accu",
        ),
        ({"batch_size": 51}, ValueError, "array has 50 samples, fewer than one batch of 51; choose batch_size=50"),
        ({"tracker": "tensorbord"}, ValueError, "did you mean 'tensorboard'"),
        ({"schedule": "cosin"}, ValueError, "did you mean 'cosine'"),
        ({"weight": "plain"}, ValueError, "unknown weight 'plain'.*likelihood.*simple"),
        ({"device": "cude"}, ValueError, "did you mean 'cuda'"),
        ({"batchsize": 3}, ValueError, "did you mean 'batch_size'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(model(), POINTS, **{"batch_size": 8, **options})


def test_config_survives_json() -> None:
    config = TrainConfig(learning_rate=1e-4 / 3, seed=5)
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))) == config


class Wide(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def test_bad_models_and_data(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a ScoreModel, got MLP"):
        train(mlp(), POINTS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cannot be trained; use an nn.Module"):
        train(ScoreModel(lambda x, t: x, VPSDE()), POINTS)
    with pytest.raises(ValueError, match="no parameters"):
        train(model(nn.Identity()), POINTS)
    with pytest.raises(ValueError, match=r"alpha\(1\) = 0.*predicts='velocity' or 'data'"):
        train(ScoreModel(mlp(), CosineVPSDE(), "noise"), POINTS)
    with pytest.raises(ValueError, match=r"shape \(3,\); those of array are \(2,\)"):
        train(ScoreModel(mlp(), VPSDE(), shape=(3,)), POINTS)
    with pytest.raises(ValueError, match="not finite"):
        train(model(), torch.full((4, 2), float("inf")))
    with pytest.raises(ValueError, match="resume=True needs"):
        train(model(), POINTS, resume=True)
    with pytest.raises(ValueError, match="must return the shape"):
        train(model(Wide()), as_data(POINTS), out=tmp_path / "run", batch_size=8)
    assert not list(tmp_path.iterdir())
