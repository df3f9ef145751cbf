"""A user's own solver, from ``path/to/file.py:Name``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from solvers.errors import InputError, InputTypeError, NotFoundError, choose
from solvers.registry import find
from solvers.solver import Solver


def find_solver(spec: str) -> tuple[str, Solver]:
    """A solver and what to call it.

    Args:
        spec: a name in ``SOLVERS``, or ``path/to/file.py:Name`` where Name is a Solver: a class
            that needs no arguments, or an instance.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name; a file that does not run, or has no such name; a class that
            needs arguments.
        TypeError: the name is there and is not a Solver.

    >>> find_solver("ddim")
    ('ddim', DDIM())
    """
    path_text, colon, name = spec.rpartition(":")
    if not (colon and path_text.endswith(".py")) and not spec.endswith(".py"):
        return spec, find(spec)
    if spec.endswith(".py"):
        raise InputError(f"say which solver of the file: {spec}:Name")
    path = Path(path_text)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}; expected path/to/file.py:Name")
    found = _contents(path)
    able = {
        key: value
        for key, value in found.items()
        if isinstance(value, Solver) or (isinstance(value, type) and issubclass(value, Solver) and value is not Solver)
    }
    if name not in found:
        if not able:
            raise InputError(f"{path} has no '{name}', and no Solver at all")
        choose(name, able, f"solver in {path}")
    thing = found[name]
    if isinstance(thing, type) and issubclass(thing, Solver):
        try:
            thing = thing()
        except TypeError as error:
            raise InputError(
                f"{name} cannot be made without arguments ({error}); name an instance of it, "
                f"such as 'mine = {name}(...)' and {path}:mine"
            ) from error
    if not isinstance(thing, Solver):
        raise InputTypeError(f"{name} in {path} is a {type(thing).__name__}, not a solvers.Solver")
    return name, thing


def _contents(path: Path) -> dict[str, object]:
    """The global names of a file, after running it."""
    # Dataclasses look their module up in sys.modules while they are made.
    label = f"_sdediff_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return vars(module)
