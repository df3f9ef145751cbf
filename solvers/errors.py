"""Errors at the door: one way to look a name up and to say what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def choose(name: str, table: Mapping[str, T], what: str) -> T:
    """Return ``table[name]``, or say which names there are.

    Args:
        name: the name asked for.
        table: the names that exist and what they stand for.
        what: the kind of thing, for the message ("solver", "SDE").

    Raises:
        ValueError: the name is unknown; the message lists the choices and suggests the nearest.

    >>> choose("heun", {"heun": 2, "euler": 1}, "solver")
    2
    >>> choose("huen", {"heun": 2, "euler": 1}, "solver")
    Traceback (most recent call last):
    ...
    ValueError: unknown solver 'huen'; did you mean 'heun'? Choices: euler, heun
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = get_close_matches(str(name).lower(), list(table), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise ValueError(f"unknown {what} '{name}'{hint} Choices: {', '.join(sorted(table))}")
