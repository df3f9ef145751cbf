"""Words of captions and their numbers.

A caption is cut into words: runs of letters, digits and apostrophes, in lower case; punctuation is left out. The
vocabulary of a network is the sorted list of the words that its training captions have. A caption with any other word
is refused, since no weight belongs to that word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from solvers.errors import InputError

MOST_WORDS = 64  # of a caption
LARGEST_VOCABULARY = 65_536
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SHOWN = 40  # words of a vocabulary in a message


def split_words(caption: str) -> list[str]:
    """Return the words of a caption.

    Raises:
        ValueError: a caption without words, or with more than 64.

    >>> split_words("A red three, left of a seven.")
    ['a', 'red', 'three', 'left', 'of', 'a', 'seven']
    """
    words: list[str] = _WORD.findall(caption.lower())
    if not words:
        raise InputError(f"a caption has at least one word; got '{caption[:60]}'")
    if len(words) > MOST_WORDS:
        raise InputError(f"a caption has at most {MOST_WORDS} words; '{caption[:60]}...' has {len(words)}")
    return words


def words_of(captions: Iterable[str]) -> tuple[str, ...]:
    """Return the vocabulary of captions: their words, sorted.

    Raises:
        ValueError: no captions, one without words, or more than 65,536 different words.

    >>> words_of(["a three", "a seven"])
    ('a', 'seven', 'three')
    """
    found = sorted({word for caption in captions for word in split_words(caption)})
    if not found:
        raise InputError("there are no captions; give one for each sample")
    if len(found) > LARGEST_VOCABULARY:
        raise InputError(f"a vocabulary has at most {LARGEST_VOCABULARY:,} words; these captions have {len(found):,}")
    return tuple(found)


def to_numbers(captions: Sequence[str], words: Sequence[str]) -> Tensor:
    """Return captions as numbers of words, (N, longest) float32; NaN is padding.

    Args:
        captions: N of them.
        words: the vocabulary.

    Raises:
        ValueError: a word that is not in the vocabulary; the message names it, and the nearest known word.

    >>> to_numbers(["a three", "seven"], ["a", "seven", "three"])
    tensor([[0., 2.],
            [1., nan]])
    """
    known = {word: k for k, word in enumerate(words)}
    rows = [split_words(caption) for caption in captions]
    if not rows:
        raise InputError("there are no captions; give at least one")
    for caption, row in zip(captions, rows, strict=True):
        if unknown := [word for word in row if word not in known]:
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            more = ", ..." if len(words) > _SHOWN else ""
            raise InputError(
                f"unknown word '{unknown[0]}' in the caption '{caption}'{hint} The model was trained with these words: "
                f"{', '.join(list(words)[:_SHOWN])}{more}"
            )
    longest = max(map(len, rows))
    padded = [[float(known[word]) for word in row] + [math.nan] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.float32)


def to_caption(numbers: Tensor, words: Sequence[str]) -> str:
    """Return the caption of one row of numbers, the inverse of ``to_numbers``.

    >>> to_caption(torch.tensor([0.0, 2.0, float("nan")]), ["a", "seven", "three"])
    'a three'
    """
    return " ".join(words[int(number)] for number in numbers.tolist() if not math.isnan(number))
