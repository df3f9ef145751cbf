"""Networks of diffusers as score models: the samples of diffusers' own schedulers, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from sde_diffusion import DDPM, Guided, ScoreModel, sample  # noqa: E402
from sde_diffusion.interop import from_diffusers  # noqa: E402
from sde_diffusion.interop.diffusers_network import pack, unpack  # noqa: E402
from sde_diffusion.interop.diffusers_schedule import betas_of, read_schedule  # noqa: E402
from solvers import solve  # noqa: E402
from solvers.errors import InputError, InputTypeError, NotFoundError  # noqa: E402

# Warnings of diffusers about itself and numpy.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]

BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos": {"beta_schedule": "squaredcos_cap_v2"},
}
SCHEDULERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, "ddim"),
    "DPM++2M": (
        "DPMSolverMultistepScheduler",
        {"solver_type": "midpoint", "lower_order_final": False, "final_sigmas_type": "zero"},
        "dpm++2m",
    ),
    "UniPC": ("UniPCMultistepScheduler", {"final_sigmas_type": "zero"}, "unipc"),
    "Euler": ("EulerDiscreteScheduler", {}, "ddim"),
    "Heun": ("HeunDiscreteScheduler", {}, "edm"),
}


def unet(channels: int = 1, out: int = 1, **settings: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **settings,
    ).eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return unet()


@torch.no_grad()
def loop(scheduler: Any, network: Any, x: Tensor, steps: int) -> Tensor:
    """The loop of every diffusers pipeline."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_samples_are_those_of_the_schedulers(network: Any, prediction: str, betas: str, name: str) -> None:
    kind, settings, solver = SCHEDULERS[name]
    in_sigma = name in ("Euler", "Heun")
    # From sigma = 20,000 the float32 of their own sigmas decides: those two start where samplers do, at 901.
    spacing = "leading" if in_sigma else "trailing"
    scheduler = getattr(diffusers, kind)(
        **BETAS[betas], **settings, prediction_type=prediction, timestep_spacing=spacing, steps_offset=in_sigma
    )
    double = name == "Heun"  # in float32 its sigma is off by 3e-4 next to the data
    if double:
        scheduler.alphas_cumprod = (1 - betas_of(scheduler.config)).cumprod(0)
    net = unet().double() if double else network
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64 if double else torch.float32)
    scheduler.set_timesteps(10)
    start = noise * float(scheduler.init_noise_sigma) if in_sigma else noise
    model = from_diffusers(net, scheduler)
    times = [(t + 1) / 1000 for t in dict.fromkeys(scheduler.timesteps.tolist())] + [0.0]
    x = start * float(model.sde.marginal(times[0])[0]) if in_sigma else start
    with torch.no_grad():
        found = solve(model.sde.probability_flow(model), x, solver=solver, grid=times).x
    assert relative(found, loop(scheduler, net, start, 10)) < 1e-5


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(network: Any, prediction: str) -> None:
    scheduler = diffusers.DDIMScheduler(
        **BETAS["scaled_linear"], prediction_type=prediction, rescale_betas_zero_snr=True,
        timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    model = from_diffusers(network, scheduler)
    assert float(model.sde.marginal(1.0)[0]) == 0
    x = torch.randn(2, 1, 8, 8)
    scheduler.set_timesteps(10)
    times = [(t + 1) / 1000 for t in scheduler.timesteps.tolist()] + [0.0]
    with torch.no_grad():
        found = solve(model.sde.probability_flow(model), x, solver="ddim", grid=times).x
    assert relative(found, loop(scheduler, network, x, 10)) < 1e-5


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "trained"])
def test_betas_are_those_of_diffusers(name: str) -> None:
    settings: dict[str, Any] = {"beta_schedule": name}
    if name == "trained":
        settings = {"trained_betas": torch.linspace(1e-3, 0.1, 40).tolist(), "num_train_timesteps": 40}
    scheduler = diffusers.DDPMScheduler(**settings)
    torch.testing.assert_close(betas_of(scheduler.config), scheduler.betas.double(), rtol=2e-6, atol=1e-8)


def test_the_defaults_of_a_short_file_are_those_of_its_class() -> None:
    for kind in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DDIMScheduler", "EulerDiscreteScheduler"):
        whole = betas_of(getattr(diffusers, kind)().config | {"_class_name": kind})
        torch.testing.assert_close(betas_of({"_class_name": kind}), whole)


class Recorder(torch.nn.Module):
    """The inputs of a transformer, and a smooth output."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"in_channels": 4, "out_channels": 4, "sample_size": 4}
        self.weight = torch.nn.Parameter(torch.tensor(0.7))
        self.told: list[float] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        self.told.append(float(timestep[0]))
        return (torch.tanh(self.weight * hidden_states + timestep[:, None, None, None] / 1000),)


@pytest.mark.parametrize("solver", ["ddim", "euler"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_with_a_shift(shift: float, solver: str) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    network = Recorder()
    model = from_diffusers(network, scheduler)
    x = torch.randn(2, 4, 4, 4)
    scheduler.set_timesteps(10)
    expected = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            velocity = network(hidden_states=expected, timestep=t.expand(2))[0]
            expected = scheduler.step(velocity, t, expected).prev_sample
        asked, network.told = network.told, []
        found = solve(model.sde.probability_flow(model), x, solver=solver, grid=scheduler.sigmas.double().tolist()).x
    assert relative(found, expected) < 1e-5
    assert network.told == pytest.approx(asked, rel=1e-6)
    assert model.shape == (4, 4, 4)


def test_sd3_and_flux_transformers() -> None:
    torch.manual_seed(0)
    sd3 = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    flux = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.25, 0.75], dtype=torch.float64)
    text, pooled = torch.randn(2, 5, 8), torch.randn(2, 8)
    with torch.no_grad():
        expected = sd3(x, text, pooled, (1000 * t).float()).sample
        model = from_diffusers(sd3, scheduler)
        torch.testing.assert_close(model.velocity(x, t, text=text, pooled=pooled), expected)
        assert model.shape == (4, 8, 8)
        place = diffusers.FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
        packed = diffusers.FluxPipeline._pack_latents(x, 2, 4, 8, 8)
        answer = flux(packed, text, pooled, t.float(), place, torch.zeros(5, 3), return_dict=False)[0]
        expected = diffusers.FluxPipeline._unpack_latents(answer, 8 * 8, 8 * 8, 8)
        model = from_diffusers(flux, scheduler, shape=(4, 8, 8))
        torch.testing.assert_close(model.velocity(x, t, text=text, pooled=pooled), expected)
        assert torch.equal(pack(x), packed) and torch.equal(unpack(packed, 8, 8), x)
        assert sample(model, 3, nfe=4, text=torch.randn(3, 5, 8), pooled=torch.randn(3, 8)).shape == (3, 4, 8, 8)


def test_a_dit_has_a_learned_variance_and_a_class_for_none() -> None:
    torch.manual_seed(0)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    model = from_diffusers(dit, diffusers.DDIMScheduler())
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    label = torch.tensor([3, 7])
    with torch.no_grad():
        both = dit(torch.cat([x, x]), timestep=torch.full((4,), 499), class_labels=torch.tensor([3, 7, 10, 10])).sample[
            :, :4
        ]
        conditional, free = both.chunk(2)
        found = Guided(model, 4.0).noise(x, t, label=label)
    torch.testing.assert_close(found, free + 4 * (conditional - free), rtol=1e-5, atol=1e-5)
    assert model.shape == (4, 8, 8)


def test_a_bf16_network_has_a_float32_state(network: Any) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS["scaled_linear"])
    seen = []
    low = unet().bfloat16()
    low.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["sample"].dtype, kwargs["timestep"].dtype)), with_kwargs=True
    )
    x = sample(from_diffusers(low, scheduler), 8, nfe=20, seed=1)
    full = sample(from_diffusers(network, scheduler), 8, nfe=20, seed=1)
    assert x.dtype == torch.float32 and set(seen) == {(torch.bfloat16, torch.float32)}
    assert float((x - full).std() / full.std()) < 0.004


@pytest.mark.parametrize("part", ["pipeline", "network"])
def test_a_folder_is_read(tmp_path: Path, network: Any, part: str) -> None:
    scheduler = diffusers.DDPMScheduler(**BETAS["squaredcos"], prediction_type="v_prediction")
    pipeline = diffusers.DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.save_pretrained(tmp_path / "p")
    model = from_diffusers(tmp_path / "p" if part == "pipeline" else tmp_path / "p" / "unet")
    expected = from_diffusers(pipeline)
    assert (model.predicts, model.sde, model.shape) == ("velocity", expected.sde, (1, 8, 8))
    assert torch.equal(sample(model, 2, nfe=5), sample(expected, 2, nfe=5))
    # the module's own parameters, device and dtype
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in network.parameters())
    assert sample(model.double(), 1, nfe=2).dtype == torch.float64


def test_an_autoencoder_scales_its_latents() -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(4,), latent_channels=2, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), scaling_factor=0.3,
        shift_factor=0.1,
    ).eval()  # fmt: skip

    class Pipeline:
        unet = unet(2, 2)
        scheduler = diffusers.DDIMScheduler()

    Pipeline.vae = vae  # type: ignore[attr-defined]
    model = from_diffusers(Pipeline())
    images = torch.randn(2, 1, 8, 8)
    assert model.autoencoder is not None
    latents = model.autoencoder.encode(images)
    torch.testing.assert_close(latents, (vae.encode(images).latent_dist.mean - 0.1) * 0.3)
    torch.testing.assert_close(model.decode(latents), vae.decode(latents / 0.3 + 0.1).sample)


def test_edm_schedulers() -> None:
    net = unet()
    for kind, sign in (("epsilon", 1), ("v_prediction", -1)):
        scheduler = diffusers.EDMEulerScheduler(sigma_max=10.0, prediction_type=kind)
        model = from_diffusers(net, scheduler)
        x = torch.randn(2, 1, 8, 8) * 3
        sigma = 2.5
        c_in = 1 / (sigma**2 + 0.25) ** 0.5
        with torch.no_grad():
            out = net(c_in * x, torch.tensor(sigma).log() / 4).sample
            expected = scheduler.precondition_outputs(x, out, torch.tensor(sigma))
            found = model.denoise(x, torch.full((2,), 0.25, dtype=torch.float64))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert sign in (1, -1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: from_diffusers(net), InputError, "pass its scheduler"),
        (lambda net: from_diffusers(3), InputTypeError, "got int"),
        (lambda net: from_diffusers("nowhere"), NotFoundError, "no folder nowhere"),
        (lambda net: from_diffusers(torch.nn.Linear(1, 1), {}), InputTypeError, "from_denoiser"),
        (lambda net: from_diffusers(net, {"prediction_type": "epsilom"}), InputError, "did you mean 'epsilon'"),
        (lambda net: from_diffusers(net, {"beta_schedule": "liner"}), InputError, "did you mean 'linear'"),
        (lambda net: from_diffusers(net, 3), InputTypeError, "expected a diffusers scheduler"),
        (lambda net: from_diffusers(net, {"num_train_timesteps": 0}), InputError, "at least 1; got 0"),
        (
            lambda net: from_diffusers(net, {}).denoise(torch.zeros(1, 1, 8, 8), torch.ones(1), lable=1),
            InputError,
            "takes no condition 'lable'; it takes class_labels",
        ),
    ],
)
def test_bad_input_is_refused(network: Any, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(network)


def test_a_folder_names_no_class_but_a_network_of_diffusers(tmp_path: Path) -> None:
    for name in ("os", "DDIMScheduler", "DiffusionPipeline", None):
        folder = tmp_path / str(name)
        folder.mkdir()
        (folder / "config.json").write_text('{"_class_name": %s}' % (f'"{name}"' if name else "null"))
        with pytest.raises(InputError, match="no network of diffusers"):
            from_diffusers(folder, {})


def test_the_model_is_a_score_model_of_a_ddpm(network: Any) -> None:
    model = from_diffusers(network, {"_class_name": "DDIMScheduler"})
    assert isinstance(model, ScoreModel) and isinstance(model.sde, DDPM)
    assert read_schedule({"_class_name": "DDIMScheduler"}).time(torch.tensor(499.0)) == 0.5
