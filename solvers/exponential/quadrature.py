r"""Integrals of interpolation polynomials, for the weights of solvers.

With a function known at nodes, Int k(u) f(u) du ~ sum_j f_j Int k(u) L_j(u) du, where L_j are the
Lagrange basis polynomials. The integrals are Gauss-Legendre sums in float64: no moments, so no
cancellation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# 64 points integrate exp(-H (1 - u)) times a cubic over [0, 1] to rounding for H up to about 60.
_GAUSS = np.polynomial.legendre.leggauss(64)
POINTS: Array = (_GAUSS[0] + 1) / 2
WEIGHTS: Array = _GAUSS[1] / 2


def lagrange(nodes: Array, at: Array) -> Array:
    """The Lagrange basis polynomials of the nodes, (len(nodes), len(at)).

    >>> lagrange(np.array([0.0, 1.0]), np.array([0.25])).tolist()
    [[0.75], [0.25]]
    """
    basis = np.ones((len(nodes), len(at)))
    for j, node in enumerate(nodes):
        for k, other in enumerate(nodes):
            if k != j:
                basis[j] *= (at - other) / (node - other)
    return basis
