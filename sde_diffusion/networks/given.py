r"""Conditions of a network besides time and class: a vector, an image on the sample's grid, tokens.

    vector   (B, K)            a linear function of z = (c - mean) / std is added to the conditioning vector
    image    (B, C, ...)       z, resized to the sample's size, is concatenated to x along the channels
    tokens   (B, n, width)     attention layers read them (cross-attention); their number may differ from batch to batch
    caption  (B, n)            numbers of words, of which a text encoder, trained here, makes tokens and a summary
    code     (B, K)            what an encoder, trained here, makes of the condition image (``networks.semantic``)

A row of NaN means no condition, as classifier-free guidance needs it: a learned vector takes its place (``vector``), or
the channels are zero and a learned vector is added (``image``). Single tokens of NaN are padding. A learned token is
read with the others and remains where all are missing.

A condition image that a model has drawn itself has errors that no training image has. Noise-conditioning augmentation
(Ho et al. 2022, section 4.2) covers them: the image is noised to a random level s in [0, 1],

    z_s = sqrt(1 - s^2) z + s eps,

and the network receives s (``image_noise``), which may be chosen when sampling. mean and std are those of the training
conditions; they are buffers of the network, so that conditions are given in their own units everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.networks.embeddings import TimeEmbedding, check_call
from sde_diffusion.networks.semantic import SemanticCode
from sde_diffusion.text.encoder import TextEncoder
from solvers.errors import InputError, choose

KINDS = ("vector", "image", "tokens", "caption")
"""The kinds of conditions besides a label; each is the name of the network's argument and of its setting."""
RESIZES = ("nearest", "bilinear", "area")
WAVES = 4  # cosines of an axis
_WAVES = 32


def chosen_settings(**settings: Any) -> dict[str, Any]:
    """Return the settings of ``GivenConditions`` that a network uses, as JSON holds them.

    >>> chosen_settings(vector=None, image=(1, 4, 4), resize="nearest", required=False)
    {'image': [1, 4, 4], 'resize': 'nearest'}
    """
    used = {name: value for name, value in settings.items() if value is not None and value is not False}
    return {name: list(value) if isinstance(value, (tuple, list)) else value for name, value in used.items()}


class GivenConditions(nn.Module):
    """The part of a network that reads its conditions.

    Args:
        shape: shape of one sample.
        width: length of the conditioning vector.
        vector: length of a vector, or None.
        image: shape of a condition image (C, ...), or None.
        resize: "nearest", "bilinear" or "area", for an image of another size than the sample; None for one of its size.
        tokens: width of a token, or None.
        caption: the words of captions, or None.
        caption_width: width of the text encoder's tokens, 64 by default.
        code: length of the code that an encoder makes of the image, which is then not concatenated; None for none.
        required: whether a call without a condition is refused, because training never dropped one.

    Raises:
        ValueError: sizes below 1, an image of another size than the sample and no ``resize``.

    >>> given = GivenConditions((1, 4, 4), 8, image=(2, 4, 4))
    >>> added, x, _ = given(torch.zeros(3, 1, 4, 4), image=torch.ones(3, 2, 4, 4))
    >>> added.shape, x.shape
    (torch.Size([3, 8]), torch.Size([3, 3, 4, 4]))
    """

    vector_mean: Tensor
    vector_std: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        width: int,
        vector: int | None = None,
        image: Sequence[int] | None = None,
        resize: str | None = None,
        tokens: int | None = None,
        caption: Sequence[str] | None = None,
        caption_width: int | None = None,
        code: int | None = None,
        required: bool = False,
    ) -> None:
        """Build the layers."""
        super().__init__()
        lengths = {"vector": vector, "tokens": tokens, "caption_width": caption_width, "code": code}
        for name, size in lengths.items():
            if size is not None and size < 1:
                raise InputError(f"{name} of a network is a length from 1 up, or None for none; got {size}")
        self.sizes = tuple(shape[1:])
        self.resize = resize
        self.required = required
        self.image = None if image is None else tuple(int(size) for size in image)
        self.tokens = tokens
        self.text, self.semantic = None, None
        if caption is not None:
            self.text = TextEncoder(len(caption), caption_width or 64)
            self.summary = nn.Linear(caption_width or 64, width)
            if tokens is not None:
                raise InputError("a network reads tokens or captions, not both; captions become tokens")
        elif caption_width is not None:
            raise InputError(f"caption_width={caption_width} needs a network with captions; give caption=, its words")
        self.vector = None if vector is None else nn.Linear(vector, width)
        if vector is not None:
            self.no_vector = nn.Parameter(torch.zeros(width))
            self.register_buffer("vector_mean", torch.zeros(vector))
            self.register_buffer("vector_std", torch.ones(vector))
        if self.image is None:
            if resize is not None:
                raise InputError(f"resize='{resize}' applies to a condition image, and the network has none")
            if code is not None:
                raise InputError(f"code={code} is the length of a condition image's code; give image=, its shape")
            return
        if len(self.image) != len(shape) or min(self.image) < 1:
            raise InputError(f"a condition image has as many axes as the samples {tuple(shape)}; got {self.image}")
        if code is not None and resize is not None:
            raise InputError("a condition image that becomes a code is not resized; leave out resize=")
        if resize is not None:
            choose(resize, dict.fromkeys(RESIZES), "resize")
            if resize == "bilinear" and len(self.sizes) != 2:
                raise InputError(f"bilinear resizing needs images (C, H, W); got samples {tuple(shape)}")
        elif code is None and self.image[1:] != self.sizes:
            raise InputError(
                f"the condition image is {_times(self.image[1:])} and the sample {_times(self.sizes)}; say how it is "
                f"resized, resize= (--resize-condition): {', '.join(RESIZES)}"
            )
        channels = (self.image[0], *(1,) * len(self.sizes))
        self.register_buffer("image_mean", torch.zeros(channels))
        self.register_buffer("image_std", torch.ones(channels))
        if code is not None:
            self.semantic = SemanticCode(self.image, code, width)
            return
        self.no_image = nn.Parameter(torch.zeros(width))
        last = nn.Linear(_WAVES, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.level = nn.Sequential(TimeEmbedding(_WAVES, "log"), last)

    @property
    def channels(self) -> int:
        """The number of channels that are concatenated to x."""
        return 0 if self.image is None or self.semantic is not None else self.image[0]

    @property
    def token_width(self) -> int | None:
        """The width of the tokens that attention layers read; None for none."""
        return self.tokens if self.text is None else self.summary.in_features

    def measure(self, kind: str, mean: Tensor, std: Tensor) -> None:
        """Set the units of a vector or an image; ``mean`` and ``std`` broadcast to one of them."""
        if kind not in ("tokens", "caption"):
            with torch.no_grad():
                getattr(self, f"{kind}_mean").copy_(mean)
                getattr(self, f"{kind}_std").copy_(std)

    def noised(self, image: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """Return the image at noise levels (B,), in its own units; eps is standard normal noise like it.

        >>> given = GivenConditions((1, 1, 1), 8, image=(1, 1, 1))
        >>> given.noised(torch.ones(1, 1, 1, 1), torch.tensor([0.6]), torch.ones(1, 1, 1, 1)).item()
        1.4...
        """
        s = level.reshape(-1, *(1,) * (image.ndim - 1)).to(image)
        mean, std = self.image_mean.to(image), self.image_std.to(image)
        return mean + torch.sqrt(1 - s * s) * (image - mean) + s * std * eps.to(image)

    def forward(
        self,
        x: Tensor,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        image_noise: Tensor | None = None,
        tokens: Tensor | None = None,
        caption: Tensor | None = None,
        code: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what is added to the conditioning vector (B, width), x with the image's channels, and the tokens.

        Raises:
            ValueError: a condition that the network was built without, one that it requires, or another shape.
        """
        self._check("vector", vector, self.vector is not None)
        if code is None:
            self._check("image", image, self.image is not None)
        self._check("caption", caption, self.text is not None)
        self._check("tokens", tokens, self.tokens is not None)
        if image_noise is not None and image is None:
            raise InputError("image_noise is the noise level of the condition image; give image= as well")
        added = x.new_zeros(())
        if self.vector is not None:
            added = added + self._add_vector(x, vector)
        if self.semantic is not None:
            if image_noise is not None:
                raise InputError("image_noise needs a network that reads the condition image; this one reads its code")
            added = added + self._add_code(x, image, code)
        elif code is not None:
            raise InputError("this network was built without a code; call it without code=")
        elif self.image is not None:
            channels, more = self._add_image(x, image, image_noise)
            x, added = torch.cat([x, channels], dim=1), added + more
        if self.text is not None:
            if caption is None:
                caption = x.new_full((len(x), 1), math.nan)
            if len(caption) != len(x):
                raise InputError(f"{len(caption)} captions for {len(x)} samples; give one for each")
            tokens, summary = self.text(caption)
            added = added + self.summary(summary)
        elif tokens is not None:
            if tokens.ndim != 3 or tokens.shape[::2] != (len(x), self.tokens):
                raise InputError(
                    f"tokens have shape {tuple(tokens.shape)}; expected ({len(x)}, number of tokens, {self.tokens})"
                )
        elif self.tokens is not None:
            tokens = x.new_full((len(x), 1, self.tokens), math.nan)
        return added, x, tokens

    def _check(self, name: str, value: Tensor | None, known: bool) -> None:
        if value is not None and not known:
            raise InputError(f"this network was built without the condition '{name}'; call it without {name}=")
        if value is None and known and self.required:
            raise InputError(
                f"this network needs its condition: give {name}=... (--condition PATH); it was trained without "
                "dropping it, so it has no unconditional answer"
            )

    def _add_vector(self, x: Tensor, vector: Tensor | None) -> Tensor:
        assert self.vector is not None
        if vector is None:
            return self.no_vector.expand(len(x), -1)
        expected = (len(x), self.vector.in_features)
        if vector.shape != expected:
            raise InputError(f"vector has shape {tuple(vector.shape)}; expected {expected}, one for each sample")
        missing = vector.isnan().any(1, keepdim=True)
        z = (vector - self.vector_mean) / self.vector_std
        return torch.where(missing, self.no_vector, self.vector(z.nan_to_num(0.0).to(self.vector.weight.dtype)))

    def _add_code(self, x: Tensor, image: Tensor | None, code: Tensor | None) -> Tensor:
        assert self.semantic is not None and self.image is not None
        if image is not None and code is not None:
            raise InputError("give the condition image or its code, not both")
        if image is not None:
            if image.shape[1:] != self.image or len(image) != len(x):
                raise InputError(
                    f"the condition image has shape {tuple(image.shape)}; expected {(len(x), *self.image)}"
                )
            code = self.encoded(image)
        return self.semantic(code, len(x))

    def encoded(self, image: Tensor) -> Tensor:
        """Return the codes (B, K) of condition images in their own units; those of NaN images are NaN.

        Raises:
            ValueError: the network has no code.
        """
        if self.semantic is None:
            raise InputError("this network makes no codes of condition images; build it with code=")
        z = (image - self.image_mean.to(image)) / self.image_std.to(image)
        return self.semantic.encode(z)

    def _add_image(self, x: Tensor, image: Tensor | None, level: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.image is not None
        if image is None:
            return x.new_zeros(len(x), self.image[0], *self.sizes), self.no_image.expand(len(x), -1)
        if image.shape != (len(x), *self.image):
            raise InputError(
                f"the condition image has shape {tuple(image.shape)}; expected {(len(x), *self.image)}, one for each "
                "sample"
            )
        if level is not None and level.shape != (len(x),):
            raise InputError(f"image_noise has shape {tuple(level.shape)}; expected ({len(x)},), one level per sample")
        missing = image.isnan().flatten(1).any(1)
        z = ((image - self.image_mean) / self.image_std).to(x.dtype)
        z = torch.where(missing.reshape(-1, *(1,) * (x.ndim - 1)), 0.0, z)
        if self.resize is not None and self.image[1:] != self.sizes:
            smooth = {"align_corners": False, "antialias": True} if self.resize == "bilinear" else {}
            z = F.interpolate(z, size=self.sizes, mode=self.resize, **smooth)
        waves, last = self.level
        s = torch.zeros(len(x), device=x.device) if level is None else level
        return z, torch.where(missing[:, None], self.no_image, last(waves(s).to(last.weight.dtype)))


def grid_cosines(sizes: Sequence[int]) -> Tensor:
    r"""The first cosines of each axis at the places of a grid, (places, axes x WAVES): cos(pi k (i + 1/2) / size).

    >>> grid_cosines((2,))[:, [0, 2, 3]].round(decimals=3)
    tensor([[ 0.7070, -0.7070, -1.0000],
            [-0.7070,  0.7070, -1.0000]])
    """
    axes = [(torch.arange(size, dtype=torch.float32) + 0.5) / size for size in sizes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return torch.cos(math.pi * grid[:, :, None] * torch.arange(1, WAVES + 1)).flatten(1)


class CrossAttention(nn.Module):
    """Attention from positions (B, N, width) to tokens (B, n, tokens), or to a learned token where all are missing.

    Words such as "left" ask where a position is. Convolutions know it from the border alone, so that ``sizes`` adds a
    linear function of ``grid_cosines`` to the queries.

    Args:
        width: features of a position.
        tokens: features of a token.
        heads: attention heads; width is divisible by it.
        sizes: of the grid of positions; None for positions that are encoded already.

    >>> layer = CrossAttention(8, 4, heads=2)
    >>> h = torch.randn(2, 3, 8)
    >>> layer(h, torch.randn(2, 5, 4)).abs().max().item()                     # starts at exactly 0
    0.0
    """

    def __init__(self, width: int, tokens: int, heads: int, sizes: Sequence[int] | None = None) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = heads
        self.cosines: Tensor
        self.place = None
        if sizes is not None:
            cosines = grid_cosines(sizes)
            self.register_buffer("cosines", cosines, persistent=False)
            self.place = nn.Linear(cosines.shape[1], width, bias=False)
        self.norm = nn.LayerNorm(tokens)
        self.none = nn.Parameter(torch.zeros(tokens))
        self.query = nn.Linear(width, width)
        self.pair = nn.Linear(tokens, 2 * width)
        self.leave = nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor, tokens: Tensor) -> Tensor:
        """Return what is added to h."""
        batch, count, width = h.shape
        there = ~tokens.isnan().any(2)
        read = torch.cat([self.none.expand(batch, 1, -1), self.norm(tokens.nan_to_num(0.0).to(h.dtype))], dim=1)
        mask = F.pad(there, (1, 0), value=True)[:, None, None]
        k, v = self.pair(read).reshape(batch, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.query(h) if self.place is None else self.query(h) + self.place(self.cosines)
        q = q.reshape(batch, count, self.heads, -1).transpose(1, 2)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.leave(found.transpose(1, 2).reshape(h.shape))
        return out


def read_conditions(
    network: Any, x: Tensor, t: Tensor, label: Tensor | None, context: Tensor | None, **beside: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the conditioning vector (B, width), x with the channels of a condition image, and the tokens.

    Args:
        network: its ``condition`` reads time, label and context, its ``given`` the others, or is None.
        x: noisy samples, (B, *shape).
        t: one time per sample, (B,).
        label: (B,) or None.
        context: (B, length) or None.
        beside: the arguments of ``GivenConditions.forward``.

    Raises:
        ValueError: a shape that does not fit, or a condition that the network was built without.
    """
    check_call(x, t, network.shape)
    condition, tokens = network.condition(t, label, context), None
    if network.given is not None:
        added, x, tokens = network.given(x, **beside)
        condition = condition + added
    elif unknown := [name for name, value in beside.items() if value is not None]:
        raise InputError(f"this network was built without the condition '{unknown[0]}'; call it without {unknown[0]}=")
    return F.silu(condition), x, tokens


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
