"""On CUDA every solver gives the samples of the CPU, from the same noise, without waiting for the device.

pytest -m gpu tests/test_gpu.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde_diffusion import VPSDE, ScoreModel, load, sample
from sde_diffusion.models.speed import Speed
from sde_diffusion.networks import build
from sde_diffusion.parallel.pool import Pool
from sde_diffusion.sampling import sharded
from sde_diffusion.sampling.job import new_job
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.storage.locate import find_model
from sde_diffusion.storage.sharded_set import create
from solvers import SOLVERS, plan, steps
from solvers.noise import BROWNIAN, standard_normal
from solvers.planning import noise_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

ELSEWHERE = {"torchdiffeq", "scipy", "torchsde"}  # loops of other libraries, which wait for the device
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive and name not in ELSEWHERE]
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7}


def model(device: str, dtype: torch.dtype = torch.float32) -> ScoreModel:
    torch.manual_seed(0)
    network = build("unet", shape=(1, 8, 8), channels=16, multipliers=(1, 2), blocks=1, attention=(4,))
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts at 0
            parameter.add_(0.02 * torch.randn_like(parameter))
    return ScoreModel(network, VPSDE(), "velocity", (1, 8, 8)).to(device=device, dtype=dtype).eval()


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No TF32, so that float32 is float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def drawn(made: ScoreModel, name: str) -> Tensor:
    budget = {} if SOLVERS[name].adaptive else {"steps": 6}
    return sample(made, 4, solver=name, seed=3, **budget).cpu().double()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_gives_the_samples_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    with plain_arithmetic():
        found, expected = drawn(model("cuda", dtype), name), drawn(model("cpu", dtype), name)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_network_in_bfloat16_gives_nearby_samples(name: str) -> None:
    made = model("cuda")
    expected = drawn(made, name)
    Speed("bf16").apply(made.network)
    found = drawn(made, name)
    assert bool(found.isfinite().all())
    assert float((found - expected).square().mean().sqrt()) < 0.1 * float(expected.square().mean().sqrt())


def test_noise_has_the_same_bits() -> None:
    sde = VPSDE()
    assert torch.equal(
        sde.prior((5, 3, 8, 8), seeds=range(5), device="cuda").cpu(), sde.prior((5, 3, 8, 8), seeds=range(5))
    )
    assert standard_normal(range(3), (4,), BROWNIAN).device.type == "cpu"


@pytest.mark.parametrize("name", FIXED)
def test_the_loop_of_a_fixed_step_solver_never_waits(name: str) -> None:
    made = model("cuda")
    solver = SOLVERS[name]
    process = made.sde.reverse(made, float(solver.stochastic))
    x = made.sde.prior((4, 1, 8, 8), seeds=range(4), device="cuda")
    solver, times = plan(process, x.shape[1:], solver, steps=6)

    def run() -> Tensor:
        noise = noise_of(process, solver, range(4), times, 4)
        last = x
        for step in steps(process, x, times, solver, noise):
            last = step.x
        return last

    with torch.no_grad():
        run()  # kernels are chosen in the first call
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_shards_resume_with_the_same_bits(tmp_path: Path) -> None:
    settings = SamplingSettings("pf-ode", nfe=5, batch_size=64)
    job = new_job(find_model("bundled"), 256, settings, shards=sharded.shards_for(256, "npz", 64, 64), device="cuda")
    found = create(tmp_path / "set", job.record)
    with Pool(sharded.work_of(job)) as pool:
        assert pool is not None
        before = sharded.run_sharded(job, found, pool)
        found.path(2).unlink()
        assert sharded.run_sharded(job, found, pool) == before


def test_a_compiled_network_gives_the_same_samples() -> None:
    made = load("bundled", device="cuda")
    before = sample(made, 16, nfe=5)
    Speed(compiled=True).apply(made.network)
    torch.testing.assert_close(sample(made, 16, nfe=5), before, rtol=1e-2, atol=1e-2)
