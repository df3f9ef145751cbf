"""What a user writes for each kind of network: the lines run, and their number is that of the page's table."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion.interop as interop
from sde_diffusion import Guided, ScoreModel, sample

PAGE = Path(__file__).resolve().parents[3] / "docs" / "bring-your-network.md"
NAMES = (
    "Scheduler", "from_azula", "from_denoiser", "from_diffusers", "from_discrete", "from_score_sde", "from_velocity",
    "sampler",
)  # fmt: skip
BLOCKS = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8,), "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
}  # fmt: skip

Given = dict[str, Any]


class Net(nn.Module):
    """A network of points, which states the levels and shape that EDM's networks state."""

    sigma_min, sigma_max, img_channels, img_resolution = 0.002, 80.0, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return x * self.scale


def plain() -> Given:
    return {"net": Net()}


def flow() -> Given:
    return {"net": lambda t, x: -x}


def unet() -> Given:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(in_channels=1, out_channels=1, **BLOCKS)
    return {"unet": network, "scheduler": diffusers.DDPMScheduler()}


def text_unet() -> Given:
    diffusers = pytest.importorskip("diffusers")
    blocks = {**BLOCKS, "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    network = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, cross_attention_dim=8, attention_head_dim=4, **blocks
    )
    text = {"text": torch.randn(2, 3, 8), "negative": torch.randn(2, 3, 8)}
    return {"unet": network, "scheduler": diffusers.DDIMScheduler(), **text}


def dit() -> Given:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    return {"dit": network, "scheduler": diffusers.DDIMScheduler(), "label": torch.tensor([3, 7])}


def sd3() -> Given:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    text = {"text": torch.randn(2, 5, 8), "pooled": torch.randn(2, 8)}
    return {"transformer": network, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **text}


def azula() -> Given:
    pytest.importorskip("azula", exc_type=ImportError)
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    return {"denoiser": KarrasDenoiser(Net(), VPSchedule())}


def pipeline() -> Given:
    diffusers = pytest.importorskip("diffusers")
    given = unet()
    pipe = diffusers.DDPMPipeline(given["unet"], given["scheduler"])
    pipe.set_progress_bar_config(disable=True)
    return {"pipe": pipe}


def levels() -> Given:
    return {"net": Net(), "x": 10 * torch.randn(2, 3), "sigmas": torch.tensor([10.0, 1.0, 0.1, 0.0])}


KINDS: dict[str, tuple[Callable[[], Given], str, tuple[str, ...]]] = {
    "UNet2DModel, any prediction and schedule": (unet, "model = from_diffusers(unet, scheduler)", ()),
    "UNet2DConditionModel with guidance and negative prompts": (
        text_unet,
        "model = from_diffusers(unet, scheduler)\nmodel = Guided(model, 7.5, null={'text': negative})",
        ("text",),
    ),
    "DiT with class guidance": (
        dit,
        "model = from_diffusers(dit, scheduler)\nmodel = Guided(model, 4.0)",
        ("label",),
    ),
    "SD3-style transformer": (sd3, "model = from_diffusers(transformer, scheduler)", ("text", "pooled")),
    "EDM, k-diffusion": (plain, "model = from_denoiser(net)", ()),
    "guided-diffusion": (plain, "model = from_discrete(net, 'cosine', shape=(2,))", ()),
    "score_sde": (plain, "model = from_score_sde(net, 'vp', shape=(2,))", ()),
    "torchcfm, flow_matching": (flow, "model = from_velocity(net, time='reversed', shape=(2,))", ()),
    "azula": (azula, "model = from_azula(denoiser, shape=(2,))", ()),
    "a solver in a diffusers pipeline": (
        pipeline,
        "pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver='unipc')",
        (),
    ),
    "a solver in k-diffusion or ComfyUI": (levels, "x = sampler('unipc')(net, x, sigmas)", ()),
}
"""What is given, the lines, and the conditions of a sample."""


def rows() -> dict[str, tuple[int, int]]:
    """The table of the page: lines before and with ``interop``."""
    table = PAGE.read_text().split("## Lines of code that you write")[1]
    found = re.findall(r"^\| ([^|]+?) \| (\d+) \| (\d+) \|$", table, re.MULTILINE)
    return {kind: (int(before), int(after)) for kind, before, after in found}


def test_the_table_has_every_kind_and_no_more_than_three_lines() -> None:
    assert set(rows()) == set(KINDS)
    assert all(after <= 3 and after < before for before, after in rows().values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_run_and_are_as_many_as_the_page_says(kind: str) -> None:
    make, lines, conditions = KINDS[kind]
    assert len(ast.parse(lines).body) == len(lines.splitlines()) == rows()[kind][1]
    torch.manual_seed(0)
    given = make()
    used = {node.id for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Name)}
    scope = {"Guided": Guided, **{name: getattr(interop, name) for name in NAMES if name in used}, **given}
    exec(lines, scope)
    if "pipe" in given:
        assert given["pipe"](num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 1)
    elif "sigmas" in given:
        assert scope["x"].shape == (2, 3) and bool(scope["x"].isfinite().all())
    else:
        model = scope["model"]
        assert isinstance(model, ScoreModel | Guided)
        x = sample(model, 2, nfe=4, solver="unipc", **{name: given[name] for name in conditions})
        assert len(x) == 2 and bool(x.isfinite().all())
