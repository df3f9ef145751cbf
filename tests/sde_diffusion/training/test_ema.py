"""The average of the weights: its value, its precision, and that nothing else is disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sde_diffusion.training.ema import EMA, gamma_of


def random_walk(network: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for p in network.parameters():
            p += torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_average_is_the_weighted_sum_of_all_past_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(3, 2)
    ema = EMA(network, decay=0.9)
    history = [network.weight.detach().double().clone()]
    for k in range(1, 201):
        random_walk(network, generator)
        ema.update(k)
        history.append(network.weight.detach().double().clone())
    # The weight of step j is (1 - d_j) times every later decay; all of them sum to 1.
    decays = [0.0] + [min(0.9, (1 + k) / (10 + k)) for k in range(1, 201)]
    shares = [(1 - decays[j]) * float(torch.tensor(decays[j + 1 :], dtype=torch.float64).prod()) for j in range(201)]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    expected = sum(s * h for s, h in zip(shares, history, strict=True))
    torch.testing.assert_close(ema.state()["weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_small_changes_are_not_lost_in_bfloat16() -> None:
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(network.weight, 1.0)
    ema = EMA(network, decay=0.999)
    nn.init.constant_(network.weight, 1.0078125)  # the next bfloat16 after 1
    for k in range(10_000, 10_100):
        ema.update(k)
    moved = (float(ema.state()["weight"]) - 1) / 0.0078125
    assert moved == pytest.approx(1 - 0.999**100, rel=1e-3)


def test_buffers_are_averaged_and_counters_copied() -> None:
    network = nn.BatchNorm1d(2)
    ema = EMA(network, decay=0.5)
    network(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))  # running mean 0.1 * (2, 4)
    ema.update(100)
    torch.testing.assert_close(ema.state()["running_mean"], torch.tensor([0.1, 0.2]))
    assert int(ema.state()["num_batches_tracked"]) == 1


def test_swap_and_restore_are_bit_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(4, 4)
    ema = EMA(network)
    for k in range(1, 20):
        random_walk(network, generator)
        ema.update(k)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    saved = {name: value.clone() for name, value in ema.state().items()}
    with pytest.raises(RuntimeError, match="inside"), ema.swapped():
        assert torch.equal(network.weight, saved["weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())

    other = EMA(network)
    other.restore(saved)
    random_walk(network, generator)
    ema.update(20)
    other.update(20)
    assert torch.equal(ema.state()["weight"], other.state()["weight"])
    assert torch.equal(ema.state()["bias"], other.state()["bias"])


def test_bad_decay_and_foreign_state_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lies in \[0, 1\); got 1.0"):
        EMA(nn.Linear(1, 1), decay=1.0)
    with pytest.raises(ValueError, match="another network"):
        EMA(nn.Linear(1, 1)).restore(nn.Linear(2, 1).state_dict())


def test_a_power_average_is_the_uniform_mean_at_its_largest_width_and_forgets_the_start() -> None:
    # gamma = 0 has the profile 1/k: the mean of all weights after an update, whatever the start was.
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(2, 1, bias=False).double()
    ema = EMA(network, decay=lambda k: 1 - 1 / k)
    history = []
    for k in range(1, 51):
        random_walk(network, generator)
        ema.update(k)
        history.append(network.weight.detach().clone())
    torch.testing.assert_close(ema.state()["weight"], torch.stack(history).mean(0), rtol=1e-12, atol=1e-12)
    assert gamma_of(0.288) == pytest.approx(0, abs=2e-2)  # 12^-1/2 = 0.2887


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_profile(width: float) -> None:
    power, n = gamma_of(width) + 1, 20_000
    share = np.diff((np.arange(n + 1) / n) ** power)
    place = (np.arange(n) + 0.5) / n
    mean = share @ place
    assert np.sqrt(share @ (place - mean) ** 2) == pytest.approx(width, rel=1e-4)
