"""A user's own solver, from ``path/to/file.py:Name``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

from solvers.errors import InputError, InputTypeError, NotFoundError, choose
from solvers.registry import find
from solvers.solver import Solver


def find_solver(spec: str) -> tuple[str, Solver]:
    """The name of a solver and the solver.

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
    path = solver_file(spec)
    if path is None:
        return spec, find(spec)
    name = spec.rpartition(":")[2]
    found = run_file(path)
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


def solver_file(spec: str) -> Path | None:
    """The file that a solver comes from; None for a name in ``SOLVERS``. Nothing is run.

    Raises:
        ValueError: a file without the name of a solver in it.

    >>> solver_file("mine/best.py:Best").as_posix(), solver_file("ddim")
    ('mine/best.py', None)
    """
    path, colon, _ = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path)
    if spec.endswith(".py"):
        raise InputError(f"say which solver of the file: {spec}:Name")
    return None


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, hex.

    Raises:
        FileNotFoundError: no such file.
    """
    return hashlib.sha256(_source(path)).hexdigest()


def _source(path: Path) -> bytes:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}; expected path/to/file.py:Name")
    return path.read_bytes()


def run_file(path: Path) -> dict[str, object]:
    """The global names of a Python file, after running it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not run; the message has its error.
    """
    source = _source(path)
    # Dataclasses look their module up in sys.modules while they are made. Compiled here: the import system would leave
    # a __pycache__ beside the file.
    module = ModuleType(f"_sdediff_plugin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a file that ends the program would look like success
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return vars(module)
