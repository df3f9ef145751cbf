"""Time samplers: their densities, that their factors keep the average of the loss, and what they learn."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch import Tensor

from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.training.time_sampling import (
    TIME_SAMPLERS,
    Importance,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    Stratified,
    TimeSampler,
    Uniform,
)

T_MIN = 0.01
PATHS = [VPSDE(), SubVPSDE(), CosineVPSDE(), VESDE(), EDM(sigma_max=5.0), Flow(), DDPM()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned() -> tuple[LossSecondMoment, dict[str, Tensor]]:
    times = LossSecondMoment(bins=4, history=2)
    middle = (torch.arange(4).repeat(2) + 0.5) / 4
    return times, times.update(times.start(), middle, torch.tensor([4.0, 1.0, 2.0, 1.0] * 2), 0.0)


KEEPING: dict[str, tuple[TimeSampler, dict[str, Tensor]]] = {
    "uniform": (Uniform(), {}),
    "stratified": (Stratified(), {}),
    "log-normal": (LogNormal(mean=-0.5, std=2.0, corrected=True), {}),
    "log-normal-wide": (LogNormal(mean=0.4, std=1.6, corrected=True), {}),
    "logit-normal": (LogitNormal(mean=0.3, std=2.0, corrected=True), {}),
    "importance": (Importance(), {}),
    "loss-second-moment": learned(),
}


@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_factors_keep_the_average_over_uniform_times(name: str, sde: SDE) -> None:
    times, state = KEEPING[name]
    means = []
    for seed in range(20):
        t, factor = times.sample(4000, T_MIN, generator(seed), sde, state)
        assert float(t.min()) >= T_MIN and float(t.max()) <= 1
        means.append([float((factor * h(t)).mean()) for h in (torch.ones_like, torch.sin, lambda t: 1 / (0.1 + t))])
    got = torch.tensor(means, dtype=torch.float64)
    end = 1 - T_MIN if name == "importance" and float(sde.marginal(1.0)[0]) == 0 else 1.0
    expected = [quad(h, T_MIN, end)[0] / (end - T_MIN) for h in (lambda t: 1.0, math.sin, lambda t: 1 / (0.1 + t))]
    error = got.std(0) / math.sqrt(len(got))
    # A step of DDPM is at most 1/1000 above the time it stands for.
    slack = 0.01 if isinstance(sde, DDPM) else 2e-4
    assert bool(((got.mean(0) - torch.tensor(expected)).abs() < 4 * error + slack).all())


def test_log_normal_has_its_quantiles_in_log_rho() -> None:
    for sde in (VPSDE(), EDM(), CosineVPSDE(), Flow()):
        t, factor = LogNormal(-1.0, 0.8).sample(20_000, 1e-6, generator(), sde)
        log_rho = -sde.half_log_snr(t)
        assert bool((factor == 1).all())
        assert stats.kstest(log_rho.numpy(), "norm", args=(-1.0, 0.8)).statistic < 2e-4


def test_logit_normal_has_its_quantiles_in_the_logit() -> None:
    t, factor = LogitNormal(0.5, 1.3).sample(20_000, 1e-9, generator(), Flow())
    assert bool((factor == 1).all())
    assert stats.kstest(torch.logit(t).numpy(), "norm", args=(0.5, 1.3)).statistic < 2e-4


def test_a_normal_distribution_is_cut_off_and_not_piled_up() -> None:
    t, _ = LogNormal(mean=0.0, std=3.0).sample(10_000, 0.1, generator(), EDM(sigma_max=5.0))
    assert 0.1 < float(t.min()) < 0.101 and 0.99 < float(t.max()) < 1
    assert len(t.unique()) == len(t)


def test_importance_makes_lambda_uniform_and_the_likelihood_weight_flat() -> None:
    sde = VPSDE()
    t, factor = Importance().sample(5000, 1e-3, generator(), sde)
    low, high = float(sde.half_log_snr(1.0)), float(sde.half_log_snr(1e-3))
    lam = (sde.half_log_snr(t) - low) / (high - low)
    assert stats.kstest(lam.numpy(), "uniform").statistic < 3e-4
    flat = factor * sde.g(t) ** 2 / sde.marginal(t)[1] ** 2
    torch.testing.assert_close(flat, flat[:1].expand_as(flat), rtol=1e-8, atol=0)


def test_independent_times_are_uniform_and_stratified_ones_fill_the_steps_of_ddpm() -> None:
    t, _ = Uniform().sample(5000, 0.2, generator(), VPSDE())
    assert stats.kstest(t.numpy(), "uniform", args=(0.2, 0.8)).pvalue > 0.01
    t, _ = Stratified().sample(2000, 1e-9, generator(), DDPM())
    assert torch.equal((t * 1000).round().long().bincount()[1:], torch.full((1000,), 2))


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_repeat_with_the_generator_and_are_shuffled(name: str) -> None:
    one, two = (TIME_SAMPLERS[name].sample(64, 1e-5, generator(3), VPSDE())[0] for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, one.sort().values)


def test_second_moments_give_the_density_and_make_a_steady_loss_flat() -> None:
    times, state = learned()
    p = times.density(state)
    torch.testing.assert_close(p, 0.999 * torch.tensor([0.5, 0.125, 0.25, 0.125]).double() + 0.001 / 4)
    t, factor = LossSecondMoment(4, 2, floor=1e-12).sample(8000, 0.0, generator(), VPSDE(), state)
    loss = torch.tensor([4.0, 1.0, 2.0, 1.0]).double()[(t * 4).long()]
    torch.testing.assert_close(loss * factor, torch.full_like(t, 2.0), rtol=1e-6, atol=0)
    assert torch.equal((t * 4).long().bincount(), torch.tensor([4000, 1000, 2000, 1000]))


def test_it_is_uniform_until_every_cell_is_full_and_remembers_the_newest() -> None:
    times = LossSecondMoment(bins=2, history=3)
    state = times.start()
    for value in (1.0, 2.0):
        state = times.update(state, torch.tensor([0.1, 0.9]), torch.full((2,), value), 0.0)
        assert torch.equal(times.density(state), torch.full((2,), 0.5, dtype=torch.float64))
    before = {name: value.clone() for name, value in state.items()}
    # five in one cell at once: the last three stay
    after = times.update(state, torch.full((5,), 0.2), torch.tensor([9.0, 9.0, 3.0, 4.0, 5.0]), 0.0)
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert after["losses"][0].sort().values.tolist() == [3.0, 4.0, 5.0]
    assert after["count"].tolist() == [7, 2]
    one_by_one = state
    for value in (9.0, 9.0, 3.0, 4.0, 5.0):
        one_by_one = times.update(one_by_one, torch.tensor([0.2]), torch.tensor([value]), 0.0)
    assert all(torch.equal(one_by_one[name], after[name]) for name in after)


def test_a_step_of_ddpm_belongs_to_the_cell_below_it() -> None:
    times = LossSecondMoment(bins=10, history=1)
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert times.update(times.start(), steps, torch.ones(1000), 0.0)["count"].tolist() == [100] * 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(std=0.0), "std.*positive"),
        (lambda: LogitNormal(std=-1.0), "std.*positive"),
        (lambda: LossSecondMoment(bins=0), "bins=0"),
        (lambda: LossSecondMoment(floor=0.0), "floor=0"),
        (lambda: LogNormal(mean=90.0, std=1.0).sample(4, 1e-5, None, EDM()), "has no times"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("times", "sde"),
    [(LogNormal(corrected=True), EDM()), (LogitNormal(corrected=True), Flow()), (LogNormal(corrected=True), Flow())],
)
def test_corrected_times_have_bounded_factors_and_the_uniform_mean(times: TimeSampler, sde: SDE) -> None:
    # E of 4 t^2 (1 - log t) under uniform times is 4 (1/3 + 1/9); steep at the ends, as losses are
    generator = torch.Generator().manual_seed(0)
    means, largest = [], 0.0
    for _ in range(100):
        t, factor = times.sample(1024, 1e-5, generator, sde)
        means.append(float((factor * 4 * t**2 * (1 - torch.log(t))).mean()))
        largest = max(largest, float(factor.max()))
    means = torch.tensor(means)
    assert largest <= 10 + 1e-9
    assert abs(float(means.mean()) - 16 / 9) < 4 * float(means.std()) / 10
    assert float(means.std()) < 0.1


def test_a_floor_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1; got 0"):
        LogNormal(corrected=True, floor=0)
