"""Order conditions of the embedded pairs, in exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement

import pytest

from solvers.classical.butcher_tableaus import PAIRS, Pair

Tree = tuple["Tree", ...]


def _trees(order: int) -> list[Tree]:
    """All rooted trees with so many vertices, as sorted tuples of their branches."""
    if order == 1:
        return [()]
    found: set[Tree] = set()
    smaller = {n: _trees(n) for n in range(1, order)}

    def forests(total: int, most: int) -> list[tuple[Tree, ...]]:
        if total == 0:
            return [()]
        return [
            (*group, *rest)
            for n in range(min(most, total), 0, -1)
            for count in range(1, total // n + 1)
            for group in combinations_with_replacement(smaller[n], count)
            for rest in forests(total - n * count, n - 1)
        ]

    for forest in forests(order - 1, order - 1):
        found.add(tuple(sorted(forest)))
    return sorted(found)


def _vertices(tree: Tree) -> int:
    return 1 + sum(map(_vertices, tree))


def _density(tree: Tree) -> int:
    out = _vertices(tree)
    for branch in tree:
        out *= _density(branch)
    return out


def _elementary(tree: Tree, a: list[list[Fraction]]) -> list[Fraction]:
    """The stage vector of a tree: the product over branches of A times theirs."""
    out = [Fraction(1)] * len(a)
    for branch in tree:
        inner = _elementary(branch, a)
        out = [o * sum(x * y for x, y in zip(row, inner, strict=True)) for o, row in zip(out, a, strict=True)]
    return out


def _square(pair: Pair) -> list[list[Fraction]]:
    n = pair.stages + 1
    return [[*row, *[Fraction(0)] * (n - len(row))] for row in ((), *pair.rows)]


def _defect(pair: Pair, weights: tuple[Fraction, ...], tree: Tree) -> Fraction:
    phi = _elementary(tree, _square(pair))
    return abs(sum(w * p for w, p in zip(weights, phi, strict=True)) - Fraction(1, _density(tree)))


def test_the_number_of_trees_is_cayleys() -> None:
    assert [len(_trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", PAIRS)
def test_order_conditions(name: str) -> None:
    pair = PAIRS[name]
    solution = (*pair.rows[-1], Fraction(0))
    # The published numbers of Tsitouras have 16 digits, and the largest are near 12; the other two
    # are exact.
    allowed = Fraction(2, 10**14) if name == "tsit5" else Fraction(0)
    for weights, order in ((solution, pair.order), (pair.embedded, pair.order - 1)):
        for n in range(1, order + 1):
            for tree in _trees(n):
                assert _defect(pair, weights, tree) <= allowed, (n, tree)
        # And not one order more.
        assert max(_defect(pair, weights, tree) for tree in _trees(order + 1)) > Fraction(1, 10**5)


@pytest.mark.parametrize("name", PAIRS)
def test_nodes_are_row_sums_and_stay_in_the_step(name: str) -> None:
    pair = PAIRS[name]
    for node, row in zip(pair.nodes, pair.rows, strict=True):
        assert abs(sum(row) - node) < Fraction(1, 10**14)
        assert 0 <= node <= 1
    assert pair.nodes[-1] == 1
