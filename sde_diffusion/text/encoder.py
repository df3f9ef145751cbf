r"""A small transformer that reads captions, trained together with the network that it serves.

A start token, the embedded words and their positions go through a few transformer layers with full attention (Vaswani
et al. 2017). Cross-attention layers of the network read all tokens. The start token is the summary of the caption and
is added to the conditioning vector as well (GLIDE: Nichol et al. 2022, section 3). A caption of NaN alone is the start
token alone: the empty caption, which classifier-free guidance compares with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.text.vocabulary import MOST_WORDS
from solvers.errors import InputError


class TextEncoder(nn.Module):
    """A transformer on words: (B, n) -> tokens (B, 1 + n, width) and summaries (B, width).

    Args:
        words: size of the vocabulary.
        width: length of a token, divisible by `heads`.
        depth: number of layers.
        heads: attention heads.

    Raises:
        ValueError: sizes below 1, or a width that the heads do not divide.

    >>> encoder = TextEncoder(3, width=8, depth=1)
    >>> tokens, summary = encoder(torch.tensor([[0.0, 2.0], [1.0, float("nan")]]))
    >>> tokens.shape, summary.shape, tokens[1].isnan().any(1).tolist()
    (torch.Size([2, 3, 8]), torch.Size([2, 8]), [False, False, True])
    """

    def __init__(self, words: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        """Build the layers."""
        super().__init__()
        if min(words, width, depth, heads) < 1 or width % heads:
            raise InputError(
                f"a text encoder needs words, and a width that its heads divide; got {words} words, width {width}, "
                f"depth {depth}, heads {heads}"
            )
        self.words = words
        self.start = nn.Parameter(torch.randn(width))
        self.word = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(MOST_WORDS, width))  # as large as a word: order matters as much
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens, those of padding NaN, and summaries.

        Args:
            caption: numbers of words, (B, n), any floating dtype; NaN is padding.

        Raises:
            ValueError: another shape, too many words, or (checked on the CPU only) numbers outside the vocabulary.
        """
        if caption.ndim != 2 or caption.shape[1] > MOST_WORDS:
            raise InputError(
                f"captions have shape {tuple(caption.shape)}; expected (B, number of words), at most {MOST_WORDS}"
            )
        padding = caption.isnan()
        numbers = caption.nan_to_num(0.0).long()
        if caption.device.type == "cpu" and numbers.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in numbers.aminmax())
            if low < 0 or high >= self.words:
                raise InputError(f"captions have the numbers {low} to {high}; the words are 0 to {self.words - 1}")
        h = self.word(numbers) + self.place[: caption.shape[1]]
        h = torch.cat([self.start.expand(len(h), 1, -1), h], dim=1)
        padding = F.pad(padding, (1, 0), value=False)
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=padding)
        h = self.norm(h)
        return h.masked_fill(padding[:, :, None], math.nan), h[:, 0]
