"""The losses of distillation, on models whose flow is known in closed form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sde_diffusion import VESDE, VPSDE, Flow, Gaussian, ScoreModel
from sde_diffusion.distillation import ConsistencyLoss, ProgressiveLoss
from sde_diffusion.distillation.consistency import levels_between
from sde_diffusion.distillation.progressive import ddim_table
from sde_diffusion.networks import build
from solvers import solve
from solvers.errors import InputError

STD = 0.5
SDE = VPSDE()
TEACHER = Gaussian(torch.zeros(2, dtype=torch.float64), torch.full((2,), STD**2, dtype=torch.float64), sde=SDE)


class FlowMap(ScoreModel):
    """The end of the probability flow of N(0, STD^2 I): x std / sqrt(alpha^2 std^2 + sigma^2)."""

    def denoise(self, x, t, **condition):
        alpha, sigma = self.sde.marginal(t)
        return x * (STD / torch.sqrt(alpha**2 * STD**2 + sigma**2)).reshape(-1, 1)


def drawn(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x0 = STD * torch.randn(n, 2, generator=g, dtype=torch.float64)
    eps = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return x0, torch.rand(n, generator=g, dtype=torch.float64) * 0.98 + 0.01, eps, torch.ones(n, dtype=torch.float64)


def view(loss, model):
    loss.model = model
    return loss


@pytest.fixture
def student():
    return ScoreModel(build("mlp", shape=(2,), width=8), SDE, "velocity", shape=(2,))


def test_the_flow_map_minimises_the_loss_of_consistency_distillation(student) -> None:
    loss = ConsistencyLoss(student, student.network, TEACHER, steps=1, first=200, last=200)
    exact = view(loss, FlowMap(None, SDE, "velocity"))(*drawn())[0]
    other = view(loss, TEACHER)(*drawn())[0]  # E[x_0 | x_t] is no consistency function
    assert exact.mean() < 2e-3 * other.mean()


def test_the_error_of_the_flow_map_falls_with_the_square_of_the_gap(student) -> None:
    """Heun's method has order 2, so the local error, divided by the gap, has order 2."""
    model, found = FlowMap(None, SDE, "velocity"), []
    for levels in (50, 100, 200):
        loss = view(ConsistencyLoss(student, student.network, TEACHER, 1, levels, levels), model)
        loss.begin(1)
        x0, t, eps, _ = drawn()
        keep = (loss.earlier(t) > 0) & (SDE.marginal(t)[1] / SDE.marginal(t)[0] < 20)
        x, s = SDE.perturb(x0, t, eps), loss.earlier(t)
        y = loss._heun(x, t, s, {})
        gap = (model.denoise(x, t) - model.denoise(y, s))[keep].norm(dim=1).mean()
        found.append(float(gap))
    orders = [torch.log2(torch.tensor(a / b)).item() for a, b in pairwise(found)]
    assert min(orders) > 2.6  # local order 3


def test_steps_of_the_teacher_between_the_levels_have_order_two(student) -> None:
    """With few levels: the error of x_s against the closed form, by the number of Heun's steps on the way."""
    model, found = FlowMap(None, SDE, "velocity"), []
    x0, t, eps, _ = drawn()
    x = SDE.perturb(x0, t, eps)
    for steps in (4, 8, 16):
        loss = ConsistencyLoss(student, student.network, TEACHER, 1, 4, 4, teacher_steps=steps)
        s = loss.earlier(t)
        keep = (s > 0) & (SDE.marginal(t)[1] / SDE.marginal(t)[0] < 20)
        gap = (model.denoise(x, t) - model.denoise(loss._along_flow(x, t, {}), s))[keep].norm(dim=1).mean()
        found.append(float(gap))
    orders = [torch.log2(torch.tensor(a / b)).item() for a, b in pairwise(found)]
    assert min(orders) > 1.85 and found[-1] < 2e-3


def test_a_path_that_reaches_the_data_stays_there(student) -> None:
    """Below the lowest level s is 0, and the steps that are left have no length."""
    loss = ConsistencyLoss(student, student.network, TEACHER, 1, 4, 4, teacher_steps=8)
    x0, _, eps, _ = drawn()
    t = SDE.time(torch.full((64,), -torch.tensor(0.01).log().item(), dtype=torch.float64))
    x = SDE.perturb(x0, t, eps)
    assert bool((loss.earlier(t) == 0).all())
    end = FlowMap(None, SDE, "velocity").denoise(x, t)
    torch.testing.assert_close(loss._along_flow(x, t, {}), end, rtol=1e-3, atol=1e-5)


def test_huber_is_the_width_of_the_parabola(student) -> None:
    """The loss of an error far below c is its square over 2 c, of one far above c its length less c."""
    x0, t, eps, factor = drawn(4)
    c = {huber: huber * 2**0.5 for huber in (1e-5, 1e3)}
    found = {}
    for huber in c:
        loss = ConsistencyLoss(student, student.network, TEACHER, 1, 4, 4, huber=huber)
        loss.begin(1)
        found[huber] = view(loss, TEACHER)(x0, t, eps, factor)[0].double()
    s = loss.earlier(t)
    rho = [torch.exp(-SDE.half_log_snr(u)) for u in (t, s.clamp_min(1e-9))]
    weight = 1 / (rho[0] - torch.where(s > 0, rho[1], 0.0))
    length = found[1e-5] / weight + c[1e-5]
    torch.testing.assert_close(found[1e3] / weight, length**2 / (2 * c[1e3]), rtol=2e-2, atol=0)


def test_pairs_share_their_noise_in_consistency_training(student) -> None:
    loss = ConsistencyLoss(student, student.network, None, steps=1, first=20, last=20)
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    s = loss.earlier(t)
    assert bool((s < t).all()) and bool((s >= 0).all())
    rho = torch.exp(-SDE.half_log_snr(torch.stack([t, s])))
    gaps = rho[0] ** (1 / 7) - rho[1] ** (1 / 7)
    expected = (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 20
    torch.testing.assert_close(gaps, torch.full_like(gaps, expected), rtol=1e-9, atol=0)


def test_two_steps_of_the_teacher_are_the_target(student) -> None:
    """A student that makes the teacher's two steps in one has no loss; the teacher itself has."""
    times = torch.linspace(1, 0, 9, dtype=torch.float64).tolist()
    loss = ProgressiveLoss(student, student.network, TEACHER, times)

    class Composed(ScoreModel):
        def denoise(self, x, t, **condition):
            out = torch.empty_like(x)
            for k in range(0, 8, 2):
                rows = t == times[k]
                if bool(rows.any()):
                    problem = SDE.probability_flow(TEACHER)
                    y = solve(problem, x[rows], solver="ddim", grid=times[k : k + 3]).x
                    (a, b), (c, d) = (tuple(float(v) for v in SDE.marginal(u)) for u in (times[k], times[k + 2]))
                    out[rows] = (y - d / b * x[rows]) / (c - d / b * a)
            return out

    exact = view(loss, Composed(None, SDE, "velocity"))(*drawn())[0]
    other = view(loss, TEACHER)(*drawn())[0]
    assert exact.max() < 1e-20 and other.mean() > 1e-4


def test_the_table_is_ddim() -> None:
    times = [1.0, 0.6, 0.2, 0.0]
    problem = SDE.probability_flow(TEACHER)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = solve(problem, x, solver=ddim_table(SDE, times)).x
    torch.testing.assert_close(ours, solve(problem, x, solver="ddim", grid=times).x, rtol=1e-12, atol=1e-12)


def test_levels_rise_to_the_last() -> None:
    found = [levels_between(k, 3000, 10, 160) for k in range(1, 3001)]
    assert found == sorted(found) and set(found) == {10, 20, 40, 80, 160}


def test_what_does_not_fit_is_refused(student) -> None:
    noise = ScoreModel(student.network, SDE, "noise", shape=(2,))
    with pytest.raises(InputError, match="velocity or edm"):
        ConsistencyLoss(noise, student.network, None, steps=1)
    with pytest.raises(InputError, match="one process"):
        ConsistencyLoss(student, student.network, Gaussian(torch.zeros(2), torch.ones(2), sde=VESDE()), steps=1)
    with pytest.raises(InputError, match="even; got 3"):
        ProgressiveLoss(student, student.network, TEACHER, [1.0, 0.5, 0.2, 0.0])
    with pytest.raises(InputError, match="first to last"):
        ConsistencyLoss(student, student.network, None, steps=1, first=20, last=10)


def test_the_target_is_defined_at_pure_noise() -> None:
    """At t = 1 of a straight path alpha is 0."""
    path = Flow()
    teacher = Gaussian(torch.zeros(2), torch.ones(2), sde=path)
    model = ScoreModel(build("mlp", shape=(2,), width=8), path, "velocity", shape=(2,))
    x0, _, eps, factor = (v.float() for v in drawn(8))
    loss = ProgressiveLoss(model, model.network, teacher, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert bool(loss(x0, torch.full((8,), 0.99, dtype=torch.float64), eps, factor)[1].isfinite().all())
