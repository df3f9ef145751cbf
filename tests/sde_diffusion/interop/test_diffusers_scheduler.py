"""Solvers inside diffusers' pipelines: the samples of solve, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from sde_diffusion import Guided  # noqa: E402
from sde_diffusion.interop import Scheduler, from_diffusers  # noqa: E402
from solvers import SOLVERS, plan, solve  # noqa: E402
from solvers.brownian_path import BrownianPath  # noqa: E402
from solvers.errors import InputError, StateError  # noqa: E402
from solvers.fitted.compile import compile_table  # noqa: E402
from solvers.fitted.pf_ode import ProbabilityFlow  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]
SHAPE = (4, 8, 8)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive and name != "annealed-langevin"]


class Words:
    """A tokenizer of eight words."""

    model_max_length = 6

    def __call__(self, prompts: Any, **_: Any) -> Any:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        rows = [([1 + sum(map(ord, word)) % 7 for word in text.split()] + [0] * 6)[:6] for text in prompts]

        class Tokens:
            input_ids = torch.tensor(rows)
            attention_mask = torch.ones(len(rows), 6)

        return Tokens()

    added_tokens_encoder: dict[str, int] = {}  # noqa: RUF012

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def batch_decode(self, *_: Any) -> list[str]:
        return []


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(4, 4, 4, 4), latent_channels=4, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=64,
    ).eval()  # fmt: skip
    config = transformers.CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=0, eos_token_id=7, pad_token_id=0,
    )  # fmt: skip
    text = transformers.CLIPTextModel(config).eval()
    return {"unet": unet, "vae": vae, "text_encoder": text}


def pipeline(parts: dict[str, Any], scheduler: Any, kind: str = "StableDiffusionPipeline") -> Any:
    made = getattr(diffusers, kind)(
        **parts, tokenizer=None, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    made.tokenizer = Words()
    made.set_progress_bar_config(disable=True)
    return made


def ours(solver: Any, **settings: Any) -> Any:
    base = diffusers.DDIMScheduler(**SD, clip_sample=False)
    return Scheduler.from_config(base.config, solver=solver, sample_shape=SHAPE, **settings)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


PROMPTS, NEGATIVE = ["a red cat", "one blue dog"], ["bad", "very ugly"]


def guided(pipe: Any) -> tuple[Any, Tensor]:
    text, none = pipe.encode_prompt(PROMPTS, "cpu", 1, True, NEGATIVE)
    return Guided(from_diffusers(pipe), 7.5, null={"text": none}), text


def at_its_times(solver: Any) -> Any:
    """The solver that evaluates at the times of its grid alone, as a pipeline does; a random network looks wide."""
    return ProbabilityFlow(scale=1.0) if solver == "pf-ode" else solver


def tuned_table() -> Any:
    problem = from_schedule()
    times = plan(problem, SHAPE, "unipc", nfe=6)[1]
    return compile_table(SOLVERS["unipc"], problem.path, len(times) - 1, times)


def from_schedule() -> Any:
    from sde_diffusion.interop.diffusers_schedule import read_schedule
    from solvers import ReverseProcess

    return ReverseProcess(lambda x, t: x, read_schedule(SD).sde)


@pytest.mark.parametrize(
    "name", ["pf-ode", "unipc", "heun", "adams", "dpm++3s", "dpm++2m-sde", "sde", "restart", "table"]
)
def test_stable_diffusion_with_guidance_and_negative_prompts(parts: dict[str, Any], name: str) -> None:
    solver = tuned_table() if name == "table" else name
    nfe = 6 if name == "table" else 14 if name == "restart" else 8
    pipe = pipeline(parts, ours(solver))
    latents = torch.randn(2, *SHAPE)
    seen: list[float] = []

    def callback(pipe: Any, i: int, t: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(t))
        return values

    found = pipe(
        PROMPTS, negative_prompt=NEGATIVE, latents=latents, num_inference_steps=nfe, guidance_scale=7.5,
        output_type="latent", generator=torch.Generator().manual_seed(3), callback_on_step_end=callback,
    ).images  # fmt: skip
    model, text = guided(pipe)
    stochastic = pipe.scheduler.solver.stochastic
    generator = torch.Generator().manual_seed(3)
    seeds = [int(torch.randint(2**62, (), generator=generator)) for _ in range(2)]
    with torch.no_grad():
        out = solve(
            model.sde.reverse(model, float(stochastic), text=text), latents, solver=at_its_times(solver), nfe=2 * nfe,
            seeds=seeds if stochastic else None,
        )  # fmt: skip
    assert relative(found, out.x) < 1e-5
    assert len(seen) == int(out.nfe[0]) / 2 <= nfe


@pytest.mark.parametrize("name", FIXED)
def test_every_solver_with_fixed_steps_is_that_of_solve(parts: dict[str, Any], name: str) -> None:
    scheduler = ours(name)
    model = from_diffusers(parts["unet"], SD)
    scheduler.set_timesteps(13)
    text = torch.randn(1, 6, 8)
    x1 = torch.randn(1, *SHAPE)
    with torch.no_grad():
        x = x1
        for t in scheduler.timesteps:
            output = parts["unet"](scheduler.scale_model_input(x, t), t, text).sample
            x = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(5)).prev_sample
        seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
        problem = model.sde.reverse(model, float(SOLVERS[name].stochastic), text=text)
        out = solve(problem, x1, solver=at_its_times(name), nfe=13, seeds=[seed])
    assert relative(x, out.x) < 1e-5
    assert len(scheduler.timesteps) == int(out.nfe[0])


@pytest.mark.parametrize("name", ["pf-ode", "unipc", "dpm++2m-sde"])
@pytest.mark.parametrize("strength", [0.5, 0.25])
def test_img2img_is_a_partial_solve(parts: dict[str, Any], name: str, strength: float) -> None:
    scheduler = ours(name)
    pipe = pipeline(parts, scheduler, "StableDiffusionImg2ImgPipeline")
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    found = pipe(
        PROMPTS[0], image=image, strength=strength, num_inference_steps=8, guidance_scale=1.0, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    steps = round(8 * strength)
    times = scheduler._asked.times[-steps - 1 :]
    generator = torch.Generator().manual_seed(3)
    latents = pipe.vae.encode(image).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    model = from_diffusers(pipe)
    start = model.sde.perturb(latents, float(times[0]), noise)
    stochastic = scheduler.solver.stochastic
    text = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0]
    problem = model.sde.reverse(model, float(stochastic), text=text)
    seeds = [int(torch.randint(2**62, (), generator=generator))]
    with torch.no_grad():
        out = solve(problem, start, solver=name, grid=times, seeds=seeds if stochastic else None)
    assert relative(found, out.x) < 1e-5
    assert int(out.nfe[0]) == steps


def test_inpainting_begins_the_history_again_after_every_change(parts: dict[str, Any]) -> None:
    # Blending changes x after every step, so that each step is a first one: of dpm++2m those are ddim's.
    results = []
    for name in ("dpm++2m", "ddim"):
        scheduler = ours(name, grid="log-snr")
        pipe = pipeline(parts, scheduler, "StableDiffusionInpaintPipeline")
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., :32] = 1
        image = torch.zeros(1, 3, 64, 64) + torch.linspace(-1, 1, 64)
        out = pipe(
            PROMPTS[0], image=image, mask_image=mask, num_inference_steps=6, guidance_scale=1.0, output_type="latent",
            latents=torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)), height=64, width=64,
            generator=torch.Generator().manual_seed(3),
        ).images  # fmt: skip
        results.append(out)
        assert scheduler._run.restarts == 5
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def step_through(scheduler: Any, change: Any) -> Tensor:
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        x = change(i, scheduler.step(0.1 * torch.tanh(x), t, x).prev_sample)
    return x


@pytest.mark.parametrize("name", ["unipc", "pf-ode", "deis", "dpm++2m-sde"])
def test_a_callback_that_changes_the_latents_is_a_new_start(name: str) -> None:
    scheduler = ours(name)
    scheduler.set_timesteps(8)
    k = 3
    kept: list[Tensor] = []

    def change(i: int, x: Tensor) -> Tensor:
        if i != k - 1:
            return x
        kept.append(x + 1)
        return kept[0]

    torch.manual_seed(4)
    found = step_through(scheduler, change)
    model = from_diffusers_stub()
    times = scheduler._asked.times
    stochastic = SOLVERS[name].stochastic
    torch.manual_seed(4)
    seed = int(torch.randint(2**62, ()))
    problem = model.sde.reverse(model, float(stochastic))
    out = solve(problem, kept[0], solver=name, grid=times[k:], seeds=[seed])
    if not stochastic:  # a shorter grid has a shallower tree, so another path
        assert relative(found, out.x) < 1e-5
    else:
        from solvers import evaluations

        noise = BrownianPath.along(torch.tensor([seed]), problem.clock, times)
        run = evaluations(problem, kept[0], times[k:], name, noise)
        x, t = next(run)
        try:
            while True:
                x, t = run.send(model.denoise(x, t))
        except StopIteration as end:
            assert relative(found, end.value) < 1e-5


def from_diffusers_stub() -> Any:
    from sde_diffusion import ScoreModel
    from sde_diffusion.interop.diffusers_schedule import read_schedule

    return ScoreModel(lambda x, t: 0.1 * torch.tanh(x), read_schedule(SD).sde, "noise", SHAPE)


def test_a_change_inside_a_step_is_refused() -> None:
    scheduler = ours("heun")
    scheduler.set_timesteps(9)
    with pytest.raises(InputError, match="evaluation 1 of 9 is no beginning of a step of Heun"):
        step_through(scheduler, lambda i, x: x + 1)


def test_a_table_cannot_begin_late() -> None:
    scheduler = ours(tuned_table())
    scheduler.set_timesteps(6)
    with pytest.raises(InputError, match="cannot begin at step 3 of 6"):
        step_through(scheduler, lambda i, x: x + 1 if i == 1 else x)


def test_tuned_solvers_are_saved_and_read(tmp_path: Path, parts: dict[str, Any]) -> None:
    scheduler = ours(tuned_table())
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert again.solver == scheduler.solver and again.problem.path == scheduler.problem.path
    for one in (scheduler, again):
        one.set_timesteps(6)
    assert torch.equal(step_through(scheduler, lambda i, x: x), step_through(again, lambda i, x: x))
    named = ours("unipc", grid="karras")
    named.save_pretrained(tmp_path / "named")
    read = Scheduler.from_pretrained(tmp_path / "named")
    assert read.solver == SOLVERS["unipc"] and read.config.grid == "karras" and read.schedule == named.schedule


def test_flow_models_keep_given_sigmas_with_their_shift() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler = Scheduler.from_config(theirs.config, solver="euler")
    assert scheduler.schedule.predicts == "velocity"
    sigmas = np.linspace(1.0, 0.1, 10)
    theirs.set_timesteps(sigmas=sigmas.tolist())
    scheduler.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps.float())
    x = y = torch.randn(2, *SHAPE)
    for t in theirs.timesteps:
        x = theirs.step(torch.sin(x), t, x).prev_sample
    for t in scheduler.timesteps:
        y = scheduler.step(torch.sin(y), t, y).prev_sample
    assert relative(y, x) < 1e-5
    assert len(scheduler) == 1000


def test_edm_models() -> None:
    theirs = diffusers.EDMEulerScheduler(sigma_max=20.0, final_sigmas_type="zero")
    scheduler = Scheduler.from_config(theirs.config, solver="ddim", sample_shape=SHAPE)
    theirs.set_timesteps(8)
    scheduler.set_timesteps(sigmas=theirs.sigmas[:-1])
    x = torch.randn(2, *SHAPE)
    one, other = x * theirs.init_noise_sigma, x * scheduler.init_noise_sigma
    for a, b in zip(theirs.timesteps, scheduler.timesteps, strict=True):
        first = theirs.scale_model_input(one, a)
        second = scheduler.scale_model_input(other, b)
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
        one = theirs.step(torch.tanh(first), a, one).prev_sample
        other = scheduler.step(torch.tanh(second), b, other).prev_sample
    assert relative(other, one) < 1e-5


def test_half_precision_keeps_a_float32_state() -> None:
    scheduler = ours("unipc")
    scheduler.set_timesteps(12)
    full = step_through(scheduler, lambda i, x: x)
    scheduler.set_timesteps(12)
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * torch.tanh(x), t, x).prev_sample
        assert x.dtype == torch.bfloat16
    assert scheduler._run.restarts == 0
    assert scheduler._state.dtype == torch.float32
    assert relative(scheduler._state, full) < 0.02


def test_the_pipeline_of_a_folder_is_found_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    base = diffusers.DDPMScheduler()
    scheduler = Scheduler.from_config(base.config, solver="pf-ode", sample_shape=(1, 8, 8))
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    images = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=6, output_type="np").images
    model = from_diffusers(tmp_path)
    assert model.sde == from_diffusers(pipe).sde
    x1 = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = solve(model.sde.probability_flow(model), x1, solver=at_its_times("pf-ode"), nfe=6).x
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda s: s.step(torch.zeros(1, *SHAPE), 1, torch.zeros(1, *SHAPE)), StateError, "set the timesteps first"),
        (lambda s: s.set_timesteps(), InputError, "num_inference_steps=20"),
        (lambda s: s.set_timesteps(5, timesteps=[1], sigmas=[1]), InputError, "not both"),
        (lambda s: ours("heun2"), InputError, "did you mean 'heun'"),
        (lambda s: ours("rk45").set_timesteps(5), InputError, "a solver with fixed steps"),
        (lambda s: ours("pf-ode", prediction_type="eps"), InputError, "prediction_type"),
    ],
)
def test_bad_input_is_refused(act: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act(ours("ddim"))


def test_steps_out_of_order_and_other_shapes_are_refused() -> None:
    scheduler = ours("dpm++2m")
    scheduler.set_timesteps(5)
    x = torch.randn(1, *SHAPE)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(InputError, match=r"number 2 of 5; got 999"):
        scheduler.step(x, scheduler.timesteps[0], x)
    large = Scheduler.from_config(diffusers.DDIMScheduler().config, solver="pf-ode")
    large.set_timesteps(8)
    with pytest.raises(InputError, match=r"sample_shape=\(4, 8, 8\)"):
        large.step(x, large.timesteps[0], x)
    with pytest.raises(InputError, match="2 generators for 1 samples"):
        noisy = ours("sde")
        noisy.set_timesteps(5)
        noisy.step(x, noisy.timesteps[0], x, generator=[torch.Generator(), torch.Generator()])
