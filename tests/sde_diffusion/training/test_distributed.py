"""The engine refuses what it cannot do, and processes agree on when to stop."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

from sde_diffusion.training.distributed import Distributed, Precise
from sde_diffusion.training.interrupts import StopVote


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        Distributed("cuda", "fp32")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="the tracker wandb is not installed: pip install wandb"):
        Distributed("cpu", "fp32", "wandb")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"sets precision bf16 and the options fp32; .*--precision bf16"):
        Distributed("cpu", "fp32")
    assert Distributed("cpu", "bf16").dtype == torch.bfloat16


def test_gradients_reach_float32_weights_through_half_precision() -> None:
    torch.manual_seed(0)
    inner, x = nn.Linear(8, 8), torch.randn(16, 8)
    exact = torch.autograd.grad(inner(x).square().sum(), inner.weight)[0]
    rough = torch.autograd.grad(Precise(inner, torch.bfloat16)(x).square().sum(), inner.weight)[0]
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    # bfloat16 has 8 bits
    assert float((rough - exact).norm() / exact.norm()) < 2**-7


def test_an_error_is_raised_once_and_a_result_returned() -> None:
    engine = Distributed("cpu", "fp32")
    assert engine.alike(lambda: 3) == 3
    with pytest.raises(OSError, match="full"):
        engine.once(lambda: (_ for _ in ()).throw(OSError("full")))


def test_processes_stop_at_one_step_and_ask_rarely() -> None:
    # Two processes in lockstep: the second catches a signal at step 40, the first never does.
    caught: list[list[int]] = [[], []]
    asked: list[list[float]] = []
    answers: list[float] = []

    def agree(*values: float) -> list[float]:
        # The other process says the same, and what it caught; a step takes 1/16 s.
        asked.append(list(values))
        answers.append(max([0.0, *caught[1]]))
        return [max(values[0], answers[-1]), 1 / 16]

    stop = StopVote(agree, caught[0])
    stopped = None
    for step in range(1000):
        if step == 40:
            caught[1].append(signal.SIGTERM)
        if stop.reached(step):
            stopped = step
            break
    # It asks at 0, 1, 17, 33, 49.
    assert (stopped, len(asked)) == (49, 5)
    assert caught[0] == [signal.SIGTERM]
