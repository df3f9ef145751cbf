"""Types of JSON files: a reader checks each entry against its type before using the content.

Types are TypedDicts and what JSON can hold: None, bool, int, float, str, list[...], dict[str, ...], Literal, unions of
these, Any, and any of them with a condition, Annotated[int, Between(0, 10)]. Entries that the type does not name are
left alone: files of later versions may have more.

Text has no control characters anywhere, not even where the type is Any: what a file says is printed, and a terminal
obeys such characters.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from sde_diffusion.files.text import printable
from sde_diffusion.storage.atomic_folder import CheckpointError

T = TypeVar("T")
LISTS = (list, tuple, Sequence)


@dataclass(frozen=True)
class Between:
    """The condition that a number is at least ``least`` and at most ``most``."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


_LARGEST = sys.float_info.max
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
        content: parsed JSON.
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
    _check_text(content, "", where)
    return cast(T, content)


def checked_arguments(settings: Mapping[str, Any], function: type, name: str, where: str) -> None:
    """Check the settings of something that a file describes against the arguments of what makes it.

    Args:
        settings: arguments by name, as JSON holds them.
        function: a class whose arguments have types.
        name: of the settings in the file, for the message.
        where: the file.

    Raises:
        CheckpointError: a setting that is missing, unknown or of another type.

    >>> from sde_diffusion.sde import VPSDE
    >>> checked_arguments({"beta_max": "20"}, VPSDE, "sde.settings", "state.json")
    Traceback (most recent call last):
    ...
    sde_diffusion.storage.atomic_folder.CheckpointError: state.json: sde.settings.beta_max must be a finite number; ...
    """
    hints = get_type_hints(function.__init__, include_extras=True)  # type: ignore[misc]
    known = {key: entry for key, entry in signature(function).parameters.items() if key in hints}
    for key, value in settings.items():
        if key not in known:
            raise CheckpointError(f"{where}: {name} has the unknown entry '{key}'; known: {', '.join(known) or 'none'}")
        _check(value, hints[key], f"{name}.{key}", where)
    for key, entry in known.items():
        if key not in settings and entry.default is entry.empty:
            raise CheckpointError(f"{where} is damaged or of another version: it has no entry '{name}.{key}'")


def _check_text(value: object, name: str, where: str) -> None:
    if isinstance(value, str):
        if value != printable(value) or "\n" in value or "\t" in value:
            raise CheckpointError(f"{where}: {name or 'the content'} must be text without control characters")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _check_text(key, f"a name in {name}" if name else "a name", where)
            _check_text(entry, f"{name}.{key}" if name else str(key), where)
    elif isinstance(value, list):
        for k, entry in enumerate(value):
            _check_text(entry, f"{name}[{k}]", where)


def _check(value: object, kind: Any, name: str, where: str) -> None:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin is Annotated:
        _check(value, args[0], name, where)
        for condition in args[1:]:
            if isinstance(value, (int, float)) and not condition.least <= value <= condition.most:
                raise _wrong(value, f"{_word(args[0])} {condition}", name, where)
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
        for key, hint in get_type_hints(kind, include_extras=True).items():
            inner = f"{name}.{key}" if name else key
            if key in content:
                _check(content[key], hint, inner, where)
            elif key in kind.__required_keys__:
                raise CheckpointError(f"{where} is damaged or of another version: it has no entry '{inner}'")
    elif origin in LISTS:
        for k, entry in enumerate(cast(list[object], value)):
            _check(entry, args[0], f"{name}[{k}]", where)
    elif origin is dict:
        for key, entry in cast(dict[str, object], value).items():
            _check(entry, args[1], f"{name}.{key}" if name else key, where)


def _shallow(value: object, kind: Any) -> bool:
    """Whether a value is of a type, without its entries."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(kind))
    if get_origin(kind) is Annotated:
        return _shallow(value, get_args(kind)[0])
    plain = dict if is_typeddict(kind) else get_origin(kind) or kind
    if isinstance(value, bool):  # a whole number to Python
        return plain is bool
    if plain is float:
        return isinstance(value, (int, float)) and abs(value) <= _LARGEST
    return isinstance(value, (list, tuple)) if plain in LISTS else isinstance(value, plain)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is Annotated:
        return _word(get_args(kind)[0])
    plain = dict if is_typeddict(kind) else get_origin(kind) or kind
    return _WORDS[list if plain in LISTS else plain]


def _wrong(value: object, word: str, name: str, where: str) -> CheckpointError:
    try:
        shown = printable(repr(value))
    except ValueError:  # a whole number of more digits than Python prints
        shown = "a very large number"
    return CheckpointError(
        f"{where}: {name or 'the content'} must be {word}; got {shown if len(shown) <= 60 else f'{shown[:57]}...'}"
    )
