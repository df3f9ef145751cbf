r"""A table of coefficients with fresh noise after its steps.

    x_{i+1} = a_i x_i + sum_{j <= i} b_ij D_j + n_i xi_i,        xi_i ~ N(0, I),

with n = 0 for the last row. ``renoised`` makes one of a deterministic table. After row i it keeps a part of the noise
in the state and draws the rest anew, with a strength eta_i between 0 and 1 (Song, Meng & Ermon 2021, eq. 16):

    x <- alpha D^ + sqrt(1 - f) (x - alpha D^) + sqrt(f) sigma xi,        f = eta_i^2 (1 - (rho_{i+1} / rho_i)^2),

alpha, sigma and rho = sigma / alpha at the end of the row. On the rows of DDIM, eta = 1 is the ancestral step of DDPM.
D^ is the last D (order 1), or the line through the last two in rho, at the end of the row (order 2):

    D^ = D_i + r (D_i - D_{i-1}),        r = (rho_i - rho_{i+1}) / (rho_{i-1} - rho_i).

All of this is linear in x and the D_j, so that the result is a table again and takes no further evaluation. With the
exact D^ at the end of the row the step is Langevin's with delta = f sigma^2 / 2, to first order in f: in the limit of
small steps the marginals of the process remain, whatever the strengths. What noise changes is the errors that earlier
steps and the model left: the part of them that lies in the noise of the state is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.table import FixedGridSolver, History, Row, Table
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess


@dataclass(frozen=True)
class NoisyTable(FixedGridSolver):
    """A table that draws noise after its steps.

    Args:
        table: the coefficients of x and D; may start from the mean of the data.
        noise: standard deviation of the noise after each step, one for each evaluation; the last is 0.
        source: origin of the coefficients.

    Raises:
        ValueError: another number of standard deviations, negative ones, noise after the last step, or none at all.

    >>> table = Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,))))
    >>> NoisyTable(table, (0.1, 0.0)).stochastic
    True
    """

    table: Table | MeanStart
    noise: tuple[float, ...]
    source: str = "a table with noise"

    stochastic = True
    follows_path = False  # there are no runs of another NFE

    def __post_init__(self) -> None:
        steps = len(self.table.grid) - 1
        if len(self.noise) != steps:
            raise InputError(f"a table of {steps} steps has noise after each of them; got {len(self.noise)} figures")
        if not all(0 <= n < math.inf for n in self.noise):
            raise InputError(f"standard deviations of noise are finite and not negative; got {self.noise}")
        if self.noise[-1] != 0:
            raise InputError(f"noise after the last step would stay in the sample; it must be 0, got {self.noise[-1]}")
        if not any(self.noise):
            raise InputError("a table without noise is a Table; use the table itself")

    def on(self, path: Path) -> NoisyTable:
        """A copy for this path alone."""
        return replace(self, table=self.table.on(path))

    @property
    def grid(self) -> tuple[float, ...]:
        """The times of the table."""
        return self.table.grid

    def init(self, problem: ReverseProcess, times: Tensor) -> History:
        """The state before the first evaluation.

        Raises:
            ValueError: the grid or the path differs from that of the table.
        """
        return self.table.init(problem, times)

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, Tensor, History]:
        """One step of the table, and its noise."""
        x, s, state = self.table.step(problem, x, t, s, state, noise)
        size = self.noise[state.number - 1 - isinstance(self.table, MeanStart)]
        return (x.add_(noise.increment(x, t, s), alpha=size) if size else x), s, state


def renoised(table: Table | MeanStart, path: Path, strengths: Sequence[float], order: int = 2) -> NoisyTable:
    """A deterministic table with noise of given strengths after its steps.

    Args:
        table: whose states follow the process, as those of every solver do.
        path: the scales of the process.
        strengths: eta of every step but the last, from 0 to 1.
        order: 1 or 2, the number of D that D^ is found from.

    Raises:
        ValueError: another number of strengths, or strengths outside 0 to 1, or all 0.

    DDPM in two evaluations:

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> ddim = Table((1.0, 0.5, 0.0), (Row(0.5, (0.5,)), Row(0.0, (1.0,))))
    >>> renoised(ddim, straight, [1.0], order=1).noise
    (0.5, 0.0)
    """
    inner = table.table if isinstance(table, MeanStart) else table
    first = len(inner.rows) - len(table.grid) + 1  # rows without an evaluation
    if len(strengths) != len(table.grid) - 2:
        raise InputError(f"{len(table.grid) - 1} steps take {len(table.grid) - 2} strengths; got {len(strengths)}")
    if not all(0 <= eta <= 1 for eta in strengths):
        raise InputError(f"strengths of noise are between 0 and 1; got {list(strengths)}")
    if order not in (1, 2):
        raise InputError(f"order is 1 or 2, the number of D that the noise is found from; got {order}")
    alpha, sigma = path(torch.tensor(inner.times, dtype=torch.float64, device="cpu"))[:2]
    rho = [math.inf if a == 0 else s / a for a, s in zip(alpha.tolist(), sigma.tolist(), strict=True)]
    rows, noise = list(inner.rows), [0.0] * (len(table.grid) - 1)
    for k, eta in enumerate(strengths):
        if eta == 0:
            continue
        i = first + k
        ratio = rho[i + 1] / rho[i]
        fresh = eta**2 * (1 - ratio) * (1 + ratio)
        kept = math.sqrt(1 - fresh)
        # 1 - kept without cancellation, for weak noise.
        towards = float(alpha[i + 1]) * fresh / (1 + kept)
        ahead = 0.0 if order == 1 or i == 0 else _ahead(rho[i - 1 : i + 2])
        estimate = (towards * (1 + ahead), -towards * ahead) if ahead else (towards,)
        weights = tuple(kept * w + e for w, e in zip_longest(rows[i].weights, estimate, fillvalue=0.0))
        rows[i] = Row(kept * rows[i].decay, weights)
        noise[k] = float(sigma[i + 1]) * math.sqrt(fresh)
    made = replace(inner, rows=tuple(rows))
    with_rows = replace(table, table=made) if isinstance(table, MeanStart) else made
    return NoisyTable(with_rows, tuple(noise), f"{table.source}, with noise")


def _ahead(rho: Sequence[float]) -> float:
    """The r of D^, from rho before, at the start and at the end of a row."""
    before, start, end = rho
    return (start - end) / (before - start) if math.isfinite(before) else 0.0
