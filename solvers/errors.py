"""Errors for users: their classes, and the look-up of names with the choices in the message.

Every error that the packages raise on purpose is an ``SdediffError`` and also the builtin of its kind, so that
``except ValueError`` catches a bad value. The command line reports any other exception as a bug of the packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from numbers import Integral
from typing import TypeVar

T = TypeVar("T")


class SdediffError(Exception):
    """Base of all errors for users; the message has the given value, the expected values and the remedy."""


class InputError(SdediffError, ValueError):
    """A value that does not fit."""


class InputTypeError(SdediffError, TypeError):
    """A value of the wrong type."""


class NotFoundError(SdediffError, FileNotFoundError):
    """A file or folder that is not there."""


class ExistsError(SdediffError, FileExistsError):
    """A file or folder that would have to be overwritten."""


class NonFiniteError(SdediffError, FloatingPointError):
    """A computation that left the finite numbers."""


class MissingPackageError(SdediffError, ModuleNotFoundError):
    """An optional package that is not installed."""


class StateError(SdediffError, RuntimeError):
    """An action that is not possible now."""


def require_whole(name: str, value: object, least: int, most: int) -> None:
    """Check that a value is a whole number within limits.

    Raises:
        ValueError: a number outside; the message has the limits.
        TypeError: something else.

    >>> require_whole("n", 10**12, 1, 10_000_000)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: n must be at most 10,000,000; got 1,000,000,000,000
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputTypeError(f"{name} must be a whole number; got {value!r}")
    number = int(value)
    if not least <= number <= most:
        limit = f"at least {least:,}" if number < least else f"at most {most:,}"
        shown = f"{number:,}" if abs(number) < 10**30 else "a far larger number"
        raise InputError(f"{name} must be {limit}; got {shown}")


def choose(name: str, table: Mapping[str, T], what: str) -> T:
    """Return ``table[name]``; the error for an unknown name lists the choices.

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
    solvers.errors.InputError: unknown solver 'huen'; did you mean 'heun'? Choices: euler, heun
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = get_close_matches(str(name).lower(), list(table), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise InputError(f"unknown {what} '{name}'{hint} Choices: {', '.join(sorted(table))}")
