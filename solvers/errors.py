"""Errors that users can mend: their classes, and one way to look a name up and to say what was expected.

Every error that the packages raise on purpose is an ``SdediffError`` and, besides, the builtin of its kind, so that
``except ValueError`` catches a bad value. Any other exception is a fault of the packages, and the command line says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class SdediffError(Exception):
    """An error that a user can mend; the message says what came, what was expected and what to do."""


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
    solvers.errors.InputError: unknown solver 'huen'; did you mean 'heun'? Choices: euler, heun
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = get_close_matches(str(name).lower(), list(table), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise InputError(f"unknown {what} '{name}'{hint} Choices: {', '.join(sorted(table))}")
