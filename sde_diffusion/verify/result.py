"""The result of one check of a solver: expected and measured values, and whether they agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = float | str | Sequence[float]


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: name of the check, a key of ``CHECKS``.
        passed: whether the measured value agrees with the expected one.
        expected: in words.
        measured: in words, with the figure that decided.
        figures: every number behind it, for ``--json``.
    """

    name: str
    passed: bool
    expected: str
    measured: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All checks of one solver.

    Attributes:
        solver: its name.
        declared: its declarations, see ``sde_diffusion.verify.declarations.declaration``.
        checks: in the order of ``CHECKS``; checks that do not apply are absent.
        seconds: time taken.

    >>> failed = Check("order", False, "2 +- 0.15", "0.97")
    >>> Report("mine", {}, (failed,), 0.1).passed
    False
    """

    solver: str
    declared: Mapping[str, Any]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


def refuses(call: Callable[[], object]) -> bool:
    """Whether a call raises a ValueError.

    >>> refuses(lambda: int("x")), refuses(lambda: int("1"))
    (True, False)
    """
    try:
        call()
    except ValueError:
        return True
    return False


def jsonable(value: Any) -> Any:
    """A figure as JSON can hold it: numbers that are not finite become text.

    >>> jsonable({"slopes": (2.0, math.inf)})
    {'slopes': [2.0, 'inf']}
    """
    if isinstance(value, Mapping):
        return {name: jsonable(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
