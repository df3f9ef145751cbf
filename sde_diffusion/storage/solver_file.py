r"""A solver in a file of its own, for any process with the same range of sigma / alpha.

What ``tune`` returns for few evaluations is a table, x_{i+1} = a_i x_i + sum_j b_ij D_j at times t_i. In the coordinate

    y = x / n(t),        n(t) = sqrt(alpha^2 + sigma^2),

and with noise levels rho_i = sigma / alpha in place of times, it is the same on all processes with one rho at t = 1.
The file holds that form, with the noise of a table that draws some in units of n as well. Other solvers are stored with
their settings, and refuse other processes themselves.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.sde import SDE
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError, read_json, to_json, write_file
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import Solver
from solvers.errors import InputError, NotFoundError
from solvers.fitted.mean_start import MeanStart
from solvers.fitted.noisy_table import NoisyTable
from solvers.fitted.table import Row, Table

KIND = "sdediff solver"
_SAME = 1e-6


def save_solver(path: str | os.PathLike[str], solver: Solver, sde: SDE) -> None:
    """Write a solver to a JSON file, whole or not at all.

    Args:
        path: the file; its folder is made.
        solver: for example what ``tune`` returned.
        sde: the process that it was made for.

    >>> import tempfile
    >>> from sde_diffusion.sde import Flow
    >>> from solvers import SOLVERS
    >>> from solvers.fitted.compile import compile_table
    >>> path = Path(tempfile.mkdtemp()) / "ddim-4.json"
    >>> save_solver(path, compile_table(SOLVERS["ddim"], Flow(), 4), Flow())
    >>> load_solver(path, Flow()).evaluations(4)
    4
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"format": FORMAT, "kind": KIND, "solver": describe_solver(solver)}
    inner = solver.table if isinstance(solver, NoisyTable) else solver
    table = inner.table if isinstance(inner, MeanStart) else inner
    if isinstance(table, Table):
        rho, size = _levels(sde, table.times)
        rows = [
            [row.decay * size[i] / size[i + 1], *(w / size[i + 1] for w in row.weights)]
            for i, row in enumerate(table.rows)
        ]
        content |= {"rho": [r if math.isfinite(r) else None for r in rho], "rows": rows, "source": table.source}
        del content["solver"]
    if isinstance(inner, MeanStart):
        content |= {"mean": list(inner.mean), "source": inner.source}
    if isinstance(solver, NoisyTable):
        noise = zip(solver.noise, size[-len(solver.noise) :], strict=True)
        content |= {"noise": [n / end for n, end in noise], "source": solver.source}
    write_file(path, to_json(content))


def load_solver(path: str | os.PathLike[str], sde: SDE) -> Solver:
    """The solver in a JSON file, for a process.

    Args:
        path: a file of ``save_solver``.
        sde: the process that it will run on; sigma / alpha at t = 1 must be that of the one it was made for.

    Raises:
        FileNotFoundError: there is no file.
        CheckpointError: the file is torn or of another kind.
        ValueError: the noise of the process has another range.

    >>> import tempfile
    >>> from sde_diffusion.sde import EDM, Flow, CosineVPSDE
    >>> from solvers import SOLVERS
    >>> from solvers.fitted.compile import compile_table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_solver(f"{folder}/s.json", compile_table(SOLVERS["ddim"], Flow(), 4), Flow())
    ...     table = load_solver(f"{folder}/s.json", CosineVPSDE())
    >>> table.evaluations(4), table.times[0]
    (4, 1.0)
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"no solver at {path}; save_solver(path, solver, sde) writes one")
    content = read_json(path)
    if content.get("kind") != KIND:
        raise CheckpointError(f"{path} is no solver: expected a file that save_solver wrote")
    try:
        if "solver" in content:
            return restore_solver(content["solver"])
        rho = [math.inf if r is None else float(r) for r in content["rho"]]
        rows = [[float(c) for c in row] for row in content["rows"]]
        source = str(content["source"])
        mean = None if "mean" not in content else tuple(float(c) for c in content["mean"])
        noise = None if "noise" not in content else [float(c) for c in content["noise"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    table = _table(path, rho, rows, source, sde)
    if mean is not None and not all(map(math.isfinite, mean)):
        raise CheckpointError(f"{path} is damaged: its mean is not finite")
    try:
        made = table if mean is None else MeanStart(table, mean, source)
        if noise is None:
            return made
        size = _levels(sde, table.times)[1][-len(noise) :]
        return NoisyTable(made, tuple(n * end for n, end in zip(noise, size, strict=True)), source)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _table(path: Path, rho: list[float], rows: list[list[float]], source: str, sde: SDE) -> Table:
    numbers = [c for row in rows for c in row]
    if len(rho) != len(rows) + 1 or rho[-1] != 0 or not all(map(math.isfinite, numbers)) or not all(rows):
        raise CheckpointError(f"{path} is damaged: {len(rho)} noise levels and {len(rows)} rows are no table")
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    own = math.inf if alpha == 0 else sigma / alpha
    if rho[0] != own and not math.isclose(rho[0], own, rel_tol=_SAME):
        raise InputError(
            f"{path} is for processes that start from sigma / alpha = {rho[0]:.6g}, and this one, {sde}, starts from "
            f"{own:.6g}; tune for this one"
        )
    inner = sde.time(-torch.log(torch.tensor(rho[1:-1], dtype=torch.float64))).tolist()
    times = (1.0, *inner, 0.0)
    _, size = _levels(sde, times)
    made = tuple(
        Row(row[0] * size[i + 1] / size[i], tuple(w * size[i + 1] for w in row[1:])) for i, row in enumerate(rows)
    )
    try:
        return replace(Table(times, made, source).on(sde))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _levels(sde: SDE, times: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """sigma / alpha and sqrt(alpha^2 + sigma^2) at times."""
    alpha, sigma = sde.marginal(torch.tensor(times, dtype=torch.float64))
    return (sigma / alpha).tolist(), torch.hypot(alpha, sigma).tolist()
