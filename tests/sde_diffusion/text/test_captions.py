"""Words and their numbers, the text encoder, and tokens of a pretrained encoder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_diffusion.text import TextEncoder, pretrained_tokens, split_words, to_caption, to_numbers, words_of
from solvers.errors import InputError

WORDS = ("a", "left", "of", "red", "seven", "three")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=5))
def test_numbers_spell_the_caption_that_they_were_made_of(captions: list[str]) -> None:
    numbers = to_numbers(captions, words_of(captions))
    assert [to_caption(row, words_of(captions)) for row in numbers] == captions


def test_words_are_in_lower_case_and_without_punctuation() -> None:
    assert split_words("A red Three, left-of: a SEVEN's!") == ["a", "red", "three", "left", "of", "a", "seven's"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a three beside a seven"], r"unknown word 'beside' in the caption 'a three beside a seven'\. The model"),
        (["a thre"], r"unknown word 'thre'.*; did you mean 'three'\? The model was trained with these words: a, left"),
        ([], "there are no captions"),
        (["a three", "?!"], r"at least one word; got '\?!'"),
        (["a " * 65], "at most 64 words"),
    ],
)
def test_captions_that_no_weight_belongs_to_are_refused(captions: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_numbers(captions, WORDS)


def test_a_token_depends_on_the_order_of_the_words_and_not_on_padding_or_batch() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(len(WORDS), width=16, depth=2).eval()
    both = to_numbers(["three left of a seven", "a red three"], WORDS)
    tokens, summary = encoder(both)
    alone, single = encoder(to_numbers(["a red three"], WORDS))
    torch.testing.assert_close(tokens[1, :4], alone[0])
    torch.testing.assert_close(summary[1], single[0])
    assert tokens[1, 4:].isnan().all() and not tokens[0].isnan().any()
    turned = encoder(to_numbers(["seven left of a three"], WORDS))[1]
    assert (turned[0] - summary[0]).abs().max() > 1e-2


@torch.no_grad()
def test_a_new_encoder_sees_the_order_of_words_as_well_as_the_words() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(len(WORDS), width=32, depth=2).eval()
    captions = ["three left of a seven", "seven left of a three", "three left of a red"]
    summary = encoder(to_numbers(captions, WORDS))[1]
    order, word = (float((summary[0] - summary[k]).norm()) for k in (1, 2))
    assert order > 0.5 * word


def test_no_caption_is_the_start_token_and_has_a_gradient() -> None:
    encoder = TextEncoder(3, width=8, depth=1)
    tokens, summary = encoder(torch.full((2, 5), math.nan))
    assert tokens[:, 1:].isnan().all() and torch.isfinite(tokens[:, 0]).all()
    (summary.square().sum() + tokens.nan_to_num(0.0).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (torch.zeros(2), "expected .B, number of words."),
        (torch.zeros(1, 65), "at most 64"),
        (torch.tensor([[3.0]]), "have the numbers 3 to 3; the words are 0 to 2"),
    ],
)
def test_an_encoder_refuses_what_is_no_caption(caption: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextEncoder(3, width=8, depth=1)(caption)


@pytest.mark.slow  # imports transformers
def test_a_pretrained_encoder_makes_the_same_tokens_in_any_batch(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    captions = ["a red three left of a seven", "a three", "seven"]
    tokens = pretrained_tokens(captions, tmp_path)
    assert tokens.shape == (3, 9, 16) and tokens.dtype == np.float32
    assert [int((~np.isnan(row).any(1)).sum()) for row in tokens] == [9, 4, 3]
    one_by_one = pretrained_tokens(captions, tmp_path, batch_size=1)
    np.testing.assert_allclose(tokens, one_by_one, atol=1e-5)
    with pytest.raises(InputError, match="expected a sequence of captions"):
        pretrained_tokens("a three", tmp_path)
