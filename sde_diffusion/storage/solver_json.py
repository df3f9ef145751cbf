"""A solver as JSON can hold it, and back.

>>> from solvers import SOLVERS
>>> describe_solver(SOLVERS["pc"])["settings"]["predictor"]
{'class': 'DDPM', 'settings': {'variance': None}}
>>> restore_solver(describe_solver(SOLVERS["pc"])) == SOLVERS["pc"]
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from sde_diffusion.storage.record_types import NamedSolverEntry, SolverEntry
from solvers import SOLVERS, Solver
from solvers.classical.butcher_tableaus import PAIRS, Pair
from solvers.diffusion.denoising_gan import DenoisingGANSampler
from solvers.diffusion.renoising import Renoising
from solvers.errors import InputError, choose
from solvers.exponential.adams import ExponentialAdams
from solvers.exponential.variable_order import VariableOrder
from solvers.fitted.data_units import InDataUnits
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.noisy_table import NoisyTable
from solvers.fitted.pf_ode import ProbabilityFlow
from solvers.fitted.seen_scale import SeenScale
from solvers.fitted.table import Row, Table

# Solvers without a name.
_TABLE = Table((1.0, 0.0), (Row(0.0, (1.0,)),))
_TWO_ROWS = Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,))))
_INNER = (
    _TABLE,
    MixtureOfTables((_TABLE,), (None,)),
    MeanStart(_TWO_ROWS, ()),
    NoisyTable(_TWO_ROWS, (1.0, 0.0)),
    VariableOrder(ExponentialAdams(4)),
    Renoising(),
    DenoisingGANSampler(),
    InDataUnits(_TABLE, 1.0),
    ProbabilityFlow(),
    SeenScale(_TABLE, ProbabilityFlow(), (1.0, 0.0)),
)

# Names of classes in files of earlier versions.
_RENAMED = {"GatedTable": "MixtureOfTables", "Gate": "GatingNetwork"}


def describe_solver(solver: Solver) -> SolverEntry:
    """The class of a solver and all its settings.

    Raises:
        ValueError: a Runge-Kutta pair that is not in ``PAIRS``.
    """
    settings = {f.name: _encode(getattr(solver, f.name)) for f in fields(solver) if f.init}
    return {"class": type(solver).__name__, "settings": settings}


def restore_solver(description: SolverEntry | NamedSolverEntry, known: Iterable[Solver] = ()) -> Solver:
    """The solver of a description.

    Args:
        description: from ``describe``.
        known: solvers of classes that are not in ``SOLVERS``.

    Raises:
        ValueError: a class or setting that this version does not have.
    """
    kinds = {type(solver).__name__: solver for solver in (*SOLVERS.values(), *_INNER, *known)}
    if not isinstance(description.get("class"), str) or not isinstance(description.get("settings"), dict):
        raise InputError(f"a solver has a class and settings; got {sorted(description)}")
    name = _RENAMED.get(description["class"], description["class"])
    start = choose(name, kinds, "kind of solver")
    hints = get_type_hints(type(start))
    settings = {}
    for key, entry in description["settings"].items():
        choose(key, {f.name: 0 for f in fields(start) if f.init}, f"setting of {name}")
        settings[key] = _decode(entry, known)
        if not _fits(settings[key], hints[key]):
            expected = getattr(hints[key], "__name__", None) or str(hints[key])
            raise InputError(f"{name}.{key} must be of the type {expected}; got {str(entry)[:60]}")
    try:
        return replace(start, **settings)
    except (TypeError, IndexError, ArithmeticError) as error:
        raise InputError(f"this version of sdediff has no such solver: {error}") from None


def _encode(value: Any) -> Any:
    if isinstance(value, Pair):
        names = {pair: name for name, pair in PAIRS.items()}
        if value not in names:
            raise InputError(f"the pair '{value.name}' is not in PAIRS, so no file can name it")
        return {"pair": names[value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}  # JSON has no infinity
    if is_dataclass(value):
        return describe_solver(value)  # type: ignore[arg-type]
    return [_encode(entry) for entry in value] if isinstance(value, tuple) else value


def _decode(value: Any, known: Iterable[Solver]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(entry, known) for entry in value)
    if not isinstance(value, dict):
        return value
    if "number" in value:
        return choose(value["number"], {"inf": math.inf, "-inf": -math.inf}, "number")
    return choose(value["pair"], PAIRS, "pair") if "pair" in value else restore_solver(cast(SolverEntry, value), known)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of the type of a field."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float) and isinstance(value, bool):  # a whole number to Python
        return False
    if kind is float:
        return isinstance(value, (int, float))
    plain = origin or kind
    if (
        isinstance(plain, type) and issubclass(plain, tuple) and hasattr(plain, "_fields")
    ):  # a NamedTuple, in JSON a list
        kinds = tuple(get_type_hints(plain).values())
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    return not isinstance(plain, type) or isinstance(value, plain)
