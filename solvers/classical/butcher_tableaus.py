r"""Embedded Runge-Kutta pairs as data.

One step of a pair from (t, x) with step h evaluates k_1 = f(t, x) and

    k_{i+1} = f(t + c_i h, x + h sum_j a_ij k_j),        i = 1 .. stages,

The last row of a is the solution of order p: its slope is the first of the next step ("first same
as last"); ``embedded`` are the weights of a second solution of order p - 1 from the same slopes.
Coefficients are kept as exact rationals (those of Tsitouras are the published 16 digits).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property


@dataclass(frozen=True)
class Pair:
    """A first-same-as-last tableau with an embedded method of one order less.

    Attributes:
        name: name of the method.
        order: order of the solution.
        nodes: c_i of every stage after the first.
        rows: a_ij of every stage after the first; the last row is the solution.
        embedded: weights of the embedded solution, one more than the last row has.
        source: publication.

    >>> DORMAND_PRINCE.stages, DORMAND_PRINCE.order, sum(DORMAND_PRINCE.embedded)
    (6, 5, Fraction(1, 1))
    """

    name: str
    order: int
    nodes: tuple[Fraction, ...]
    rows: tuple[tuple[Fraction, ...], ...]
    embedded: tuple[Fraction, ...]
    source: str

    @property
    def stages(self) -> int:
        """New evaluations in one step."""
        return len(self.nodes)

    @cached_property
    def c(self) -> tuple[float, ...]:
        """The nodes as floats."""
        return tuple(float(c) for c in self.nodes)

    @cached_property
    def a(self) -> tuple[tuple[float, ...], ...]:
        """The rows as floats."""
        return tuple(tuple(float(w) for w in row) for row in self.rows)

    @cached_property
    def error(self) -> tuple[float, ...]:
        """Solution minus embedded weights, subtracted exactly and then rounded."""
        return tuple(float(w - v) for w, v in zip((*self.rows[-1], Fraction(0)), self.embedded, strict=True))


def _row(numbers: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(n) for n in numbers.split())


BOGACKI_SHAMPINE = Pair(
    name="Bogacki-Shampine 3(2)",
    order=3,
    nodes=_row("1/2 3/4 1"),
    rows=(_row("1/2"), _row("0 3/4"), _row("2/9 1/3 4/9")),
    embedded=_row("7/24 1/4 1/3 1/8"),
    source="Bogacki & Shampine 1989",
)

DORMAND_PRINCE = Pair(
    name="Dormand-Prince 5(4)",
    order=5,
    nodes=_row("1/5 3/10 4/5 8/9 1 1"),
    rows=(
        _row("1/5"),
        _row("3/40 9/40"),
        _row("44/45 -56/15 32/9"),
        _row("19372/6561 -25360/2187 64448/6561 -212/729"),
        _row("9017/3168 -355/33 46732/5247 49/176 -5103/18656"),
        _row("35/384 0 500/1113 125/192 -2187/6784 11/84"),
    ),
    embedded=_row("5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40"),
    source="Dormand & Prince 1980",
)

_TSITOURAS_SOLUTION = _row(
    "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774"
)

_TSITOURAS_ERROR = _row(
    "-0.00178001105222577714 -0.0008164344596567469 0.007880878010261995"
    " -0.1447110071732629 0.5823571654525552 -0.45808210592918697 1/66"
)
TSITOURAS = Pair(
    name="Tsitouras 5(4)",
    order=5,
    nodes=_row("0.161 0.327 0.9 0.9800255409045097 1 1"),
    rows=(
        _row("0.161"),
        _row("-0.008480655492356989 0.335480655492357"),
        _row("2.8971530571054935 -6.359448489975075 4.3622954328695815"),
        _row("5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525"),
        _row("5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383"),
        _TSITOURAS_SOLUTION,
    ),
    embedded=tuple(w + d for w, d in zip((*_TSITOURAS_SOLUTION, Fraction(0)), _TSITOURAS_ERROR, strict=True)),
    source="Tsitouras 2011, table 1",
)

PAIRS = {"rk23": BOGACKI_SHAMPINE, "rk45": DORMAND_PRINCE, "tsit5": TSITOURAS}
"""Embedded Runge-Kutta pairs by name."""
