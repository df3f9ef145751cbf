r"""``pf-ode``, the default deterministic solver for a fixed number of evaluations.

For few steps it is a mixture of tables (``solvers.fitted.mixture_of_tables``), one for each number of steps, fitted to
a training set of models: mixtures of Gaussians on images and in 2-D, Gaussians with the spectra of images, and
trained networks. ``benchmarks/design`` fits them, with evidence in docs/decisions.md; ``pf_ode.json`` holds the
coefficients of

    z_{i+1} = a_i z_i + sum_j b_ij D_j,      z = x / alpha,   at given rho = sigma / alpha,

so one table serves every path; z_0 is divided by sqrt(1 + rho_0^2) in its first row. The coefficients of later rows
depend on the sample, by features of its own evaluations. Rows are completed so that they keep constants, and never
leave a trust region around the exponential Adams step (``solvers.fitted.invariance``). A path that starts low takes
the last rows of a table with more steps. Samples of many dimensions (``is_large``) have separate tables in
``pf_ode_large.json``; without a table, and in the following, they get higher noise levels, or from a low start those
of Karras et al.

For other numbers of steps, and on a given grid, it is the exponential engine (``solvers.fitted.engine``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from solvers.errors import InputError, InputTypeError
from solvers.fitted.coefficients import read_coefficients
from solvers.fitted.data_units import InDataUnits, ScaledPath
from solvers.fitted.dimensions import is_large
from solvers.fitted.engine import LARGER, engine_for, engine_grid, noise_of_start, prefers_engine
from solvers.fitted.gating import GatingNetwork
from solvers.fitted.invariance import Invariance
from solvers.fitted.low_start import LOWEST_START
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.seen_scale import ForScale, SeenScale
from solvers.fitted.table import Row, Table
from solvers.grids import GRIDS, make_grid, time_at
from solvers.noise import Noise
from solvers.problem import Path, ReverseProcess
from solvers.solver import Solver

# A table is used where the path starts at this many times its next rho at least.
_ROOM = 1.2
# Rows that may be left out where a path starts low and the samples have few dimensions, and the steps for which that
# was fitted.
_MOST_LEAD = 4
_LEAD_STEPS = range(3, 12)
_LOWEST_STEPS = 10  # steps from which the engine is better from a start below LOWEST_START
_FARTHEST = {False: 1.8, True: 0.9}  # the largest distance of the start to the level that it stands for, by ``large``
_BELOW = 2.5
_NEAR = 0.95, 1.6  # a level is near the start if their ratio is between these
_NEVER_CUT = 12  # the last rows of this table are good after its own first rows only
_PURE = 100.0  # the rho from which x is taken for pure noise


@lru_cache(maxsize=2)
def _fitted(file: str) -> dict[int, dict[str, Any]]:
    """The entries of a file beside this one, by number of steps."""
    return {len(entry["rows"]): entry for entry in read_coefficients(File(__file__).with_name(file))["tables"]}


def scale_noise_levels(entry: dict[str, Any], factor: float) -> dict[str, Any]:
    """An entry for data that is larger by a factor: so are z, D and rho, and no other number changes.

    >>> scale_noise_levels({"rho": [1.0], "rows": [[[1.0, [0.5]]], [[0.1, [1.0]]]], "gates": [None, None]}, 2.0)["rows"]
    [[[2.0, [0.5]]], [[0.1, [1.0]]]]
    """
    # z_0 is noise of variance 1 in both.
    first = [[decay * factor, weights] for decay, weights in entry["rows"][0]]
    return {**entry, "rho": [rho * factor for rho in entry["rho"]], "rows": [first, *entry["rows"][1:]]}


def _entry(steps: int, large: bool) -> dict[str, Any] | None:
    entry = _fitted("pf_ode.json").get(steps)
    if large:
        entry = _fitted("pf_ode_large.json").get(steps) or (entry and scale_noise_levels(entry, LARGER))
    return entry


@lru_cache(maxsize=256)
def fitted_table(path: Path, steps: int, large: bool = False, unit: float = 1.0) -> MixtureOfTables | None:
    """The fitted table for a number of steps on a path; None where there is none for the noise level of its start.

    With n steps from rho_T it is the table of n + k steps without its first k rows. The k-th level is the one next to
    rho_T, where a level below rho_T counts 2.5 times as far as one above; for k = 0 it is 100, or rho_T if that is
    higher.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> len(fitted_table(straight, 8).times), fitted_table(straight, 1000)
    (9, None)
    """
    start = noise_of_start(path)
    if prefers_engine(steps, large, start):
        return None
    found = []
    for lead in range(_MOST_LEAD + 1):
        entry = _entry(steps + lead, large)
        if entry is None or (lead and (large or not _may_be_cut(steps, lead, start))):
            continue
        rho = [max(_PURE, start), *entry["rho"], 0.0]
        if start < _ROOM * rho[lead + 1]:
            continue
        apart = math.log(rho[lead] / start) if start < math.inf else 0.0
        apart = max(apart, -_BELOW * apart)
        if apart <= _FARTHEST[large]:
            found.append((apart, lead, entry))
    if not found:
        return None
    _, lead, entry = min(found, key=lambda each: each[:2])
    exact = not lead or _NEAR[0] < entry["rho"][lead - 1] / start < _NEAR[1]
    return table_of(path, entry, Invariance(steps + lead, lead, exact, unit))


def _may_be_cut(steps: int, lead: int, start: float) -> bool:
    if steps >= _LOWEST_STEPS and start < LOWEST_START:
        return False
    whole = steps + lead
    return steps in _LEAD_STEPS and whole in _fitted("pf_ode.json") and whole != _NEVER_CUT


def table_of(path: Path, entry: dict[str, Any], invariance: Invariance | None = None) -> MixtureOfTables:
    """An entry of ``pf_ode.json`` on a path.

    >>> from solvers import Scales
    >>> straight = lambda t: Scales(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    >>> table_of(straight, {"rho": [1.0], "rows": [[[1.0, [0.5]]], [[0.0, [1.0]]]], "gates": [None, None]}).times
    (1.0, 0.5, 0.0)
    """
    lead = invariance.lead if invariance else 0
    rho = torch.tensor(entry["rho"][lead:], dtype=torch.float64, device="cpu")
    times = (1.0, *time_at(path, -torch.log(rho)).tolist(), 0.0)
    scale = _scales(path, times)
    source = "solvers/fitted/pf_ode.py"
    if lead:  # the start stands for a level of the table
        alpha, sigma = (float(c) for c in path(torch.ones((), dtype=torch.float64, device="cpu"))[:2])
        scale[0] = sigma / entry["rho"][lead - 1]
        source += f", rows {lead + 1} to {len(entry['rows'])}: the path starts at sigma / alpha = {sigma / alpha:.4g}"
    used = entry["rows"][lead:]
    tables = tuple(
        Table(
            times,
            tuple(
                Row(decay * scale[i + 1] / scale[i], tuple(weight * scale[i + 1] for weight in weights))
                for i, (decay, weights) in enumerate(rows[min(kind, len(rows) - 1)] for rows in used)
            ),
        )
        for kind in range(max(map(len, used)))
    )
    gates = tuple(gate and GatingNetwork.of(*gate) for gate in entry["gates"][lead:])
    return MixtureOfTables(tables, gates, source, invariance)


def table_entry(path: Path, table: MixtureOfTables) -> dict[str, Any]:
    """A table as ``pf_ode.json`` holds it: the inverse of ``fitted_table``."""
    alpha, sigma = (c.tolist() for c in path(torch.tensor(table.times, dtype=torch.float64, device="cpu"))[:2])
    scale = _scales(path, table.times)
    rows = [
        [
            [row.decay * scale[i] / scale[i + 1], [weight / scale[i + 1] for weight in row.weights]]
            for row in (one.rows[i] for one in (table.tables if gate else table.tables[:1]))
        ]
        for i, gate in enumerate(table.gates)
    ]
    rho = [s / a for s, a in zip(sigma[1:-1], alpha[1:-1], strict=True)]
    return {"rho": rho, "rows": rows, "gates": [gate and list(gate) for gate in table.gates]}


def _scales(path: Path, times: tuple[float, ...]) -> list[float]:
    """x / z at each time, where z at the first is taken for x / sqrt(alpha^2 + sigma^2)."""
    alpha, sigma = (c.tolist() for c in path(torch.tensor(times, dtype=torch.float64, device="cpu"))[:2])
    return [math.hypot(alpha[0], sigma[0]), *alpha[1:]]


def _grid(path: Path, steps: int, large: bool = False) -> Tensor:
    """The times of the table, or those of the engine."""
    table = fitted_table(path, steps, large)
    return (
        engine_grid(path, steps, large)
        if table is None
        else torch.tensor(table.times, dtype=torch.float64, device="cpu")
    )


GRIDS["fitted"] = _grid
GRIDS["fitted-large"] = partial(_grid, large=True)


@dataclass(frozen=True)
class ProbabilityFlow(ForScale):
    """The fitted table for the number of steps, or the exponential engine.

    Args:
        large: whether with the tables and noise levels for many dimensions; None leaves it to the shape of x, the
            start and the number of steps (``solvers.fitted.dimensions``).
        scale: of the data: 1 for images in [-1, 1] and for standardised data. Data times c with ``scale=c`` give
            samples times c. None is 1, unless the first evaluations show wider data (``solvers.fitted.seen_scale``);
            the run then reads a few values from the device.

    Raises:
        ValueError: a scale that is not positive.

    >>> from solvers import SOLVERS
    >>> SOLVERS["pf-ode"].evaluations(steps=8), SOLVERS["pf-ode"].grid
    (8, 'fitted')
    """

    large: bool | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise InputError(f"the scale of the data is a positive number; got {self.scale}")

    order = 6
    needs = (ReverseProcess,)
    uses_corrector = True
    source = "docs/decisions.md, on Zhao et al. 2023 and Shaul et al. 2024"

    def for_scale(self, scale: float) -> ProbabilityFlow:
        """This solver for data of a scale."""
        return replace(self, scale=scale)

    @property
    def grid(self) -> str:
        """The times of the tables, and those that suit the engine beyond them."""
        return "fitted-large" if self.large else "fitted"

    @property
    def sees_channels(self) -> bool:
        """Yes: the fitted rows are completed by channel means, see ``solvers.fitted.invariance``."""
        return True

    def resolve(
        self,
        problem: ReverseProcess,
        shape: Sequence[int],
        grid: str | Tensor | Sequence[float] | None = None,
        steps: int | None = None,
    ) -> tuple[Solver, Tensor]:
        """The table if the times are the table's, else a member of the exponential engine; and the times."""
        unit = 1.0 if self.scale is None else self.scale
        path = problem.path if unit == 1 else ScaledPath(problem.path, unit)
        number = steps or (0 if grid is None or isinstance(grid, str) else len(grid) - 1)
        large = is_large(shape, noise_of_start(path), number) if self.large is None else self.large
        own = "fitted-large" if large else "fitted"
        name = own if grid is None else grid
        times = make_grid(name, replace(problem, path=path), steps)
        member: Solver | None = fitted_table(path, len(times) - 1, large, unit)
        tabled = member is not None and member.grid == tuple(times.tolist())
        fitted = member
        if member is None or not tabled:
            member = engine_for(len(times) - 1, noise_of_start(path), large)
        if self.scale is not None:
            return (member if unit == 1 else InDataUnits(member, unit)), times
        if not tabled and fitted is None and not isinstance(name, str):
            tabled = torch.equal(times, engine_grid(path, len(times) - 1, large))
        if tabled or (isinstance(name, str) and name == own):
            return SeenScale(member, self, tuple(times.tolist())), times
        return member, times

    def step(
        self, problem: ReverseProcess, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, Any]:
        """Raise an error, since a run takes the steps of the solver that ``resolve`` returns.

        Raises:
            TypeError: always.
        """
        raise InputTypeError(
            "pf-ode takes no steps itself; take those of solvers.planning.plan(problem, shape, 'pf-ode')"
        )
