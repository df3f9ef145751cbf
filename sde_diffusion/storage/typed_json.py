"""The type of what a JSON file says: a reader checks each entry against it before anything is done with the content.

Types are TypedDicts and what JSON can hold: None, bool, int, float, str, list[...], dict[str, ...], Literal, unions of
these, and Any. Entries that the type does not name are left alone: files of later versions may have more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from sde_diffusion.storage.atomic_folder import CheckpointError

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def checked(content: object, kind: type[T], where: str) -> T:
    """The content, which is of the type to the last entry.

    Args:
        content: what ``json`` has read.
        kind: a TypedDict.
        where: the file, for the message.

    Raises:
        CheckpointError: an entry that is missing or of another type; the message names the entry.

    >>> from typing import TypedDict
    >>> class Grid(TypedDict):
    ...     name: str | None
    ...     times: list[float]
    >>> checked({"name": None, "times": [1, 0.5]}, Grid, "a.json")
    {'name': None, 'times': [1, 0.5]}
    >>> checked({"name": None, "times": [1, "0.5"]}, Grid, "a.json")
    Traceback (most recent call last):
    ...
    sde_diffusion.storage.atomic_folder.CheckpointError: a.json: times[1] must be a finite number; got '0.5'
    """
    _check(content, kind, "", where)
    return cast(T, content)


def _check(value: object, kind: Any, name: str, where: str) -> None:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Union, UnionType):
        options = [option for option in args if _shallow(value, option)]
        if not options:
            raise _wrong(value, " or ".join(map(_word, args)), name, where)
        _check(value, options[0], name, where)
    elif not _shallow(value, kind):
        raise _wrong(value, _word(kind), name, where)
    elif is_typeddict(kind):
        content = cast(Mapping[str, object], value)
        for key, hint in get_type_hints(kind).items():
            inner = f"{name}.{key}" if name else key
            if key in content:
                _check(content[key], hint, inner, where)
            elif key in kind.__required_keys__:
                raise CheckpointError(f"{where} is damaged or of another version: it has no entry '{inner}'")
    elif origin is list:
        for k, entry in enumerate(cast(list[object], value)):
            _check(entry, args[0], f"{name}[{k}]", where)
    elif origin is dict:
        for key, entry in cast(dict[str, object], value).items():
            _check(entry, args[1], f"{name}.{key}" if name else key, where)


def _shallow(value: object, kind: Any) -> bool:
    """Whether a value is of a type, but for what it holds."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(kind))
    plain = dict if is_typeddict(kind) else get_origin(kind) or kind
    if isinstance(value, bool):  # a whole number to Python
        return plain is bool
    if plain is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, plain)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return _WORDS[dict if is_typeddict(kind) else get_origin(kind) or kind]


def _wrong(value: object, word: str, name: str, where: str) -> CheckpointError:
    shown = repr(value)
    return CheckpointError(
        f"{where}: {name or 'the content'} must be {word}; got {shown if len(shown) <= 60 else f'{shown[:57]}...'}"
    )
