"""Text that may come from others, fit to be printed: no control characters, so no terminal escapes."""

from __future__ import annotations

import unicodedata

# Control characters (Cc), and characters that reverse or hide text, surrogates, private ones.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""The text with every control character in its escaped spelling; line ends and tabs stay.

    A terminal obeys such characters: they change its title, clear it, or write over what was printed.

    >>> print(printable("red \x1b[31m and \u202e back"))
    red \x1b[31m and \u202e back
    >>> printable("two\nlines")
    'two\nlines'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
