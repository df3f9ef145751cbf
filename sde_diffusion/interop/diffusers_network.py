r"""The calling conventions of diffusers' networks, read from the arguments of their ``forward``.

    U-Nets               forward(sample, timestep, encoder_hidden_states=..., class_labels=...)
    DiT, PixArt, SD3     forward(hidden_states=..., timestep=..., class_labels=..., encoder_hidden_states=...)
    Flux                 forward(hidden_states=packed, img_ids=..., txt_ids=..., timestep=t)

Conditions have the names of these arguments; ``label`` and ``text`` stand for class_labels and encoder_hidden_states.
``concat`` is put beside x as further channels (inpainting, upscaling). Flux receives latents in patches of 2 x 2 and
their positions: packing is done here, so that x is an image (B, C, H, W) as everywhere.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.interop.diffusers_schedule import Schedule
from sde_diffusion.interop.foreign import ForeignNetwork
from sde_diffusion.models.outputs import tensor_of
from solvers.errors import InputError, InputTypeError

_SHORT = {"label": "class_labels", "text": "encoder_hidden_states", "pooled": "pooled_projections"}


def pack(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as sequences of their 2 x 2 patches, (B, H W / 4, 4 C).

    Raises:
        ValueError: an odd height or width.

    >>> pack(torch.arange(8.0).reshape(1, 1, 2, 4)).tolist()
    [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    b, c, h, w = x.shape
    if h % 2 or w % 2:
        raise InputError(f"latents of this transformer are cut into patches of 2 x 2; got {h} x {w}")
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(sequence: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``pack``.

    >>> x = torch.randn(2, 3, 4, 6)
    >>> torch.equal(unpack(pack(x), 4, 6), x)
    True
    """
    b, _, c = sequence.shape
    patches = sequence.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """The place of every patch, (H W / 4, 3): 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).to(like)


class DiffusersNetwork(ForeignNetwork):
    """A network of diffusers.

    Args:
        network: the module.
        schedule: settings of its scheduler.

    Raises:
        TypeError: its forward has neither ``sample`` nor ``hidden_states``.
    """

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__(network)
        names = list(inspect.signature(network.forward).parameters)
        if "timestep" not in names or not {"sample", "hidden_states"} & set(names):
            raise InputTypeError(
                f"{type(network).__name__} is not called as networks of diffusers are (sample or hidden_states, and "
                "timestep); use from_denoiser, from_velocity or from_discrete for it"
            )
        self.schedule = schedule
        self.names = names
        self.packed = "img_ids" in names
        config = dict(getattr(network, "config", {}))
        classes = config.get("num_embeds_ada_norm") if "class_labels" in names else None
        # What means "no class" where a DiT was trained with dropped labels: the entry after the last.
        self.settings = {"classes": classes}
        learned = config.get("time_embedding_type") == "learned"
        self.rounded = learned

    def label(self, t: Tensor) -> Tensor:
        """The timestep; c_noise of "edm" comes from the score model."""
        if self.schedule.predicts == "edm":
            return t
        label = self.schedule.label(t)
        if self.packed:
            return label / self.schedule.steps
        return label.round().long() if self.rounded else label

    def call(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """The network's output for an image or latent."""
        given = {_SHORT.get(name, name): value for name, value in condition.items()}
        beside = given.pop("concat", None)
        if unknown := [name for name in given if name not in self.names]:
            able = [n for n in self.names if n not in ("sample", "hidden_states", "timestep", "return_dict")]
            raise InputError(
                f"{type(self.network).__name__} takes no condition '{unknown[0]}'; it takes {', '.join(able)}"
            )
        if beside is not None:
            x = torch.cat([x, beside], dim=1)
        if self.packed:
            return self._call_packed(x, label, given)
        if "return_dict" in self.names:
            given["return_dict"] = False
        first = "sample" if "sample" in self.names else "hidden_states"
        answer = self.network(**{first: x}, timestep=label, **given)
        return self._signed(answer)

    def _call_packed(self, x: Tensor, label: Tensor, given: dict[str, Any]) -> Any:
        height, width = x.shape[-2:]
        text = given.get("encoder_hidden_states")
        given.setdefault("img_ids", positions(height, width, x))
        if text is not None:
            given.setdefault("txt_ids", torch.zeros(text.shape[1], 3, dtype=x.dtype, device=x.device))
        answer = self.network(hidden_states=pack(x), timestep=label, return_dict=False, **given)
        return self._signed(unpack(tensor_of(answer), height, width))

    def _signed(self, answer: Any) -> Any:
        return -tensor_of(answer) if self.schedule.negated else answer


def shape_of(network: nn.Module) -> tuple[int, ...] | None:
    """The shape of one sample that a network's config states: (channels, height, width); None where it is open."""
    config = dict(getattr(network, "config", {}))
    inside, outside = config.get("in_channels"), config.get("out_channels")
    size = config.get("sample_size")
    if inside is None or size is None or "img_ids" in inspect.signature(network.forward).parameters:
        return None
    # Inpainting networks take more channels than they return, networks with a learned variance return more.
    channels = inside if outside is None else min(inside, outside)
    if isinstance(size, int):
        size = (size,) * (1 if type(network).__name__.startswith("UNet1D") else 2)
    return (channels, *size)
