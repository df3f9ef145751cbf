"""Pairs of digits show what their captions say, hold out what they claim, and captions come from files."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.data import Data, load_condition, load_data
from sde_diffusion.data.captioned.caption_files import as_captions
from sde_diffusion.data.captioned.digit_pairs import COLOURS, VOCABULARY, Pair, caption_of, is_held_out, pair_of
from sde_diffusion.data.conditions import Conditions
from sde_diffusion.evaluation.features.pretrained_classifier import Classifier
from sde_diffusion.text import to_caption, to_numbers
from solvers.errors import InputError


@lru_cache
def pairs(split: str) -> Data:
    return load_data("digit-pairs", split=split)


def captions(split: str) -> list[Pair]:
    data = pairs(split)
    assert data.condition is not None
    return [pair_of(to_caption(row, VOCABULARY)) for row in data.condition.values]


def test_every_caption_is_read_back_as_the_pair_that_it_was_made_of() -> None:
    colours = (None, *range(len(COLOURS)))
    for left, right, lc, rc, reverse in product(range(10), range(10), colours, colours, (False, True)):
        pair = Pair(left, right, lc, rc)
        assert pair_of(caption_of(pair, reverse)) == pair
        to_numbers([caption_of(pair, reverse)], VOCABULARY)


def test_pairs_of_the_test_split_are_those_that_training_never_has_in_either_order() -> None:
    train, test = ({(p.left, p.right) for p in captions(split)} for split in ("train", "test"))
    held = {(a, b) for a, b in product(range(10), repeat=2) if (a + b) % 5 == 0}
    assert test == held and train == set(product(range(10), repeat=2)) - held
    assert {frozenset(pair) for pair in held} & {frozenset(pair) for pair in train} == set()
    assert all(any(is_held_out(a, b) for b in range(10)) for a in range(10))


def test_images_show_what_their_captions_say() -> None:
    """A classifier reads the digits in both halves, and the colour is the hue of the brightest pixel."""
    data, shown = pairs("train"), captions("train")[:200]
    x = data.x[:200].float()
    classifier, palette = Classifier("digits"), torch.tensor(list(COLOURS.values())).float()
    digits, colours = [], []
    for half in (x[..., :10], x[..., 10:]):
        light = half.amax(1, keepdim=True)
        rows, columns = (light[:, 0].amax(axis) > 40 for axis in (2, 1))
        crops = []
        for k in range(len(half)):
            y, z = (min(int(line[k].nonzero()[0]), 2) for line in (rows, columns))
            crops.append(light[k, :, y : y + 8, z : z + 8])
        found = classifier(torch.stack(crops) / light.amax((1, 2, 3), keepdim=True) * 2 - 1)
        assert found.probabilities is not None
        digits.append(found.probabilities.argmax(1))
        brightest = light.flatten(1).argmax(1)
        hue = half.flatten(2)[torch.arange(200), :, brightest]
        colours.append(
            torch.cdist(hue / hue.norm(dim=1, keepdim=True), palette / palette.norm(dim=1, keepdim=True)).argmin(1)
        )
    assert np.mean([digits[0][k] == p.left for k, p in enumerate(shown)]) > 0.9
    assert np.mean([digits[1][k] == p.right for k, p in enumerate(shown)]) > 0.9
    for k, pair in enumerate(shown):
        assert pair.left_colour in (None, int(colours[0][k])) and pair.right_colour in (None, int(colours[1][k]))


def test_a_set_is_the_same_at_every_call_and_its_splits_share_the_vocabulary() -> None:
    first, test, again = pairs("test"), pairs("train"), load_data("digit-pairs", split="test")
    assert first.fingerprint == again.fingerprint
    assert first.condition is not None and again.condition is not None and test.condition is not None
    assert first.condition.fingerprint == again.condition.fingerprint
    assert first.condition.setting == test.condition.setting == list(VOCABULARY)


@pytest.mark.parametrize("caption", ["a three above a seven", "three seven", "a pink three left of a seven", ""])
def test_a_caption_of_another_form_is_refused(caption: str) -> None:
    with pytest.raises(InputError, match="a caption of two digits is such as"):
        pair_of(caption)


def test_a_text_file_holds_a_caption_on_each_line() -> None:
    Path("c.txt").write_text("a three\na red seven\n")
    found = load_condition("c.txt", (1, 8, 8))
    assert found.kind == "caption" and found.words == ("a", "red", "seven", "three") and len(found) == 2
    assert torch.equal(found.values.nan_to_num(-1), torch.tensor([[0.0, 3.0, -1.0], [0.0, 1.0, 2.0]]))
    known = load_condition("c.txt", (1, 8, 8), words=["a", "of", "red", "seven", "three"])
    assert known.values[0, 1] == 4 and known.setting == ["a", "of", "red", "seven", "three"]
    with pytest.raises(InputError, match="unknown word 'red'"):
        load_condition("c.txt", (1, 8, 8), words=["a", "seven", "three"])
    for content, message in (
        (b"a\n\nb\n", "line 2 of c.txt is empty"),
        (b"", "has no lines"),
        (b"\xff\xfe", "no UTF-8"),
    ):
        Path("c.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_condition("c.txt", (1, 8, 8))


def test_captions_have_a_vocabulary_and_nothing_else_has_one() -> None:
    with pytest.raises(InputError, match="captions have a vocabulary"):
        Conditions("c", torch.zeros(1, 2), "caption")
    with pytest.raises(InputError, match="no other condition has one"):
        Conditions("c", torch.zeros(1, 2), "vector", ("a",))
    assert as_captions(["a b"]).fingerprint != as_captions(["a c"]).fingerprint
