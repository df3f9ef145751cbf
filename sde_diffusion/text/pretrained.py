"""Tokens of captions from a pretrained text encoder, by the transformers library.

The tokens are conditions of the kind "tokens": a network reads them by cross-attention, and the text encoder is not
trained. They are made once, stored as an .npy file, and given to ``sdediff train --condition`` and ``sample``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from solvers.errors import InputError, MissingPackageError


@torch.no_grad()
def pretrained_tokens(
    captions: Sequence[str],
    encoder: str | os.PathLike[str] | tuple[Any, Any],
    *,
    batch_size: int = 64,
    device: str = "cpu",
) -> np.ndarray[Any, Any]:
    """Return the last hidden states of a text encoder, (N, tokens, width) float32; NaN is padding.

    Args:
        captions: N texts.
        encoder: a folder or name that ``transformers`` loads, such as that of a CLIP or T5 text encoder, or a pair
            (tokenizer, model) that is loaded already. Only safetensors weights are read, and no code of the folder is
            executed.
        batch_size: captions encoded together; their number does not change the result beyond rounding.
        device: where the encoder runs.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no captions, or a model without hidden states of its tokens.
    """
    if isinstance(captions, str) or not captions or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"expected a sequence of captions, one for each sample; got {captions!r:.80}")
    tokenizer, model = encoder if isinstance(encoder, tuple) else _loaded(os.fspath(encoder))
    model = getattr(model, "text_model", model)  # the half of CLIP that reads text
    model = getattr(model, "encoder", model) if getattr(model.config, "is_encoder_decoder", False) else model
    model = model.to(device).eval()
    parts = []
    for first in range(0, len(captions), batch_size):
        read = tokenizer(list(captions[first : first + batch_size]), padding=True, truncation=True, return_tensors="pt")
        mask = read["attention_mask"].bool()
        out = model(input_ids=read["input_ids"].to(device), attention_mask=read["attention_mask"].to(device))
        states = getattr(out, "last_hidden_state", None)
        if states is None:
            raise InputError(f"a {type(model).__name__} returns no last_hidden_state; give a text encoder")
        parts.append(states.float().cpu().masked_fill(~mask[:, :, None], torch.nan).numpy())
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(p, ((0, 0), (0, longest - p.shape[1]), (0, 0)), constant_values=np.nan) for p in parts]
    )


def _loaded(place: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise MissingPackageError("pretrained text encoders need transformers: pip install transformers") from None
    return AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place, use_safetensors=True)
