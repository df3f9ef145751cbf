"""A solver as JSON can hold it, and back.

>>> from solvers import SOLVERS
>>> describe(SOLVERS["pc"])["settings"]["predictor"]
{'class': 'DDPM', 'settings': {}}
>>> restore(describe(SOLVERS["pc"])) == SOLVERS["pc"]
True
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from sde_diffusion.storage.record_types import NamedSolverEntry, SolverEntry
from solvers import SOLVERS, Solver
from solvers.classical.butcher_tableaus import PAIRS, Pair
from solvers.errors import InputError, choose
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.table import Row, Table

# Solvers without a name of their own.
_TABLE = Table((1.0, 0.0), (Row(0.0, (1.0,)),))
_INNER = (_TABLE, MixtureOfTables((_TABLE,), (None,)), VariableOrder(ExponentialAdams(4)))

# Names of classes in files of earlier versions.
_RENAMED = {"GatedTable": "MixtureOfTables", "Gate": "GatingNetwork"}


def describe(solver: Solver) -> SolverEntry:
    """The class of a solver and all its settings.

    Raises:
        ValueError: a Runge-Kutta pair that is not in ``PAIRS``.
    """
    settings = {f.name: _encode(getattr(solver, f.name)) for f in fields(solver) if f.init}
    return {"class": type(solver).__name__, "settings": settings}


def restore(description: SolverEntry | NamedSolverEntry, known: Iterable[Solver] = ()) -> Solver:
    """The solver of a description.

    Args:
        description: from ``describe``.
        known: solvers of classes that are not in ``SOLVERS``.

    Raises:
        ValueError: a class or setting that this version does not have.
    """
    kinds = {type(solver).__name__: solver for solver in (*SOLVERS.values(), *_INNER, *known)}
    name = _RENAMED.get(description["class"], description["class"])
    start = choose(name, kinds, "kind of solver")
    try:
        return replace(start, **{k: _decode(v) for k, v in description["settings"].items()})
    except TypeError as error:
        raise InputError(f"this version of sdediff has no such solver: {error}") from None


def _encode(value: Any) -> Any:
    if isinstance(value, Pair):
        names = {pair: name for name, pair in PAIRS.items()}
        if value not in names:
            raise InputError(f"the pair '{value.name}' is not in PAIRS, so no file can name it")
        return {"pair": names[value]}
    if is_dataclass(value):
        return describe(value)  # type: ignore[arg-type]
    return [_encode(entry) for entry in value] if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(entry) for entry in value)
    if not isinstance(value, dict):
        return value
    return choose(value["pair"], PAIRS, "pair") if "pair" in value else restore(cast(SolverEntry, value))
