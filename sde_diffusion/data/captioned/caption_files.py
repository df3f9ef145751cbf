"""Captions as conditions: given as texts, or in a .txt file with one caption on each line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sde_diffusion.data.conditions import Conditions
from sde_diffusion.files.reading import require_regular
from sde_diffusion.text.vocabulary import to_numbers, words_of
from solvers.errors import InputError

SUFFIX = ".txt"
_MOST = 2**28  # bytes of a file


def as_captions(captions: Sequence[str], words: Sequence[str] | None = None, name: str = "captions") -> Conditions:
    """Return captions as conditions.

    Args:
        captions: one for each sample.
        words: the vocabulary of the network that they are for; their own when None.
        name: for messages.

    Raises:
        ValueError: no captions, an empty one, or one with a word that is not in the vocabulary.

    >>> given = as_captions(["a three", "a seven"])
    >>> given.describe()
    'captions: 2 captions of 3 words as conditions'
    """
    vocabulary = words_of(captions) if words is None else tuple(words)
    return Conditions(name, to_numbers(captions, vocabulary), "caption", vocabulary)


def read_captions(path: Path) -> list[str]:
    """Return the lines of a file.

    Raises:
        ValueError: not UTF-8, empty, or a line without words; the message has its number.
    """
    require_regular(path)
    if path.stat().st_size > _MOST:
        raise InputError(f"{path} has more than {_MOST // 2**20} MiB; expected a file with a caption on each line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from None
    if not lines:
        raise InputError(f"{path} has no lines; expected a caption on each line")
    for k, line in enumerate(lines):
        if not line.strip():
            raise InputError(f"line {k + 1} of {path} is empty; expected a caption on each line")
    return lines
