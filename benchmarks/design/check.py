"""What the repository allows to repeat of the fit of the tables, compared with the stored figures.

    python -m benchmarks.design --check            # three comparisons; exit code 1 where one fails
    python -m benchmarks.design --check --write    # store new figures, after a change that is meant to change them

1. The exact models of each training set have the stored hashes.
2. The stored tables have the stored errors on held-out initial noise of these models, within a thousandth.
3. Tables of 3 and 5 steps are fitted again, as ``benchmarks.design`` fits them, to exact models alone, and equal those
   of ``check.json``: noise levels within a thousandth, coefficients within 0.002 (a coefficient is of order 1), errors
   on held-out noise within one hundredth. Levenberg-Marquardt steps amplify the rounding of a processor, hence not
   equal bits.

Tables are run as they are stored and were fitted, without ``solvers.fitted.invariance``, which completes the rows of
``pf-ode``. The networks of the training set are not in the repository, so the tables in use cannot be fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.design import origin
from benchmarks.design.gated_design import GatedDesign
from benchmarks.design.plain_design import Design
from benchmarks.design.training_problems import exact_models, exact_problems
from solvers.fitted.coefficients import read_coefficients
from solvers.fitted.mixture_of_tables import MixtureOfTables
from solvers.fitted.pf_ode import table_entry

STORED = Path(__file__).with_name("check.json")
COMMAND = "python -m benchmarks.design --check --write"
EXPERTS = {"plane": ("plane", "rings"), "cloud": ("cloud, 3", "cloud, 8"), "smooth": ("spectrum, line",)}
SAMPLES = {3: 8, 5: 32}  # number of steps: initial noise samples for the fit, and as many held out
FILES = {origin.TABLES: False, origin.LARGE_TABLES: True, origin.START: False}  # large or not
LEVELS, COEFFICIENTS, ERRORS, REPEATED = 1e-3, 2e-3, 1e-2, 1e-3  # tolerances


def hashes(path: Path, large: bool) -> Iterable[str]:
    """Exact models whose hash is another than the stored one."""
    models = exact_models(large)
    for one in read_coefficients(path)["training_set"]:
        if one["model"] == "exact" and one["name"] not in origin.DEPENDS_ON_FONTS:
            found = origin.hash_of(models[one["name"]])
            if found != one["sha256"]:
                yield f"{path.name}: '{one['name']}' has the hash {found}, stored is {one['sha256']}"


def repeated_errors(path: Path, large: bool) -> Iterable[str]:
    """Tables whose error on the exact models is another than the stored one."""
    content = read_coefficients(path)
    names = {one["name"] for one in content["training_set"]} - origin.DEPENDS_ON_FONTS
    problems = exact_problems(large, sorted(names))
    for entry in content["tables"]:
        steps = len(entry["rows"])
        for name, error in origin.held_out_errors(entry, problems).items():
            stored = content["held_out_error"]["by_steps"][str(steps)][name]
            if not math.isclose(error, stored, rel_tol=REPEATED):
                yield f"{path.name}, {steps} steps: error {error:.4g} on '{name}', stored is {stored:.4g}"


def refit(steps: int, console: Console) -> tuple[dict[str, Any], list[Any]]:
    """A table for a number of steps, fitted to exact models alone, and its problems."""
    problems = exact_problems(names=[name for names in EXPERTS.values() for name in names], n=SAMPLES[steps])
    plain = Design(problems, steps, console).make()
    start = table_entry(problems[0].fit.sde, MixtureOfTables((plain,), (None,) * steps))
    return GatedDesign(problems, EXPERTS, [start], console).make(), problems


def refitted(steps: int, console: Console, path: Path = STORED) -> Iterable[str]:
    """Differences between a table that is fitted again and the stored one."""
    entry, problems = refit(steps, console)
    content = read_coefficients(path)
    [stored] = [one for one in content["tables"] if len(one["rows"]) == steps]
    where = f"{path.name}, {steps} steps"
    for found, kept in zip(entry["rho"], stored["rho"], strict=True):
        if not math.isclose(found, kept, rel_tol=LEVELS):
            yield f"{where}: noise level {found:.6g}, stored is {kept:.6g}"
    for i, (row, kept) in enumerate(zip(entry["rows"], stored["rows"], strict=True)):
        apart = max(abs(a - b) for a, b in zip(_numbers(row), _numbers(kept), strict=True))
        if apart > COEFFICIENTS:
            yield f"{where}: coefficients of row {i} differ by {apart:.2g}"
    for name, error in origin.held_out_errors(entry, problems).items():
        kept_error = content["held_out_error"]["by_steps"][str(steps)][name]
        if not math.isclose(error, kept_error, rel_tol=ERRORS):
            yield f"{where}: error {error:.4g} on '{name}', stored is {kept_error:.4g}"


def write(console: Console) -> None:
    """Store tables that are fitted again."""
    for steps in SAMPLES:
        entry, problems = refit(steps, console)
        origin.add(STORED, entry, problems, EXPERTS, (), COMMAND)


def main(console: Console, store: bool = False) -> int:
    """Print every difference; 1 if there is one."""
    if store:
        write(console)
        return 0
    quiet = Console(quiet=True)
    stages = {
        "hashes of the exact models": chain(*(hashes(path, large) for path, large in FILES.items())),
        "errors of the stored tables": chain(*(repeated_errors(path, large) for path, large in FILES.items())),
        **{f"a table of {steps} steps, fitted again": refitted(steps, quiet) for steps in SAMPLES},
    }
    wrong = 0
    for stage, found in stages.items():
        differences = list(found)
        console.print(f"{stage}: {'equal' if not differences else f'{len(differences)} differences'}")
        for line in differences:
            console.print(f"  {line}")
        wrong += len(differences)
    return int(wrong > 0)


def _numbers(row: Any) -> list[float]:
    return [value for decay, weights in row for value in (decay, *weights)]
