"""A tuned solver inside pipelines of diffusers: the samples of solve, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from sde_diffusion import ScoreModel, tune  # noqa: E402
from sde_diffusion.interop import Scheduler, from_diffusers  # noqa: E402
from sde_diffusion.interop.diffusers_schedule import read_schedule  # noqa: E402
from solvers import Solver, solve  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]
NFE, SHAPE = 4, (1, 8, 8)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    made = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    return made.eval()


@pytest.fixture(scope="module")
def table(unet: Any) -> Solver:
    """What tune returns for the network of the pipeline; not one of the named solvers."""
    model = from_diffusers(unet, diffusers.DDPMScheduler())
    return tune(model, nfe=NFE, shape=SHAPE, noise_samples=16, held_out=4)


def scheduler_of(table: Solver) -> Any:
    return Scheduler.from_config(diffusers.DDPMScheduler().config, solver=table, sample_shape=SHAPE)


def expected(pipe: Any, x1: Tensor, table: Solver) -> Tensor:
    model = from_diffusers(pipe)
    with torch.no_grad():
        return solve(model.sde.probability_flow(model), x1, solver=table, nfe=NFE).x


@pytest.mark.slow
def test_an_unconditional_pipeline_gives_the_samples_of_solve(unet: Any, table: Solver) -> None:
    pipe = diffusers.DDPMPipeline(unet, scheduler_of(table))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe(batch_size=3, generator=generator, num_inference_steps=NFE, output_type="np").images
    x1 = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    x = expected(pipe, x1, table)
    assert float(x.abs().max()) > 1  # the pipeline clamps
    found = torch.from_numpy(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    other = solve(from_diffusers(pipe).sde.probability_flow(from_diffusers(pipe)), x1, solver="unipc", nfe=NFE).x
    assert float((other - x).abs().max()) > 1e-3


@pytest.mark.slow
def test_the_folder_of_a_pipeline_keeps_the_table(unet: Any, table: Solver, tmp_path: Any) -> None:
    pipe = diffusers.DDPMPipeline(unet, scheduler_of(table))
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline(diffusers.UNet2DModel.from_pretrained(tmp_path / "unet"),
                                   Scheduler.from_pretrained(tmp_path / "scheduler"))  # fmt: skip
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.solver == table
    images = again(generator=torch.Generator().manual_seed(3), num_inference_steps=NFE, output_type="np").images
    x = expected(pipe, torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3)), table)
    assert float((torch.from_numpy(images).permute(0, 3, 1, 2) - (x / 2 + 0.5).clamp(0, 1)).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_loop_of_its_own_over_the_timesteps_gives_the_samples_of_solve() -> None:
    base = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    model = ScoreModel(lambda x, t: 0.1 * torch.tanh(x), read_schedule(base.config).sde, "noise", (4, 8, 8))
    table = tune(model, nfe=3, noise_samples=16, held_out=4, seed=0)
    scheduler = Scheduler.from_config(base.config, solver=table, sample_shape=(4, 8, 8))
    scheduler.set_timesteps(3)
    x = x1 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * torch.tanh(x), t, x).prev_sample
    out = solve(model.sde.probability_flow(model), x1, solver=table, nfe=3).x
    torch.testing.assert_close(x, out, rtol=0, atol=1e-5 * float(out.abs().max()))
