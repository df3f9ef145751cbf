r"""Two coloured digits in one image and a caption that says which, such as "a red three left of a seven".

The image (3, S, 2 S) has a digit in its left and one in its right half, each shifted at random by a pixel or two and
coloured red, green, blue or yellow. The caption begins with either digit, with "left of" or "right of" as it is, and
names each colour with probability 1/2.

Whether a network puts words together, or has learned the pairs by heart, is seen on pairs that training never has:
digits a and b with a + b divisible by 5, in either order, are in the test split alone. These are 11 of the 55 pairs,
and every digit has such partners.

set           digits                                        S    images of a split
digit-pairs   8 x 8, bundled                                10   20,000 / 2,000
mnist-pairs   MNIST without its margin, halved to 11 x 11   12   20,000 / 2,000
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.conditions import Conditions
from sde_diffusion.data.dataset import Data
from sde_diffusion.data.published import load_digits, load_mnist
from sde_diffusion.text.vocabulary import to_numbers, words_of
from solvers.errors import InputError

COLOURS = {"red": (255, 60, 60), "green": (70, 220, 70), "blue": (80, 120, 255), "yellow": (240, 220, 60)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of")
COUNTS = {"train": 20_000, "test": 2_000}
HELD_OUT = 5  # pairs whose sum it divides are in the test split


class Pair(NamedTuple):
    """The caption of an image, from left to right.

    Attributes:
        left: the digit on the left.
        right: the digit on the right.
        left_colour: position in ``COLOURS``; None where the caption does not name it.
        right_colour: likewise.
    """

    left: int
    right: int
    left_colour: int | None = None
    right_colour: int | None = None


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair of digits is in the test split alone.

    >>> is_held_out(3, 7), is_held_out(7, 3), is_held_out(3, 8)
    (True, True, False)
    """
    return (a + b) % HELD_OUT == 0


def caption_of(pair: Pair, reverse: bool = False) -> str:
    """Return the caption of a pair; one that begins on the right with ``reverse``.

    >>> caption_of(Pair(3, 7)), caption_of(Pair(3, 8, 0, None), reverse=True)
    ('a three left of a seven', 'an eight right of a red three')
    """
    left, right = (
        _named(digit, colour) for digit, colour in ((pair.left, pair.left_colour), (pair.right, pair.right_colour))
    )
    return f"{right} right of {left}" if reverse else f"{left} left of {right}"


def _named(digit: int, colour: int | None) -> str:
    words = ([] if colour is None else [list(COLOURS)[colour]]) + [NUMBERS[digit]]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def pair_of(caption: str) -> Pair:
    """Return what a caption asks for, the inverse of ``caption_of``.

    Raises:
        ValueError: a caption of another form.

    >>> pair_of("an eight right of a red three")
    Pair(left=3, right=8, left_colour=0, right_colour=None)
    """
    for relation in RELATIONS:
        first, found, second = caption.lower().partition(f" {relation} ")
        if found:
            a, b = _read(first, caption), _read(second, caption)
            (left, lc), (right, rc) = (a, b) if relation == "left of" else (b, a)
            return Pair(left, right, lc, rc)
    raise _no_caption(caption)


def _read(part: str, caption: str) -> tuple[int, int | None]:
    words = [word for word in part.split() if word not in ("a", "an")]
    if not words or words[-1] not in NUMBERS or (words[:-1] and words[0] not in COLOURS) or len(words) > 2:
        raise _no_caption(caption)
    return NUMBERS.index(words[-1]), list(COLOURS).index(words[0]) if len(words) == 2 else None


def _no_caption(caption: str) -> InputError:
    return InputError(
        f"a caption of two digits is such as 'a red three left of a seven', with the relations {', '.join(RELATIONS)} "
        f"and the colours {', '.join(COLOURS)}; got '{caption[:80]}'"
    )


def all_captions() -> list[str]:
    """Return a caption of every word, for the vocabulary: it is the same for both splits."""
    digits = [caption_of(Pair(k, k, k % len(COLOURS), None), reverse=k % 2 == 1) for k in range(10)]
    return [*digits, *(caption_of(Pair(8, 8)),)]


VOCABULARY = words_of(all_captions())


def compose(images: Tensor, labels: Tensor, split: str, name: str, side: int, seed: int = 0) -> Data:
    """Return a set of pairs with their captions.

    Args:
        images: grey digits (N, 1, s, s), uint8, s <= side.
        labels: (N,) from 0 to 9.
        split: "train", without the pairs that are held out, or "test", with them alone.
        name: of the set.
        side: height of the images made; they are twice as wide.
        seed: of digits, places, colours and words.
    """
    rng = np.random.default_rng([seed, split == "test"])
    count, size = COUNTS[split], images.shape[-1]
    allowed = np.array([(a, b) for a in range(10) for b in range(10) if is_held_out(a, b) == (split == "test")])
    digits = allowed[rng.integers(len(allowed), size=count)]
    known = labels.numpy()
    where = [np.flatnonzero(known == digit) for digit in range(10)]
    colours = rng.integers(len(COLOURS), size=(count, 2))
    places = rng.integers(side - size + 1, size=(count, 2, 2))
    palette = np.array(list(COLOURS.values()))
    grey = images.numpy()[:, 0]
    made = np.zeros((count, 3, side, 2 * side), np.uint8)
    for half in (0, 1):
        chosen = np.empty(count, np.int64)
        for digit in range(10):
            rows = np.flatnonzero(digits[:, half] == digit)
            if len(rows):
                chosen[rows] = where[digit][rng.integers(len(where[digit]), size=len(rows))]
        tinted = grey[chosen][:, None] * palette[colours[:, half]][:, :, None, None] // 255
        for k in range(count):
            y, x = places[k, half]
            x += half * side
            made[k, :, y : y + size, x : x + size] = tinted[k]
    said, reverse = rng.random((count, 2)) < 0.5, rng.random(count) < 0.5
    captions = []
    for k, (a, b) in enumerate(digits):
        named = (int(c) if s else None for c, s in zip(colours[k], said[k], strict=True))
        captions.append(caption_of(Pair(int(a), int(b), *named), bool(reverse[k])))
    given = Conditions(name, to_numbers(captions, VOCABULARY), "caption", VOCABULARY)
    return Data(name, torch.tensor(made), None, "image", condition=given)


def load_digit_pairs(split: str) -> Data:
    """Return 20,000 pairs of the bundled digits, or 2,000 of the pairs and digits that are held out.

    >>> load_digit_pairs("test").describe()
    'digit-pairs: 2000 images of shape (3, 10, 20), no labels; values -1 to 1, mean -0.7852, std 0.4468'
    """
    digits = load_digits(split)
    assert digits.labels is not None
    return compose(digits.x, digits.labels, split, "digit-pairs", 10)


def load_mnist_pairs(folder: Path, split: str) -> Data:
    """Return 20,000 pairs of MNIST digits, halved, or 2,000 of the pairs and digits that are held out.

    Raises:
        FileNotFoundError, ValueError: as ``load_mnist``.
    """
    mnist = load_mnist(folder, split)
    assert mnist.labels is not None
    blocks = mnist.x[:, :, 3:25, 3:25].reshape(len(mnist), 1, 11, 2, 11, 2).float().mean((3, 5))
    return compose(blocks.round().to(torch.uint8), mnist.labels, split, "mnist-pairs", 12)
